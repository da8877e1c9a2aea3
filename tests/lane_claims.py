"""A pytest plugin: of the files that several processes have collected, each is run by the one that takes it first."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

TOGETHER = {"test_resume.py": "test_end_to_end.py"}
"""They share `ppo_run`, which is played once a process."""


class Claims:
    """Files taken, each a file in a folder that the processes share, with the process that has it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mine = folder / f"{os.getpid()}.lane"
        self._mine.write_text(str(os.getpid()))

    def take(self, path: Path) -> bool:
        """Whether this process runs it; always the same answer."""
        name = str(path.with_name(TOGETHER.get(path.name, path.name))).replace(os.sep, "+")
        claim = self._folder / name
        try:
            os.link(self._mine, claim)  # with its content, and for one process only
        except FileExistsError:
            return claim.read_text() == str(os.getpid())
        return True


_claims: Claims | None = None


def pytest_configure(config: pytest.Config) -> None:
    global _claims
    folder = os.environ.get("RAYLIGN_LANE_CLAIMS")
    _claims = Claims(Path(folder)) if folder else None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """True: done, nothing to tell."""
    if _claims is None:
        return None
    if not _claims.take(item.path.relative_to(item.config.rootpath)):
        return True
    # The item before was told that another came next, and has left what that one would have needed.
    item.session._setupstate.teardown_exact(item)
    return None
