"""Every setting of a run: its type, default and meaning. Standard library only.

The dataclass holds the default and the doc; yaml files hold choices. What cannot work is reported by conf/checks.py
and by `check()` of an algorithm's settings: all problems together, as sentences naming the key, the value and the fix.
Nothing is rewritten; only the words `auto`, 0 or empty that a field documents are resolved, in conf/derive.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raylign.conf.choices import (  # noqa: F401  every choice is part of the schema and imported from here
    AdapterSync,
    Better,
    Device,
    DPOLoss,
    GuardAction,
    ImportanceMode,
    InFlight,
    IPONormalisation,
    JournalKeep,
    KLController,
    KLEstimator,
    LossAggregation,
    Offload,
    OldLogprobs,
    Overlong,
    PlacementStrategy,
    PolicyObjectiveKind,
    Precision,
    RatioLevel,
    RemoteProtocol,
    RewardStyle,
    Schedule,
    Sink,
    SyncTransport,
    WandbMode,
)


@dataclass(kw_only=True)
class AlgorithmConfig:
    """Base of every algorithm's own settings (see trainer/algorithms). A subclass gives `name` its default."""

    name: str
    """The name in `algorithm=`; of code of one's own its path, FILE.py:CLASS."""

    @property
    def label(self) -> str:
        """The name as people read it, and as a folder's: of code of one's own that of the class."""
        return self.name.rpartition(":")[2]

    def check(self) -> list[str]:
        """Every problem within these settings, as sentences that begin with the full key, e.g. `algorithm.clip_eps`."""
        return []

    def left_open(self, units_per_step: int) -> list[tuple[str, str, str, str]]:
        """Key, given value, resolved value and reason of every setting left to `auto`."""
        return []

    def step_problems(self, units_per_step: int) -> list[str]:
        """Every problem of these settings with steps of this many sequences, as sentences."""
        return []

    @property
    def units_per_update(self) -> int:
        """Sequences (online) or rows (offline) of one optimizer step."""
        raise NotImplementedError(f"{type(self).__name__} does not say how much one optimizer step takes")

    @property
    def sequences_per_unit(self) -> int:
        """Sequences a unit is made of: 2 for a pair of answers."""
        return 1

    def data_warnings(self, counts: Mapping[str, int]) -> list[str]:
        """What is odd about a training set of these counts, as sentences with a fix. None of them ends the run."""
        return []

    @property
    def teacher_prompts(self) -> bool:
        """True when the reference reads the rows' `teacher_prompt` in place of the policy's prompt."""
        return False

    @property
    def needs_reward(self) -> bool:
        """False for an online algorithm that learns where nothing scores the answers."""
        return True

    @property
    def passes_per_step(self) -> int:
        """How often an online step's sequences are gone through."""
        return 1

    @property
    def min_samples_per_prompt(self) -> int:
        """Fewest answers to one prompt that give an advantage: 2 where they are compared with each other."""
        return 1


@dataclass(kw_only=True)
class OptimConfig:
    """AdamW and its schedule."""

    lr: float = 1e-6
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW moment decays."""
    eps: float = 1e-8
    """AdamW denominator term."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Global gradient-norm clip; 0 turns it off."""
    warmup_steps: int = 0
    """Optimizer steps of linear warm-up."""
    schedule: Schedule = Schedule.constant
    """Shape after warm-up."""

    def __post_init__(self) -> None:
        self.betas = tuple(self.betas)  # type: ignore[assignment]  # yaml knows only lists


@dataclass(kw_only=True)
class LoraConfig:
    """Low-rank adapters on a frozen model (LoRA, arXiv:2106.09685).

    A scalar head is trained in full. Exports, and what the engines serve, are merged.
    """

    rank: int = 0
    """Rank of each adapter; 0: off, every weight is trained."""
    alpha: float = 32.0
    """An adapter's product is multiplied by alpha / rank before it is added."""
    rslora: bool = False
    """Multiply by alpha / sqrt(rank) instead, so that large ranks learn as fast (arXiv:2312.03732)."""
    target_modules: list[str] = field(default_factory=list)
    """Linear layers that get an adapter, by the end of their name: [q_proj,v_proj]; empty: all of the body's."""
    save_adapter: bool = False
    """Also keep the adapter by itself, in peft's form, as the export's folder `adapter`."""


@dataclass(kw_only=True)
class LearnerConfig:
    """One DeepSpeed learner group: the policy, the critic, or a reward model in training."""

    model: str = ""
    """Hugging Face folder, finished run, or owner/name[@revision] on the hub. Empty critic: start from the reward
    model."""
    precision: Precision = Precision.bfloat16
    """Weights and activations; the optimizer's copy is always float32."""
    zero_stage: int = 2
    """DeepSpeed ZeRO stage 0-3."""
    zero_node_ranks: int = 0
    """ZeRO-3 over several nodes: ranks of one node, which also keep the weights in parts among themselves, so that a
    backward pass gathers within the node (ZeRO++'s hpZ); divides num_ranks; 0: off."""
    offload_optimizer: Offload = Offload.none
    """Optimizer state on the GPU's host (GPU learners only)."""
    num_ranks: int = 1
    """Ranks: of sequence_parallel_size together, each such group sees other data."""
    sequence_parallel_size: int = 1
    """Ranks that share each micro-batch's tokens, for contexts whose activations one card cannot hold."""
    micro_batch_tokens: int = 4096
    """Most tokens in one forward and backward pass, a shared prompt counted once; a longer sequence goes alone."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Adapters."""
    cpus_per_rank: float = 1.0
    """Ray CPUs one rank asks for."""
    gpus_per_rank: float = 0.0
    """Ray GPUs one rank asks for."""
    threads_per_rank: int = 0
    """Torch threads of a rank on CPU; 0: cores of the node divided by ranks on it."""

    @property
    def num_shards(self) -> int:
        """Parts that an update's data is cut into."""
        return max(1, self.num_ranks // max(1, self.sequence_parallel_size))


@dataclass(kw_only=True)
class ReferenceConfig:
    """The frozen reference (absent when no KL term needs it)."""

    model: str = ""
    """Hugging Face folder, finished run or hub name; empty: the policy's start. Online with policy.lora and equal
    precision the policy without its adapters answers for it, and no process is started."""
    sharded: bool = False
    """Its ranks hold parts of one model (ZeRO-3) instead of a whole one each: for models larger than a card."""
    cache: str = ""
    """Offline: folder that keeps the reference's log-probs of a data set; empty: run_root/.reference."""
    precision: Precision = Precision.bfloat16
    """Weights and activations."""
    num_ranks: int = 1
    """Data-parallel ranks."""
    micro_batch_tokens: int = 8192
    """Most tokens in one forward pass, a shared prompt counted once."""
    cpus_per_rank: float = 0.5
    """Ray CPUs one rank asks for."""
    gpus_per_rank: float = 0.0
    """Ray GPUs one rank asks for."""
    threads_per_rank: int = 0
    """Threads of a rank on CPU; 0: cores of the node divided by ranks on it."""


@dataclass(kw_only=True)
class RuleRewardConfig:
    """A checkable reward by name (reward/rules.py) and its weight in the sum."""

    rule: str
    """Its name."""
    weight: float = 1.0
    """Factor in the sum; 0: measured only."""


@dataclass(kw_only=True)
class RewardFunctionConfig:
    """A reward function of one's own (docs/own-reward.md) and its weight in the sum."""

    path: str
    """FILE.py:NAME, or module:NAME of an installed module."""
    weight: float = 1.0
    """Factor in the sum; 0: measured only."""
    name: str = ""
    """Its component's name in metrics; empty: the function's."""
    style: RewardStyle = RewardStyle.auto
    """Whose signature it has; auto: by its parameters."""
    timeout_s: float = 60.0
    """Seconds one call may take; later answers are failures."""
    start_timeout_s: float = 120.0
    """Seconds its file may take to import."""


@dataclass(kw_only=True)
class RemoteRewardConfig:
    """A reward server (docs/remote-rewards.md) and its weight in the sum."""

    url: str
    """The whole address, as http://127.0.0.1:8001/get_reward; nothing is appended."""
    protocol: RemoteProtocol = RemoteProtocol.openrlhf
    """What it is asked."""
    weight: float = 1.0
    """Factor in the sum; 0: measured only."""
    name: str = "remote"
    """Its component's name in metrics."""
    token_env: str = ""
    """Name of the environment variable with its token, sent as `Authorization: Bearer`; never the token itself."""
    allow_http_token: bool = False
    """Send the token over http, where others on the way can read it, also to another machine."""
    batch_size: int = 16
    """Most answers in one request."""
    max_concurrent: int = 8
    """Most requests at a time, of one replica."""
    request_timeout_s: float = 60.0
    """Seconds one request may take before it is tried again."""
    timeout_s: float = 120.0
    """Seconds a batch may take, every try included; later answers are failures."""


@dataclass(kw_only=True)
class JudgeRewardConfig:
    """A language model as the judge (docs/remote-rewards.md) and its weight in the sum."""

    url: str
    """Of an endpoint of OpenAI's form, as http://127.0.0.1:8000/v1; /chat/completions is appended."""
    model: str
    """The model's name at the endpoint."""
    rubric: str
    """File with the judge's prompt, with {{prompt}}, {{answer}} and {{ground_truth}} in it."""
    weight: float = 1.0
    """Factor in the sum; 0: measured only."""
    name: str = "judge"
    """Its component's name in metrics."""
    low: float = 0.0
    """The scale's lowest score; a lower one is unreadable."""
    high: float = 10.0
    """The scale's highest score; a higher one is unreadable."""
    max_new_tokens: int = 512
    """Longest reply, tokens."""
    request: dict[str, Any] = field(default_factory=dict)
    """More of the request's body, as {max_completion_tokens: 512, temperature: null}; null takes a field out."""
    token_env: str = ""
    """Name of the environment variable with its token, sent as `Authorization: Bearer`; never the token itself."""
    allow_http_token: bool = False
    """Send the token over http, where others on the way can read it, also to another machine."""
    max_concurrent: int = 8
    """Most requests at a time, of one replica."""
    request_timeout_s: float = 60.0
    """Seconds one request may take before it is tried again."""
    timeout_s: float = 120.0
    """Seconds a batch may take, every try included; later answers are failures."""


@dataclass(kw_only=True)
class CodeRewardConfig:
    """An answer's code, run with its row's tests in a sandbox (docs/sandbox.md), and its weight in the sum."""

    weight: float = 1.0
    """Factor in the sum; 0: measured only."""
    name: str = "code"
    """Its component's name in metrics."""
    tests: str = "tests"
    """Column of data.train with a row's tests: asserts, or pairs of input and output."""
    partial_credit: bool = False
    """Score the share of tests that pass; false: 1 when all pass, else 0."""
    workers: int = 2
    """Answers that run at a time, of one replica."""
    cpu_s: int = 2
    """Processor seconds of one process of an answer's."""
    timeout_s: float = 10.0
    """Seconds by the clock that all tests of an answer may take."""
    memory_mb: int = 512
    """MiB of address space of one process."""
    processes: int = 4
    """Most processes and threads of an answer, the first included."""
    disk_mb: int = 16
    """MiB of files that an answer may write; they are held in memory."""
    output_kb: int = 256
    """KiB that a run may write to standard output."""
    open_files: int = 64
    """Most open files of one process."""


@dataclass(kw_only=True)
class RewardConfig:
    """What scores a response: a reward model, rules, functions, servers, judges and code that is run, by weight."""

    model: str = ""
    """Folder of a scalar-head model, or of the run that trained one; empty: rules only."""
    model_weight: float = 1.0
    """Weight of the reward model's score."""
    uncertainty_penalty: float = 0.0
    """Standard deviations of the reward model's ensemble that are taken off its mean; needs `raylign ensemble`."""
    retokenize: bool = False
    """Give the reward model prompt and answer as text, in its own template and tokens: for one of another family."""
    rules: list[RuleRewardConfig] = field(default_factory=list)
    """Checkable rewards."""
    functions: list[RewardFunctionConfig] = field(default_factory=list)
    """Reward functions of one's own, as [{path: my.py:score, weight: 1}]."""
    remote: list[RemoteRewardConfig] = field(default_factory=list)
    """Reward servers, as [{url: http://127.0.0.1:8001/get_reward, weight: 1}]."""
    judges: list[JudgeRewardConfig] = field(default_factory=list)
    """Language models as judges, as [{url: http://127.0.0.1:8000/v1, model: NAME, rubric: rubric.md}]."""
    code: list[CodeRewardConfig] = field(default_factory=list)
    """An answer's code, run in a sandbox with the row's tests, as [{weight: 1}]."""
    num_replicas: int = 1
    """Reward-model servers."""
    ranks_per_replica: int = 1
    """Processes of a replica, on one node and with a card each, that hold its model in parts (ZeRO-3): for a reward
    model larger than a card."""
    precision: Precision = Precision.bfloat16
    """Of the reward model."""
    micro_batch_tokens: int = 8192
    """Most tokens in one forward pass, a shared prompt counted once."""
    normalize: bool = False
    """Subtract the running mean and divide by the running standard deviation (saved in the checkpoint)."""
    clip: float = 10.0
    """Clip of the final score to +-clip; 0 turns it off."""
    truncation_penalty: float = 0.0
    """Subtracted from a response cut by length."""
    overlong_window: int = 0
    """Tokens before rollout.max_new_tokens over which overlong_penalty grows from 0 (DAPO); 0 turns it off."""
    overlong_penalty: float = 1.0
    """Subtracted from a response of rollout.max_new_tokens tokens, when overlong_window is set."""
    max_failed_fraction: float = 0.2
    """More failed rewards than this in a step end the run."""
    timeout_s: float = 300.0
    """Seconds a scoring call may take."""
    cpus_per_replica: float = 0.5
    """Ray CPUs one replica asks for."""
    gpus_per_replica: float = 0.0
    """Ray GPUs one replica asks for: a card or a share of one, or as many as ranks_per_replica."""
    threads_per_replica: int = 0
    """Threads of a replica on CPU; 0: cores of the node divided by replicas on it."""


@dataclass(kw_only=True)
class AutoscaleConfig:
    """A number of rollout workers that follows the load (docs/reliability.md)."""

    max_workers: int = 0
    """Most workers; 0: their number changes only by `raylign scale`."""
    min_workers: int = 1
    """Fewest workers."""
    wait_share: float = 0.2
    """Share of a step's time that the learner may wait for rollouts; without max_staleness it waits for all of it."""
    steps: int = 5
    """Steps that are measured before each change."""


@dataclass(kw_only=True)
class RolloutConfig:
    """vLLM rollout workers and how responses are drawn."""

    num_workers: int = 1
    """vLLM engines at the start."""
    autoscale: AutoscaleConfig = field(default_factory=AutoscaleConfig)
    """More or fewer engines as the load wants it."""
    tensor_parallel_size: int = 1
    """GPUs (or CPU processes) one engine's layers are split over."""
    precision: Precision = Precision.bfloat16
    """Weights and activations of the engine."""
    max_model_len: int = 2048
    """Prompt and response together, tokens."""
    max_new_tokens: int = 512
    """Longest response, tokens."""
    temperature: float = 1.0
    """Of training rollouts; the trainer's log-probs use the same."""
    stop: list[str] = field(default_factory=list)
    """Texts that end an answer, held-out ones too; trained and scored with the answer: ["</answer>"]."""
    stop_token_ids: list[int] = field(default_factory=list)
    """Token ids that end an answer beside the model's own end tokens; trained like those."""
    prompts_per_step: int = 64
    """Different prompts in one step."""
    samples_per_prompt: int = 4
    """Responses drawn for each prompt."""
    max_staleness: int = 0
    """Steps that generation may be ahead of training; 0: every sample comes from the newest weights."""
    in_flight: InFlight = InFlight.resume
    """What happens, when generation is ahead, to responses that are not finished when new weights are published."""
    scoring_chunks: int = 4
    """Parts a step's prompts are scored in (reward, reference), each as soon as its last response is there."""
    max_refills: int = 0
    """Draws in one step that replace prompts whose responses all have the same reward (DAPO); 0: they stay."""
    gpu_memory_utilization: float = 0.8
    """Share of a GPU's memory the engine takes."""
    kv_cache_gb: float = 1.0
    """KV cache of one worker on CPU, or with a share of a GPU; a whole GPU's is what gpu_memory_utilization leaves."""
    enforce_eager: bool = False
    """No CUDA graphs: slower, less memory, quicker start. On CPU there are none to begin with."""
    max_batched_tokens: int = 0
    """Tokens of one engine step; 0: 8192 on a GPU, on CPU 4096 or max_model_len when that is more."""
    max_concurrent: int = 256
    """Requests in flight in one engine."""
    timeout_s: float = 900.0
    """Deadline of one step's generation, retries on other workers included; times 1 + max_staleness."""
    health_timeout_s: float = 60.0
    """An engine that answers no health check for so many seconds is dead: its prompts go to others."""
    cpus_per_worker: float = 0.5
    """Ray CPUs one worker asks for."""
    gpus_per_worker: float = 0.0
    """Ray GPUs one worker asks for; 0: on CUDA one for each of tensor_parallel_size, or none on CPU."""
    threads_per_worker: int = 0
    """Threads of a worker on CPU; 0: cores of the node divided by workers on it."""


@dataclass(kw_only=True)
class EnvironmentConfig:
    """What the policy acts in during rollouts, turn after turn. The page on environments has examples."""

    name: str = ""
    """calculator, search or shop, a class of your own as FILE.py:CLASS, or a server as openenv:URL or nemo_gym:URL;
    environment=NAME says the same. Empty: an answer is one turn and nobody replies."""
    arguments: dict[str, str] = field(default_factory=dict)
    """What the class is made with, as {documents: notes/} for search."""
    max_turns: int = 8
    """Turns of the policy in one episode; one that is not over then is cut. Its tokens, the environment's included, are
    at most rollout.max_new_tokens."""
    max_turn_tokens: int = 0
    """Tokens of one turn; 0: what is left of the episode's."""
    tool_parser: str = "tagged"
    """How calls are read: tagged, or one of vLLM's parsers such as hermes, as it is then served. tagged is
    <tool_call>{"name": ..., "arguments": {...}}</tool_call>."""
    reward_weight: float = 1.0
    """Of the environment's reward in the sum of rewards."""
    timeout_s: float = 30.0
    """Deadline of one call of the environment; one that misses it fails its episode."""
    start_timeout_s: float = 120.0
    """Deadline of importing a class of your own."""
    processes: int = 1
    """Processes of a class of your own beside each engine; episodes are dealt out to them."""
    cpus_per_process: float = 0.0
    """Ray CPUs that each counts for, beside rollout.cpus_per_worker."""
    memory_gb: float = 0.0
    """Resident memory at which one is ended and started again; 0: no limit. Processes that it starts do not count."""
    max_restarts: int = 8
    """How often one is started again with no episode played to its end between; its next episodes fail by name."""
    token_env: str = ""
    """Name of the environment variable with a server's token, sent as `Authorization: Bearer`; never the token."""
    allow_http_token: bool = False
    """Send the token over http, where others on the way can read it, also to another machine."""


@dataclass(kw_only=True)
class SyncConfig:
    """The weight transaction."""

    transport: SyncTransport = SyncTransport.object_store
    """How whole weights reach the engines. object_store: Ray's, whatever the placement; broadcast: the policy's first
    rank sends once, to all engines together, by NCCL on GPUs and by gloo on CPU. Adapters alone always go through the
    store. broadcast has run on CPU only."""
    bucket_mb: int = 64
    """Megabytes sent at once; an engine loads one bucket while the next is written to its memory."""
    timeout_s: float = 300.0
    """Deadline of each phase."""
    max_canary_gap: float = 0.0
    """Nats, mean over the canary tokens; an engine that differs by more does not serve. 0: measured at the first
    publication, between weights that were found equal, and three times that from then on (at least 0.02; 0.001 where
    policy and rollouts are in float32)."""
    adapters: AdapterSync = AdapterSync.auto
    """separate: engines that serve a version are sent a policy's adapters alone, and merge them into the weights of
    their model folder; merged: all weights every time. auto: separate on GPUs, merged on CPU and on shared cards."""
    canary_prompts: int = 2
    """Fixed prompts whose log-probs engine and trainer compare after every publication."""
    verify_columns: int = 32
    """Columns read back from each packed layer of a CPU engine, chosen anew every version; 0: all of them. An engine's
    first version, and the one after a refused one, is read whole; so is everything that is not packed, as on a GPU."""


@dataclass(kw_only=True)
class CurriculumConfig:
    """Online: which prompts are drawn more often (docs/curriculum.md)."""

    min_weight: float = 1.0
    """Weight of a prompt whose last answers were all solved, or none; half of them solved: 1. At 1 all are alike."""
    solved_score: float = 1.0
    """An answer counts as solved when its reward, before reward.normalize and the like, is at least this."""
    max_draws: int = 0
    """Most draws of one prompt in the whole run; 0: no limit."""


@dataclass(kw_only=True)
class DataConfig:
    """Training rows."""

    train: str = ""
    """JSONL, CSV or parquet file, folder, or Hugging Face dataset name."""
    eval: Any = ""
    """Held-out rows in the same form; several as [a.jsonl,b.jsonl] or {name: a.jsonl}; empty: none."""
    columns: dict[str, str] = field(default_factory=dict)
    """Columns of your own by the standard ones, as {prompt: question, ground_truth: meta.answer}; of every data set."""
    mix: dict[str, float] = field(default_factory=dict)
    """Online: shares of the draws by the rows' data_source, as {math: 3, chat: 1}; {}: every row alike."""
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    """Online: prompts weighted by what they taught lately."""
    max_prompt_tokens: int = 1024
    """Online and held-out prompts, tokens of the rendered template."""
    max_length: int = 2048
    """Offline rows: prompt and response together, tokens."""
    overlong: Overlong = Overlong.drop
    """What happens to longer rows; truncate_left cuts the prompt's beginning."""
    max_overlong_fraction: float = 0.5
    """A larger share of overlong rows refuses the run, whatever is done with them."""
    max_bad_fraction: float = 0.01
    """More quarantined rows than this refuse the run."""
    shuffle: bool = True
    """A new seeded order each epoch; false: the file's."""
    system_prompt: str = ""
    """Put before prompts that have no system message; empty: the template's own behaviour."""
    chat_template: str = ""
    """A file of Jinja, a model folder, or chatml, hermes, llama3, zephyr, vicuna, alpaca; empty: the model's own."""


@dataclass(kw_only=True)
class ClusterConfig:
    """Where roles run."""

    address: str = "local"
    """local: start Ray here (a submitted job joins its own cluster); auto: join what runs here; or host:port."""
    device: Device = Device.cpu
    """Where every role computes."""
    placement: PlacementStrategy = PlacementStrategy.shared
    """How roles share machines."""
    learner_labels: dict[str, str] = field(default_factory=dict)
    """Labels of the nodes that learners may use (`ray start --labels`), as {market: on-demand}; {}: any node."""
    serving_labels: dict[str, str] = field(default_factory=dict)
    """Labels of the nodes for rollout workers and reward replicas, which may be lost at any time: {market: spot}."""
    start_timeout_s: float = 300.0
    """Deadline for every role to be ready."""
    step_timeout_s: float = 3600.0
    """Deadline of one call to a learner."""
    max_rebuilds: int = 3
    """Times that dead or hung learners are started again from the last checkpoint without a new step between."""
    max_worker_restarts: int = 5
    """Times within an hour that another rollout worker, or reward replica, takes the place of a dead one."""
    stall_s: float = 600.0
    """Without a finished step for so many seconds, where every role on this machine is goes to RUN/stacks/."""
    num_cpus: int = 0
    """Ray CPUs when Ray is started here; 0: the cores, or what the roles ask for when more (they take turns)."""
    object_store_gb: float = 0.0
    """Ray object store when Ray is started here; 0: 2, or 1.2 times the published model and 1 more."""
    env: dict[str, str] = field(default_factory=dict)
    """Environment variables of every learner, engine and reward model, as {NCCL_SOCKET_IFNAME: eth0}; no secrets."""


@dataclass(kw_only=True)
class TrackingConfig:
    """Where numbers go besides metrics.jsonl."""

    sinks: list[Sink] = field(default_factory=lambda: [Sink.wandb])
    """Programs that show the numbers: wandb, tensorboard and trackio (both are to be installed); [] for none."""
    wandb: WandbMode = WandbMode.auto
    """Weights & Biases; auto: WANDB_MODE, else online with a key (WANDB_API_KEY or `wandb login`), else offline."""
    project: str = "raylign"
    """Project in W&B and trackio."""
    entity: str = ""
    """W&B team or user that owns the project; empty: WANDB_ENTITY, else the account's default."""
    group: str = "auto"
    """W&B group; auto: that of the run whose model this one starts from, else the run's own name."""
    job_type: str = "auto"
    """W&B job type; auto: the algorithm."""
    tags: list[str] = field(default_factory=list)
    """W&B tags."""
    system_metrics: bool = True
    """CPU, memory and GPU use of the controller's machine, measured by W&B."""
    artifacts: bool = False
    """Data and exports as reference artifacts in W&B: their paths and digests, for its lineage page; no content."""
    samples_every: int = 1
    """Steps between samples/*.parquet."""
    wandb_samples: int = 0
    """Answers a step shown in the W&B samples table; 0: prompts and answers stay on this machine."""


@dataclass(kw_only=True)
class CheckpointConfig:
    """When state is saved."""

    every: int = 0
    """Steps between checkpoints; 0: only at the end."""
    keep: int = 2
    """Newest checkpoints kept."""
    max_failed_saves: int = 2
    """Saves in a row that may fail (a full disk) before the run stops; the previous checkpoint stays in use."""
    journal: JournalKeep = JournalKeep.needed
    """Online: batches are on disk before they are trained; needed: until no checkpoint goes back before them; all."""
    resume: str = "auto"
    """auto: from LATEST of the run folder when there is one; none: refuse a used folder; or a checkpoint's path."""


@dataclass(kw_only=True)
class HeldOutMetricConfig:
    """A metric of one's own over all held-out answers together (docs/own-metric.md)."""

    path: str
    """FILE.py:NAME, or module:NAME of an installed module."""
    name: str = ""
    """Its name in metrics; empty: the function's."""
    timeout_s: float = 60.0
    """Seconds one evaluation's call may take; then there is no value."""
    start_timeout_s: float = 120.0
    """Seconds its file may take to import."""


@dataclass(kw_only=True)
class EvalConfig:
    """Online: held-out prompts answered by the present policy. Offline: held-out loss and figures by set."""

    every: int = 0
    """Steps between evaluations; 0: first and last only."""
    best: str = ""
    """Offline: the metric that tells the best step, as eval/held_out/loss; its checkpoint and export are kept."""
    best_is: Better = Better.lower
    """Which way that metric improves."""
    prompts: int = 64
    """Held-out prompts answered, from the head of data.eval."""
    temperature: float = 0.0
    """0: greedy."""
    max_new_tokens: int = 512
    """Longest answer, tokens."""
    seed: int = 1234
    """Of the held-out answers, the same at every evaluation."""
    gold: str = ""
    """The reward component that is the true score (a rule, usually of weight 0): shown beside the learned reward."""
    samples: int = 0
    """Online: answers drawn for each held-out prompt at rollout.temperature, for pass@1, 2, 4, ... of them; 0: none."""
    pass_score: float = 1.0
    """An answer counts as right for pass@k when its evaluation.gold component, or else its reward, is at least this."""
    metrics: list[HeldOutMetricConfig] = field(default_factory=list)
    """Online: metrics of one's own over the held-out answers, as [{path: my.py:distinct_words}]."""
    suites: list[str] = field(default_factory=list)
    """Suites of `raylign eval` that must not get worse, by name or yaml file, as [arithmetic,mine.yaml]: answered by
    the start model before the run and by its export after it."""
    suite_results: str = ""
    """Folder of the answers to suites; empty: eval-results beside run_root, which `raylign eval` uses, too."""
    fluency: bool = False
    """Also measure the answers' mean token log-prob under the reference; keeps a reference even when KL is off."""


GUARD_WINDOW = 5
"""Steps whose mean a rule of the guard looks at."""


@dataclass(kw_only=True)
class GuardConfig:
    """Signs in a run's own numbers that its policy goes wrong, and what to do about each."""

    kl: GuardAction = GuardAction.warn
    """KL to the reference runs away: five times what it was and above its usual range, or above kl_limit."""
    kl_limit: float = 0.0
    """Nats a sequence that three steps in a row may not be above; 0: only the sudden rise counts."""
    entropy: GuardAction = GuardAction.warn
    """The policy's entropy collapses or explodes."""
    entropy_low: float = 0.1
    """Share of the entropy of the first steps below which it has collapsed."""
    entropy_high: float = 3.0
    """Times the entropy of the first steps above which it has exploded."""
    length: GuardAction = GuardAction.off
    """Answers become longer or shorter by length_factor, whatever the reward does: right for reasoning, so off."""
    length_factor: float = 2.0
    """How many times the length of the first steps."""
    repetition: GuardAction = GuardAction.warn
    """Answers go round in circles: rollout/repetition is above repetition_limit and twice what it was."""
    repetition_limit: float = 0.5
    """Share of runs of four tokens that their answer has had before."""
    gamed: GuardAction = GuardAction.warn
    """The reward rises while evaluation.gold's part of it falls, or while answers double or halve in length."""
    reward: GuardAction = GuardAction.warn
    """The reward collapses: three quarters of the gain are lost, or it is below where it began."""


@dataclass(kw_only=True)
class ProfileConfig:
    """Where the time of an update goes."""

    steps: list[int] = field(default_factory=list)
    """Steps whose updates each learner's rank 0 records, as [3,4], counted from 1 since it started: RUN/profile/."""


@dataclass(kw_only=True)
class RunConfig:
    """A whole run."""

    name: str = "auto"
    """Folder under run_root; [A-Za-z0-9._-]{1,64}; auto: algorithm and time."""
    run_root: str = "runs"
    """Folder that holds the runs."""
    seed: int = 0
    """Everything random follows from it."""
    num_steps: int = 100
    """Online: rollout-and-update rounds. Offline: optimizer steps; 0: num_epochs decides."""
    num_epochs: int = 1
    """Offline: passes over the data."""
    callbacks: list[str] = field(default_factory=list)
    """Functions of one's own called after every step, as [my.py:after_step]; see the page on the Python interface."""
    callback_timeout_s: float = 60.0
    """Deadline of one call of a callback, and of importing its file; past it the run ends."""
    algorithm: AlgorithmConfig
    policy: LearnerConfig = field(default_factory=LearnerConfig)
    critic: LearnerConfig = field(default_factory=LearnerConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    sync: SyncConfig = field(default_factory=SyncConfig)
    data: DataConfig = field(default_factory=DataConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
