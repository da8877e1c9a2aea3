"""The settings that are one of a few words. Standard library only; import them from conf.schema."""

from __future__ import annotations

from enum import Enum


class Precision(Enum):
    """Number format of weights and activations in a learner or engine."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class Device(Enum):
    """Where a role computes."""

    cpu = "cpu"
    cuda = "cuda"


class Offload(Enum):
    """Where optimizer state lives."""

    none = "none"
    cpu = "cpu"


class Overlong(Enum):
    """What happens to a row longer than the context (counted before training starts)."""

    drop = "drop"
    error = "error"
    truncate_left = "truncate_left"


class RemoteProtocol(Enum):
    """What a reward server is asked, and how it answers (reward/remote.py)."""

    openrlhf = "openrlhf"  # /get_reward
    slime = "slime"  # one answer a request, the reply is the number
    raylign = "raylign"  # docs/remote-rewards.md


class Schedule(Enum):
    """Shape of the learning rate after warm-up."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"


class OldLogprobs(Enum):
    """Whose log-probs are the PPO ratio's denominator."""

    auto = "auto"  # update where that is exact, else recompute; `plan` shows which
    update = "update"  # the update's own: with one optimizer step a batch the ratio is exactly 1, and no pass is needed
    recompute = "recompute"  # by the trainer, before the update; truncated importance weights correct for the engine
    engine = "engine"  # the engine's own: one forward pass less, and the ratio itself is the truncated weight


class RewardStyle(Enum):
    """Whose signature a reward function of one's own has (docs/own-reward.md)."""

    auto = "auto"  # by the names of its parameters; `plan` says which
    trl = "trl"
    verl = "verl"
    openrlhf = "openrlhf"


class KLController(Enum):
    """How the KL coefficient moves."""

    fixed = "fixed"
    adaptive = "adaptive"


class KLEstimator(Enum):
    """How a token's KL to the reference is estimated from its two log-probs (trainer/functional/kl.py)."""

    k1 = "k1"  # the log-ratio: unbiased, may be negative
    k2 = "k2"  # half its square: biased, low variance
    k3 = "k3"  # unbiased, never negative


class LossAggregation(Enum):
    """What the mean of a policy loss runs over; always all ranks and micro-batches together."""

    token_mean = "token_mean"  # every trained token counts the same
    sequence_mean = "sequence_mean"  # every sequence counts the same, whatever its length


class DPOLoss(Enum):
    """What DPO does with h, the gap of chosen and rejected log-ratios to the reference."""

    sigmoid = "sigmoid"  # -log sigmoid(beta h); with label_smoothing: conservative DPO
    robust = "robust"  # unbiased under labels flipped with probability label_smoothing
    ipo = "ipo"  # (h - 1 / (2 beta))^2
    hinge = "hinge"  # max(0, 1 - beta h)


class IPONormalisation(Enum):
    """Whether IPO's log-ratios are means over an answer's tokens, as its authors confirmed, or sums."""

    token_mean = "token_mean"
    sum = "sum"


class Better(Enum):
    """Which way a metric improves."""

    lower = "lower"
    higher = "higher"


class WandbMode(Enum):
    """auto: WANDB_MODE, else online when a key is in the environment, else offline; never a prompt for one."""

    auto = "auto"
    online = "online"
    offline = "offline"
    disabled = "disabled"


class PlacementStrategy(Enum):
    """How roles share machines."""

    shared = "shared"  # every role wherever its resources fit
    separate = "separate"  # learners and rollout workers on different nodes
    one_node = "one_node"  # everything on one machine
