"""How often an online run draws its prompts: what the settings say, and what cannot work of them with the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from raylign.conf.errors import DataError
from raylign.data.types import Reward, RewardOutcome


@dataclass(frozen=True, slots=True)
class DrawSettings:
    """What decides the order besides the rows and the seed."""

    shares: Mapping[str, float]  # of the sources, summing to anything above 0; empty: all rows are one source
    min_weight: float = 1.0  # of a row that was solved always or never; 1: every row has weight 1
    max_draws: int = 0  # of one row in the whole run; 0: no limit
    lag: int = 1  # a draw of step s depends on what steps up to s - lag taught; at least 1

    @property
    def plain(self) -> bool:
        """True when every row comes once an epoch without an end: then no weights are needed."""
        return not self.shares and self.min_weight == 1 and not self.max_draws


def weight_of(rate: float | None, min_weight: float) -> float:
    """`min_weight` + (1 - `min_weight`) 4 r (1 - r) at solve rate r: the variance of solved or not, 1 at one half.

    The expected size of a policy gradient's signal on a prompt grows with that variance and is 0 at both ends
    (Foster et al. 2025, Learning to Reason at the Frontier of Learnability, arXiv:2502.12272). None, never seen: 1.
    """
    return 1.0 if rate is None else min_weight + (1 - min_weight) * 4 * rate * (1 - rate)


def solve_rate(outcomes: Sequence[RewardOutcome], solved_score: float) -> float | None:
    """The share of a group's scored answers whose raw reward is at least `solved_score`; None when none is scored."""
    scores = [outcome.score for outcome in outcomes if isinstance(outcome, Reward)]
    return sum(score >= solved_score for score in scores) / len(scores) if scores else None


def refuse_shares(shares: Mapping[str, float], sources: Sequence[str]) -> None:
    """Raises DataError for shares of sources that no row has, and for rows of a source without a share."""
    found = sorted(set(sources))
    if not shares:
        return
    unknown, left = sorted(set(shares) - set(found)), sorted(set(found) - set(shares))
    if unknown:
        raise DataError(
            f"data.mix={dict(shares)}: no row has the data_source {unknown[0]}; there are {', '.join(found)}."
        )
    if left:
        raise DataError(
            f"data.mix={dict(shares)}: rows have the data_source {left[0]} too; give it a share (0 leaves it out)."
        )


def refuse_too_few(shares: Mapping[str, float], sources: Sequence[str], max_draws: int, draws: int) -> None:
    """Raises DataError when `draws` draws of a whole run are more than `max_draws` of each row allow."""
    counts = {name: sources.count(name) for name in set(sources)} if shares else {"": len(sources)}
    total = sum(shares.values()) or 1.0
    for name, count in sorted(counts.items()):
        needed = draws * (shares[name] / total if shares else 1.0)
        if max_draws and needed > count * max_draws:
            whose = f"of {name} " if name else ""
            raise DataError(
                f"data.curriculum.max_draws={max_draws}: the run draws {needed:.0f} prompts {whose}and has {count}, "
                f"enough for {count * max_draws}; lower num_steps, or set it to {-(-int(-(-needed // 1)) // count)}."
            )


def refuse_other_settings(then: Mapping[str, object], now: DrawSettings) -> None:
    """Raises DataError naming the setting that is not what it was (`then`: the settings as a state has them)."""
    keys = {
        "shares": "data.mix", "min_weight": "data.curriculum.min_weight", "max_draws": "data.curriculum.max_draws",
        "lag": "rollout.max_staleness",
    }  # fmt: skip
    for name, value in asdict(now).items():
        if then.get(name) != value:
            off = 1 if name == "lag" else 0
            was, given = (x - off if isinstance(x, int) else x for x in (then.get(name), value))
            raise DataError(
                f"{keys[name]}={given}: it was {was} at the checkpoint, and the order of the prompts follows from it; "
                f"resume with {keys[name]}={was}, or start a new run."
            )
