"""What the online algorithms share: their settings, the token rewards' KL, and the policy loss. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from raylign.conf.schema import (
    AlgorithmConfig,
    ImportanceMode,
    KLController,
    KLEstimator,
    LossAggregation,
    OldLogprobs,
    PolicyObjectiveKind,
    RatioLevel,
)
from raylign.data.types import ScoredBatch
from raylign.trainer.algorithms.base import Role
from raylign.trainer.functional.advantages import GroupStatistics
from raylign.trainer.functional.kl import KLState, kl_estimate, sequence_kl
from raylign.trainer.functional.losses import ClipRange
from raylign.trainer.functional.segments import sequence_sum
from torch import Tensor


@dataclass(kw_only=True)
class OnlineConfig(AlgorithmConfig):
    """Settings every online algorithm has."""

    sequences_per_update: int = 64
    """Sequences of one optimizer step."""
    ppo_epochs: int = 1
    """Passes over a step's sequences."""
    clip_eps_low: float = 0.2
    """The policy ratio is clipped below at 1 - this."""
    clip_eps_high: float = 0.2
    """The policy ratio is clipped above at 1 + this; larger than clip_eps_low explores more (DAPO)."""
    dual_clip: float = 0.0
    """Ceiling of the ratio where the advantage is negative, above 1; 0 turns it off."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus, reward units a nat."""
    kl_coef: float = 0.05
    """Price of KL to the reference, reward units a nat; 0: no KL term and no reference is started."""
    kl_in_loss: bool = False
    """True: KL is a term of the policy loss; False: it is subtracted from the reward."""
    kl_estimator: KLEstimator = KLEstimator.k1
    """Estimator of the KL of a token."""
    kl_clamp: float = 10.0
    """A token's KL is clamped to +-this, nats; 0 turns it off."""
    kl_controller: KLController = KLController.fixed
    """Whether kl_coef stays or follows kl_target."""
    kl_target: float = 6.0
    """Adaptive controller: nats a sequence it steers to."""
    kl_horizon: float = 10000.0
    """Adaptive controller: sequences over which the coefficient moves by at most 20 %."""
    old_logprobs: OldLogprobs = OldLogprobs.auto
    """Whose log-probs are the ratio's denominator."""
    importance_cap: float = 2.0
    """Most that trainer / engine probability may weigh a token; 0 turns the correction off."""
    importance_mode: ImportanceMode = ImportanceMode.truncate
    """What happens to weights above importance_cap, and with the masks to those below importance_floor too."""
    importance_floor: float = 0.5
    """Least weight that importance_mode=mask_tokens|mask_sequences keeps."""
    loss_aggregation: LossAggregation = LossAggregation.token_mean
    """What the policy loss is a mean over."""
    constant_length: int = 0
    """Tokens that loss_aggregation=constant_length divides a response by: rollout.max_new_tokens (Dr. GRPO)."""
    ratio_level: RatioLevel = RatioLevel.token
    """What the policy ratio is taken of; sequence is GSPO, whose clip_eps_low and _high are near 3e-4 and 4e-4."""
    objective: PolicyObjectiveKind = PolicyObjectiveKind.clip
    """Which function of the ratio is ascended."""
    mask_truncated: bool = False
    """Responses cut at rollout.max_new_tokens count in their group's baseline and are not trained (DAPO)."""

    @property
    def units_per_update(self) -> int:
        """Sequences of one optimizer step."""
        return self.sequences_per_update

    @property
    def passes_per_step(self) -> int:
        """How often a step's sequences are gone through."""
        return self.ppo_epochs

    def initial_kl(self) -> KLState:
        """The KL coefficient's state at step 0."""
        return KLState(self.kl_controller, self.kl_coef, self.kl_target, self.kl_horizon)

    def old_logprobs_source(self, sequences_per_step: int) -> OldLogprobs:
        """`old_logprobs` with `auto` resolved for steps of this many sequences."""
        if self.old_logprobs is not OldLogprobs.auto:
            return self.old_logprobs
        return OldLogprobs.recompute if self._needs_pass_before(sequences_per_step) else OldLogprobs.update

    def left_open(self, units_per_step: int) -> list[tuple[str, str, str, str]]:
        """`old_logprobs`, when it is `auto`."""
        if self.old_logprobs is not OldLogprobs.auto:
            return []
        why = self._needs_pass_before(units_per_step) or "one optimizer step a batch: the ratio is 1"
        return [("algorithm.old_logprobs", "auto", self.old_logprobs_source(units_per_step).value, why)]

    def step_problems(self, units_per_step: int) -> list[str]:
        """`old_logprobs=update` where it would not be exact."""
        needed = self._needs_pass_before(units_per_step)
        if self.old_logprobs is not OldLogprobs.update or not needed:
            return []
        return [f"algorithm.old_logprobs=update does not suit this run: {needed}; set it to auto or recompute"]

    def _needs_pass_before(self, sequences_per_step: int) -> str:
        """Why the policy's log-probs must be known before the update; empty when they need not."""
        if self.ppo_epochs > 1 or sequences_per_step > self.sequences_per_update:
            return "more than one optimizer step a batch"
        if self.kl_coef > 0 and not self.kl_in_loss:
            return "the reward carries the KL"
        return "the KL controller is adaptive" if self.kl_controller is KLController.adaptive else ""

    def clip_range(self) -> ClipRange:
        """The policy clip. With the engine's own log-probs the ratio is the importance weight, so the cap bounds it."""
        ceilings = [self.dual_clip] if self.dual_clip > 0 else []
        if self.old_logprobs is OldLogprobs.engine and self.importance_cap > 0:
            ceilings.append(self.importance_cap)
        return ClipRange(self.clip_eps_low, self.clip_eps_high, min(ceilings, default=0.0))

    def online_roles(self) -> frozenset[Role]:
        """Policy, rollout and reward, and the reference when KL has a price."""
        roles = {Role.POLICY, Role.ROLLOUT, Role.REWARD}
        return frozenset(roles | {Role.REFERENCE} if self.kl_coef > 0 else roles)

    def check(self) -> list[str]:
        """Every problem of these values, as sentences."""
        return (
            range_problems(
                at_least_one={"sequences_per_update": self.sequences_per_update, "ppo_epochs": self.ppo_epochs},
                not_negative={
                    "clip_eps_high": self.clip_eps_high,
                    "entropy_coef": self.entropy_coef,
                    "kl_coef": self.kl_coef,
                    "kl_clamp": self.kl_clamp,
                    "importance_cap": self.importance_cap,
                },
                unit={"clip_eps_low": self.clip_eps_low, "importance_floor": self.importance_floor},
            )
            + self._check_combinations()
        )

    def _check_combinations(self) -> list[str]:
        problems = []
        if self.dual_clip != 0 and self.dual_clip <= 1 + self.clip_eps_high:
            problems.append(
                f"algorithm.dual_clip is {self.dual_clip}, inside the ordinary clip; set it above "
                f"1 + clip_eps_high = {1 + self.clip_eps_high:g} (3 is usual), or to 0 to turn it off"
            )
        if 0 < self.importance_cap < 1:
            problems.append(
                f"algorithm.importance_cap is {self.importance_cap}, so even agreeing log-probs would be scaled down; "
                "set it to 1 or more (2 is usual), or to 0 to turn it off"
            )
        if self.importance_mode is not ImportanceMode.truncate and self.importance_cap == 0:
            problems.append(
                f"algorithm.importance_mode is {self.importance_mode.value}, but importance_cap=0 turns the correction "
                "off; set algorithm.importance_cap (2 is usual), or algorithm.importance_mode=truncate"
            )
        if (self.loss_aggregation is LossAggregation.constant_length) != (self.constant_length > 0):
            problems.append(
                f"algorithm.loss_aggregation is {self.loss_aggregation.value} and algorithm.constant_length is "
                f"{self.constant_length}; constant_length needs both: set algorithm.constant_length to "
                "rollout.max_new_tokens, or leave it 0 with another loss_aggregation"
            )
        if self.objective is PolicyObjectiveKind.cispo and self.ratio_level is RatioLevel.sequence:
            problems.append(
                "algorithm.objective=cispo weighs every token by its own ratio; set algorithm.ratio_level=token"
            )
        if self.kl_controller is KLController.adaptive:
            for key, value in (
                ("kl_coef", self.kl_coef), ("kl_target", self.kl_target), ("kl_horizon", self.kl_horizon)
            ):  # fmt: skip
                if value <= 0:
                    problems.append(
                        f"algorithm.{key} is {value}, but kl_controller=adaptive needs it above 0; "
                        f"set algorithm.{key}, or algorithm.kl_controller=fixed"
                    )
        return problems


def range_problems(
    *, at_least_one: dict[str, int], not_negative: dict[str, float], unit: dict[str, float]
) -> list[str]:
    """Sentences for the values (by key under `algorithm.`) outside their range; NaN is outside every range."""
    checks = [
        *((key, value, value >= 1, "1 or more") for key, value in at_least_one.items()),
        *((key, value, value >= 0, "0 or more") for key, value in not_negative.items()),
        *((key, value, 0 <= value <= 1, "between 0 and 1") for key, value in unit.items()),
    ]
    return [f"algorithm.{key} is {value}; set it to {wanted}" for key, value, fine, wanted in checks if not fine]


def require_finite_scores(batch: ScoredBatch) -> None:
    """No step trains on a missing number. Raises ValueError saying how many scores are not finite."""
    broken = int((~batch.scores.isfinite()).sum())
    if broken:
        raise ValueError(
            f"{broken} of {batch.scores.numel()} scores are not finite; a failed reward must leave the batch"
        )


def kl_penalty(config: OnlineConfig, batch: ScoredBatch, kl_coef: float) -> Tensor | None:
    """Coefficient times each token's KL, `[N]`, to be taken off the reward; None when the reward carries no KL."""
    if batch.ref_logprobs is None or config.kl_in_loss:
        return None
    return kl_coef * kl_estimate(batch.logprobs, batch.ref_logprobs, config.kl_estimator, clamp=config.kl_clamp)


def penalised_scores(config: OnlineConfig, batch: ScoredBatch, kl_coef: float) -> Tensor:
    """Sequence rewards `[S]`: the scores, less the price of the sequence's KL when the reward carries it.

    Raises ValueError when a score is not finite.
    """
    require_finite_scores(batch)
    penalty = kl_penalty(config, batch, kl_coef)
    return batch.scores if penalty is None else batch.scores - sequence_sum(penalty, batch.tokens)


def group_metrics(batch: ScoredBatch) -> dict[str, float]:
    """Groups whose scores teach nothing, counted (before any KL, which would make equal scores differ)."""
    stats = GroupStatistics.of(batch.scores, batch.group)
    return {
        "reward/zero_variance_groups": float(stats.num_zero_variance),
        "reward/single_sample_groups": float(stats.num_single),
    }


def reference_metrics(batch: ScoredBatch) -> dict[str, float]:
    """`policy/kl`: mean over sequences of the unbiased KL to the reference, nats a sequence; and its mean square."""
    if batch.ref_logprobs is None:
        return {}
    kl = sequence_kl(batch.logprobs, batch.ref_logprobs, batch.tokens)
    return {"policy/kl": float(kl.mean()), "policy/kl_square": float(kl.square().mean())}
