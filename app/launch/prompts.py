"""The prompt set as the online loop draws from it: once an epoch each, or by weight (docs/curriculum.md)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from raylign.conf.errors import DataError
from raylign.conf.schema import RunConfig
from raylign.data.draw_weights import DrawSettings, refuse_shares, refuse_too_few, solve_rate
from raylign.data.prompts import PromptSet
from raylign.data.sampler import EpochSampler
from raylign.data.types import Prompt, RewardOutcome
from raylign.data.weighted_sampler import WeightedSampler
from raylign.trainer.loops.hooks import OnlineProgress, StepReport
from raylign.trainer.loops.interfaces import PromptDraw


class SampledPrompts:
    """A loops.PromptSource in which every prompt comes once an epoch."""

    def __init__(self, prompts: Sequence[Prompt], sampler: EpochSampler) -> None:
        self._prompts = prompts
        self._sampler = sampler

    def begin(self) -> None:
        """A draw depends on how many there were before it, and on no step."""

    def next_batch(self, n: int) -> list[PromptDraw]:
        """The next `n` prompts of the seeded order."""
        return [PromptDraw(epoch, self._prompts[index]) for epoch, index in self._sampler.next_batch(n)]

    def state(self) -> Mapping[str, int | str]:
        """Position, for the checkpoint."""
        return self._sampler.state()

    def taught(
        self, step: int, position: Mapping[str, int | str], drawn: Sequence[Sequence[RewardOutcome]]
    ) -> Mapping[str, int | str]:
        """What prompts taught changes nothing here."""
        return position


class WeightedPrompts:
    """A loops.PromptSource that draws by data.mix and data.curriculum, and a LoopHook that says what it drew.

    The n-th draw of a prompt is its epoch n.
    """

    def __init__(self, prompts: Sequence[Prompt], sampler: WeightedSampler, solved_score: float) -> None:
        self._prompts = prompts
        self._sampler = sampler
        self._solved_score = solved_score

    def begin(self) -> None:
        """From here on what the step `lag` before taught counts."""
        self._sampler.begin()

    def next_batch(self, n: int) -> list[PromptDraw]:
        """The next `n` prompts by weight. Raises DataError where data.curriculum.max_draws leaves none."""
        return [PromptDraw(number, self._prompts[index]) for number, index in self._sampler.next_batch(n)]

    def state(self) -> Mapping[str, int | str]:
        """After the last finished step."""
        return self._sampler.state()

    def taught(
        self, step: int, position: Mapping[str, int | str], drawn: Sequence[Sequence[RewardOutcome]]
    ) -> Mapping[str, int | str]:
        """The state after `step`, which holds what it and all before it taught."""
        self._sampler.teach(step, [solve_rate(outcomes, self._solved_score) for outcomes in drawn])
        return self._sampler.state()

    async def on_start(self, progress: OnlineProgress) -> Mapping[str, float]:
        """Nothing was drawn yet."""
        return {}

    async def after_step(self, report: StepReport, *, last: bool) -> Mapping[str, float]:
        """Of the step's draws, those left out for want of contrast included."""
        drawn = self._sampler.finished(report.progress.step)
        rates = [rate for _, _, rate in drawn if rate is not None]
        sources = Counter(self._prompts[index].data_source for _, index, _ in drawn)
        named = sorted({prompt.data_source for prompt in self._prompts})
        return {
            **({f"data/share/{name}": sources[name] / len(drawn) for name in named} if len(named) > 1 else {}),
            "curriculum/first_draws": sum(number == 0 for number, _, _ in drawn) / len(drawn),
            "curriculum/most_draws": 1.0 + max(number for number, _, _ in drawn),
            **(_bands(rates) if rates else {}),
        }


def _bands(rates: Sequence[float]) -> dict[str, float]:
    """Shares of draws of which no answer, some and every answer was solved."""
    low, high = (sum(rate == end for rate in rates) / len(rates) for end in (0, 1))
    return {"curriculum/unsolved": low, "curriculum/mixed": 1 - low - high, "curriculum/solved": high}


def open_prompts(
    loaded: PromptSet, config: RunConfig, state: Mapping[str, int | str]
) -> SampledPrompts | WeightedPrompts:
    """From the start (empty `state`) or where `state` stopped. Raises DataError when data or their order changed."""
    size, digest, seed = len(loaded.prompts), loaded.digest, config.seed
    settings = draw_settings(config)
    if state and (settings.plain is ("order" in state)):
        raise DataError(
            "data.mix, data.curriculum: the checkpoint's prompts were drawn "
            f"{'by weight' if 'order' in state else 'once an epoch each'}, and the order of all further ones follows "
            "from it; resume with the settings of the run, or start a new run."
        )
    if settings.plain:
        plain = (
            EpochSampler.from_state(state, size=size, data_hash=digest)
            if state
            else EpochSampler(size, seed=seed, shuffle=config.data.shuffle, data_hash=digest)
        )
        return SampledPrompts(loaded.prompts, plain)
    sources = [prompt.data_source for prompt in loaded.prompts]
    weighted = (
        WeightedSampler.from_state(state, sources, settings, data_hash=digest)
        if state
        else WeightedSampler(sources, settings, seed=seed, shuffle=config.data.shuffle, data_hash=digest)
    )
    return WeightedPrompts(loaded.prompts, weighted, config.data.curriculum.solved_score)


def draw_settings(config: RunConfig) -> DrawSettings:
    """What the settings say of the order. A step's draws wait for the steps whose weights its samples come from."""
    curriculum = config.data.curriculum
    return DrawSettings(
        shares=dict(config.data.mix),
        min_weight=curriculum.min_weight,
        max_draws=curriculum.max_draws,
        lag=1 + config.rollout.max_staleness,
    )


def refuse_order(prompts: Sequence[Prompt], config: RunConfig) -> None:
    """Raises DataError, before anything starts, when the run's draws do not fit its prompts."""
    sources = [prompt.data_source for prompt in prompts]
    refuse_shares(config.data.mix, sources)
    draws = config.num_steps * config.rollout.prompts_per_step
    refuse_too_few(config.data.mix, sources, config.data.curriculum.max_draws, draws)
