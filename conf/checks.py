"""What cannot work, reported before anything starts. Pure functions over the configuration; each yields all it sees."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from raylign.conf.cards import check_cards
from raylign.conf.data_order import check_data_order
from raylign.conf.environment import check_environment, refuse_environment
from raylign.conf.guard import check_guard
from raylign.conf.held_out import DEFAULT_NAME, held_out_sets
from raylign.conf.model_folder import is_hub_name, model_folder
from raylign.conf.nearest import nearest
from raylign.conf.precision import check_precision
from raylign.conf.problems import Problem, about_its_settings
from raylign.conf.ranges import check_numbers, leaves
from raylign.conf.schema import (
    Device,
    LearnerConfig,
    LoraConfig,
    Offload,
    RunConfig,
)
from raylign.conf.stops import check_stops
from raylign.conf.time_sharing import check_time_sharing
from raylign.conf.transport import check_transport

STANDARD_COLUMNS = (
    "prompt", "messages", "completion", "chosen", "rejected", "label", "text", "id", "ground_truth", "data_source",
    "margin", "weight", "tools", "documents", "chat_template_kwargs", "completion_finished", "chosen_finished",
    "rejected_finished", "teacher_prompt",
)  # fmt: skip
"""What data/rows.py reads of a row."""
RUN_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True)
class Needs:
    """The parts of the cluster the algorithm asks for; settings of the others are not checked."""

    rollout: bool
    critic: bool
    reference: bool  # in processes of its own
    reward: bool
    shared_reference: bool = False  # the policy without its adapters answers for it (conf/derive.py)


def check(config: RunConfig, needs: Needs) -> list[Problem]:
    """Every problem of the configuration by itself; the machines and the data are looked at elsewhere."""
    known = [key for key, _ in leaves(config)]
    problems = [about_its_settings(f"{sentence.rstrip('.')}.", known) for sentence in config.algorithm.check()]
    problems += check_numbers(config)
    problems += _run(config)
    problems += check_guard(config, rollout=needs.rollout, reference=needs.reference or needs.shared_reference)
    problems += _data(config, needs)
    problems += _learner("policy", config.policy, config)
    if needs.critic:
        problems += _learner("critic", config.critic, config)
    problems += check_cards(
        config, rollout=needs.rollout, critic=needs.critic, reference=needs.reference, reward=needs.reward
    )
    problems += check_precision(config, critic=needs.critic, reference=needs.reference, reward=needs.reward)
    problems += check_time_sharing(config, rollout=needs.rollout, critic=needs.critic)
    problems += check_transport(config, rollout=needs.rollout)
    problems += _models(config, needs)
    problems += _rollout(config, needs) if needs.rollout else refuse_environment(config)
    return problems


def _run(config: RunConfig) -> Iterator[Problem]:
    if not RUN_NAME.fullmatch(config.name) or config.name in (".", ".."):
        yield Problem(
            ("name",), f"name={config.name!r}: a run's name is 1-64 of A-Z a-z 0-9 . _ - (it names a folder)."
        )
    if config.num_steps == 0 and config.num_epochs == 0:
        yield Problem(("num_steps", "num_epochs"), "num_steps=0 and num_epochs=0: nothing would be trained; set one.")
    if any(step < 1 for step in config.profile.steps):
        yield Problem(("profile.steps",), f"profile.steps={config.profile.steps}: steps are counted from 1.")


def _data(config: RunConfig, needs: Needs) -> Iterator[Problem]:
    if not config.data.train:
        yield Problem(
            ("data.train",), "data.train is empty; give a JSONL, CSV or parquet file, a folder or a dataset name."
        )
    elif _is_path(config.data.train) and not Path(config.data.train).expanduser().exists():
        yield Problem(
            ("data.train",), f"data.train={config.data.train}: there is no such file or folder.", config.data.train
        )
    yield from (*_columns(config), *check_data_order(config, rollout=needs.rollout))
    yield from _held_out(config, needs)
    if needs.rollout and config.num_steps == 0:
        yield Problem(("num_steps",), "num_steps=0: an online run counts its steps; give a number of at least 1.")


def _columns(config: RunConfig) -> Iterator[Problem]:
    for name, own in config.data.columns.items():
        if name not in STANDARD_COLUMNS:
            swapped = own in STANDARD_COLUMNS
            guess = own if swapped else nearest(name, STANDARD_COLUMNS)
            hint = f"; did you mean {{{guess}: {name if swapped else own}}}?" if guess else ""
            yield Problem(
                ("data.columns",),
                f"data.columns={{{name}: {own}}}: {name} is not a column that is read from rows; known: "
                f"{', '.join(STANDARD_COLUMNS)}{hint}.".replace("?.", "?"),
            )
        elif not own:
            yield Problem(
                ("data.columns",), f"data.columns={{{name}: ''}}: give the column of your own it is read from."
            )


def _held_out(config: RunConfig, needs: Needs) -> Iterator[Problem]:
    """The held-out sets, and the metric of theirs that tells the best step."""
    try:
        sets = held_out_sets(config.data.eval)
    except ValueError as error:
        yield Problem(("data.eval",), f"data.eval={config.data.eval}: {error}.")
        return
    for name, source in sets.items():
        if _is_path(source) and not Path(source).expanduser().exists():
            key = "data.eval" if name == DEFAULT_NAME else f"data.eval, set {name}"
            yield Problem(("data.eval",), f"{key}={source}: there is no such file or folder.", source)
    if needs.rollout and len(sets) > 1:
        yield Problem(
            ("data.eval",),
            f"data.eval names {len(sets)} sets ({', '.join(sets)}), and an online run answers one; give one.",
        )
    if config.evaluation.samples and not (needs.rollout and sets):
        why = (
            "data.eval is empty, so there is nothing to answer" if needs.rollout else "offline runs generate no answers"
        )
        yield Problem(
            ("evaluation.samples",),
            f"evaluation.samples={config.evaluation.samples}: {why}; leave it out.",
            relies_on=("data.eval",),
        )
    best = config.evaluation.best
    if best and needs.rollout:
        yield Problem(("evaluation.best",), f"evaluation.best={best}: only offline runs keep a best step.")
    elif best and not any(best.startswith(f"eval/{name}/") for name in sets):
        known = ", ".join(f"eval/{name}/loss" for name in sets) or "none, for data.eval is empty"
        yield Problem(
            ("evaluation.best", "data.eval"),
            f"evaluation.best={best}: name a metric of a held-out set, eval/<set>/<metric> ({known}).",
        )


def _learner(role: str, learner: LearnerConfig, config: RunConfig) -> Iterator[Problem]:
    on_gpu = config.cluster.device is Device.cuda
    if learner.offload_optimizer is Offload.cpu and not on_gpu:
        key = f"{role}.offload_optimizer"
        yield Problem(
            (key, "cluster.device"),
            f"{key}=cpu with cluster.device=cpu: there is no GPU memory to spare; set {key}=none.",
        )
    if learner.offload_optimizer is Offload.cpu and learner.zero_stage == 0:
        key = f"{role}.offload_optimizer"
        yield Problem((key, f"{role}.zero_stage"), f"{key}=cpu needs {role}.zero_stage of 1, 2 or 3; it is 0.")
    if learner.num_ranks % max(1, learner.sequence_parallel_size):
        key, ranks, size = f"{role}.sequence_parallel_size", learner.num_ranks, learner.sequence_parallel_size
        yield Problem(
            (key, f"{role}.num_ranks"),
            f"{key}={size} does not divide {role}.num_ranks={ranks}; set {role}.num_ranks={-(-ranks // size) * size}, "
            f"or {key}=1.",
        )
    yield from _node_ranks(role, learner)
    if len(learner.optim.betas) != 2 or not all(0 <= beta < 1 for beta in learner.optim.betas):
        key = f"{role}.optim.betas"
        yield Problem((key,), f"{key}={list(learner.optim.betas)}: give two numbers from 0 to below 1.")
    yield from _lora(role, learner.lora)


def _node_ranks(role: str, learner: LearnerConfig) -> Iterator[Problem]:
    key, size = f"{role}.zero_node_ranks", learner.zero_node_ranks
    if size and learner.zero_stage != 3:
        yield Problem(
            (key, f"{role}.zero_stage"),
            f"{key}={size} with {role}.zero_stage={learner.zero_stage}: weights are in parts in stage 3 alone; set "
            f"{key}=0, or {role}.zero_stage=3.",
        )
    elif size and learner.num_ranks % size:
        yield Problem(
            (key, f"{role}.num_ranks"),
            f"{key}={size} does not divide {role}.num_ranks={learner.num_ranks}; give the ranks that each node has, "
            f"or {key}=0.",
        )


def _lora(role: str, lora: LoraConfig) -> Iterator[Problem]:
    """Settings of adapters that nothing would use. Whether the layers exist is looked up where the model is."""
    key = f"{role}.lora"
    if lora.rank == 0:
        for name, default in leaves(LoraConfig()):
            if (value := getattr(lora, name)) != default:
                shown = str(value).lower() if isinstance(value, bool) else value
                yield Problem(
                    (f"{key}.{name}", f"{key}.rank"),
                    f"{key}.{name}={shown} with {key}.rank=0: there is no adapter; set {key}.rank=16, or leave it out.",
                )
    elif lora.save_adapter and role == "critic":
        yield Problem(
            (f"{key}.save_adapter",),
            f"{key}.save_adapter=true: a critic is not exported; only policy.lora has a use for it.",
        )


def _models(config: RunConfig, needs: Needs) -> Iterator[Problem]:
    named = {"policy.model": config.policy.model}
    if needs.critic:
        named["critic.model"] = config.critic.model
    if needs.reference:
        named["reference.model"] = config.reference.model
    if needs.reward:
        named["reward.model"] = config.reward.model
    for key, folder in named.items():
        sentence = _model_problem(folder) if folder else None
        if sentence:
            gone = "" if Path(folder).expanduser().is_dir() else folder
            yield Problem((key,), f"{key}={folder}: {sentence}", gone)
    if not config.policy.model:
        yield Problem(("policy.model",), "policy.model is empty; give the folder of the model to train.")
    if needs.critic and not config.critic.model and not config.reward.model:
        yield Problem(
            ("critic.model", "reward.model"),
            "critic.model is empty and there is no reward.model to start it from; set critic.model "
            "(the policy's folder will do).",
        )


def _model_problem(named: str) -> str | None:
    """What is wrong with a model's folder, by itself; None when nothing is."""
    if is_hub_name(named):
        return None  # looked for when the run starts, or is planned
    if not Path(named).expanduser().is_dir():
        return "there is no such folder; give a Hugging Face model folder, a finished run's, or owner/name on the hub."
    try:
        path = Path(model_folder(named).path)
    except ValueError as error:
        return f"{error}."
    if not (path / "config.json").is_file():
        empty = "" if any(path.iterdir()) else "is empty and "
        return f"the folder {empty}holds no config.json, so it is not a Hugging Face model (nor a run)."
    return None


_SCORES = ("reward.model", "reward.rules", "reward.functions", "reward.remote", "reward.judges", "reward.code")


def _rollout(config: RunConfig, needs: Needs) -> Iterator[Problem]:
    rollout, data = config.rollout, config.data
    reward = config.reward
    others = reward.functions or reward.remote or reward.judges or reward.code or config.environment.name
    needed = needs.reward and config.algorithm.needs_reward
    if needed and not reward.model and not reward.rules and not others:
        yield Problem(
            (*_SCORES, "reward.*"),
            f"{', '.join(_SCORES)} are all empty, so nothing scores the answers; set one, as in "
            "reward.rules=[{rule:...}] or reward.functions=[{path: my.py:score}].",
        )
    yield from check_stops(rollout)
    yield from check_environment(config)
    fewest = config.algorithm.min_samples_per_prompt
    if rollout.samples_per_prompt < fewest:
        yield Problem(
            ("rollout.samples_per_prompt", "algorithm.name"),
            f"rollout.samples_per_prompt={rollout.samples_per_prompt}: algorithm={config.algorithm.name} compares the "
            f"answers to one prompt with each other and needs at least {fewest}.",
        )
    yield from _ahead(config)
    yield from _fleet(config)
    if data.max_prompt_tokens + rollout.max_new_tokens > rollout.max_model_len:
        yield Problem(
            ("data.max_prompt_tokens", "rollout.max_new_tokens", "rollout.max_model_len"),
            f"rollout.max_model_len={rollout.max_model_len} cannot hold data.max_prompt_tokens="
            f"{data.max_prompt_tokens} and rollout.max_new_tokens={rollout.max_new_tokens}; set it to "
            f"{data.max_prompt_tokens + rollout.max_new_tokens} or lower one of the two.",
        )
    ranks = config.policy.num_shards
    sequences = rollout.prompts_per_step * rollout.samples_per_prompt
    per_update = config.algorithm.units_per_update
    if per_update < 1:
        return  # reported as out of its range
    if sequences % per_update != 0:
        yield Problem(
            ("rollout.prompts_per_step", "rollout.samples_per_prompt", "algorithm.sequences_per_update"),
            f"rollout.prompts_per_step={rollout.prompts_per_step} x rollout.samples_per_prompt="
            f"{rollout.samples_per_prompt} = {sequences} sequences a step are not a whole number of updates of "
            f"algorithm.sequences_per_update={per_update}; {_divisor_hint(sequences, per_update)}.",
        )
    for problem in config.algorithm.step_problems(sequences):
        yield about_its_settings(f"{problem}.", [key for key, _ in leaves(config)])._replace(
            relies_on=("rollout.prompts_per_step", "rollout.samples_per_prompt", "algorithm.sequences_per_update")
        )
    if per_update < ranks:
        yield Problem(
            ("algorithm.sequences_per_update", "policy.num_ranks"),
            f"algorithm.sequences_per_update={per_update} gives some of policy.num_ranks={ranks} nothing to do; "
            "raise the first or lower the second.",
        )


def _fleet(config: RunConfig) -> Iterator[Problem]:
    """Workers that come and go."""
    rollout, autoscale = config.rollout, config.rollout.autoscale
    low, high = autoscale.min_workers, autoscale.max_workers
    if high and not low <= rollout.num_workers <= high:
        yield Problem(
            ("rollout.num_workers", "rollout.autoscale.min_workers", "rollout.autoscale.max_workers"),
            f"rollout.num_workers={rollout.num_workers} is not between rollout.autoscale.min_workers={low} and "
            f"rollout.autoscale.max_workers={high}, where it has to stay.",
        )
    if rollout.health_timeout_s >= rollout.timeout_s:
        yield Problem(
            ("rollout.health_timeout_s", "rollout.timeout_s"),
            f"rollout.health_timeout_s={rollout.health_timeout_s:g} is not below rollout.timeout_s="
            f"{rollout.timeout_s:g}: an engine that hangs would end the step before another could do its work; set it "
            f"to {rollout.timeout_s / 3:g}.",
        )


def _ahead(config: RunConfig) -> Iterator[Problem]:
    """Generation ahead of training, and a step's size."""
    rollout = config.rollout
    if rollout.max_staleness and getattr(config.algorithm, "importance_cap", 1.0) == 0:
        yield Problem(
            ("rollout.max_staleness", "algorithm.importance_cap"),
            f"rollout.max_staleness={rollout.max_staleness} trains on samples of older weights, and "
            "algorithm.importance_cap=0 does not correct for it; set algorithm.importance_cap=2, or max_staleness=0.",
        )
    if rollout.max_refills and rollout.samples_per_prompt < 2:
        yield Problem(
            ("rollout.max_refills", "rollout.samples_per_prompt"),
            f"rollout.max_refills={rollout.max_refills} replaces prompts whose responses all have the same reward, "
            "and a single response is always such a prompt; set rollout.samples_per_prompt=2 or more, or "
            "rollout.max_refills=0.",
        )
    if config.reward.overlong_window > rollout.max_new_tokens:
        yield Problem(
            ("reward.overlong_window", "rollout.max_new_tokens"),
            f"reward.overlong_window={config.reward.overlong_window} is longer than rollout.max_new_tokens="
            f"{rollout.max_new_tokens}; it is the last part of that.",
        )


def _divisor_hint(sequences: int, per_update: int) -> str:
    fitting = [n for n in range(1, sequences + 1) if sequences % n == 0]
    closest = min(fitting, key=lambda n: abs(n - per_update), default=1)
    return f"set algorithm.sequences_per_update={closest}"


_FILES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv")


def _is_path(name: str) -> bool:
    """A dataset name is `owner/name` or a bare word; whatever looks like a file or folder is one."""
    return name.startswith(("/", "~", ".")) or name.endswith(_FILES) or name.count("/") > 1
