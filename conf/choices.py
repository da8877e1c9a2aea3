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


class AdapterSync(Enum):
    """What a publication sends of a policy with adapters, once an engine serves a version."""

    auto = "auto"
    merged = "merged"
    separate = "separate"


class SyncTransport(Enum):
    """How whole weights come from the learner to the engines."""

    object_store = "object_store"  # Ray's; an engine of the node maps them
    broadcast = "broadcast"  # NCCL, on a CPU gloo


class Overlong(Enum):
    """What happens to a row longer than the context (counted before training starts)."""

    drop = "drop"
    error = "error"
    truncate_left = "truncate_left"


class RemoteProtocol(Enum):
    """What a reward server is asked, and how it answers (reward/remote.py)."""

    openrlhf = "openrlhf"  # /get_reward
    classify = "classify"  # vLLM's /classify, as verl asks it
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


class InFlight(Enum):
    """What a weight publication does with responses that are being generated."""

    resume = "resume"  # paused, and continued by the new weights from a key-value cache computed anew by them
    drain = "drain"  # waited for: every response is of one version, and the engine runs empty before each publication


class ImportanceMode(Enum):
    """What is done with a token's importance weight, trainer probability over engine probability."""

    truncate = "truncate"  # min(weight, cap) (arXiv:1802.01561, section 4.1)
    mask_tokens = "mask_tokens"  # a weight outside [floor, cap] becomes 0
    mask_sequences = "mask_sequences"  # all weights of a response become 0 where their geometric mean is outside


class PolicyObjectiveKind(Enum):
    """Which function of the ratio a policy update ascends."""

    clip = "clip"  # PPO's (arXiv:1707.06347)
    cispo = "cispo"  # the clipped ratio as a constant weight of the log-prob (MiniMax-M1, arXiv:2506.13585)


class RatioLevel(Enum):
    """What the ratio of new to old policy is taken of."""

    token = "token"
    sequence = "sequence"  # the geometric mean over a response (GSPO, arXiv:2507.18071)


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
    constant_length = "constant_length"  # sums over algorithm.constant_length, a mean over sequences (Dr. GRPO)


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
    """auto: WANDB_MODE or `wandb offline`, else online when wandb has a key, else offline; never a prompt for one."""

    auto = "auto"
    online = "online"
    offline = "offline"
    disabled = "disabled"


class Sink(Enum):
    """A program that shows a run's numbers; metrics.jsonl is written whatever is chosen."""

    wandb = "wandb"
    tensorboard = "tensorboard"
    trackio = "trackio"


class JournalKeep(Enum):
    """Which batches of finished steps stay on disk."""

    needed = "needed"  # those that a resume from a kept checkpoint would train again
    all = "all"  # every one of the run


class PlacementStrategy(Enum):
    """How roles share machines."""

    shared = "shared"  # every role wherever its resources fit
    separate = "separate"  # learners and rollout workers on different nodes
    one_node = "one_node"  # everything on one machine
    colocated = "colocated"  # learners and engines take turns on the same cards


class GuardAction(Enum):
    """What a run does when one of its alerts is raised."""

    off = "off"  # nothing: it is not even said
    warn = "warn"  # say it: terminal, alerts.jsonl, W&B, report
    stop = "stop"  # say it, save, and end
    rollback = "rollback"  # say it, put the best checkpoint back, export its model, and end
