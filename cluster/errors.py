"""The ways in which a role can fail. No Ray here, so that everyone may name these."""

from __future__ import annotations

from enum import Enum

from raylign.conf.errors import RunFailed


class FailureKind(Enum):
    """What became of a call to a rank; a larger `severity` is nearer to the root cause."""

    DIED = "died"  # the process or its node is gone
    UNAVAILABLE = "unreachable"  # the process may live; the network or its node does not answer
    LOST = "lost its input"  # an object it needed is no longer in the object store
    RAISED = "raised"  # our code or a library raised
    LATE = "late"  # no answer within the deadline

    @property
    def severity(self) -> int:
        """DIED above all: when one rank dies the others raise or hang in the collective they share with it."""
        return {"died": 4, "lost its input": 3, "unreachable": 2, "raised": 1, "late": 0}[self.value]


class RoleError(RunFailed):
    """A rank of a role failed; the message names role, rank, what it was doing and why."""

    def __init__(
        self,
        *,
        role: str,
        ranks: tuple[int, ...],
        verb: str,
        kind: FailureKind,
        cause: str,
        silent: tuple[int, ...] = (),
    ) -> None:
        """`silent`: other ranks that had not answered either when this one's failure was known."""
        noun = "rank" if len(ranks) == 1 else "ranks"
        who = f" {noun} {', '.join(map(str, ranks))}" if ranks else ""
        super().__init__(f"{role}{who} {kind.value} during {verb}: {cause}")
        self.role = role
        self.ranks = ranks
        self.verb = verb
        self.kind = kind
        self.cause = cause
        self.silent = silent


class HolderLost(RunFailed):
    """A result could not be read, because the process that held it is gone."""
