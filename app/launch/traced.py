"""A finished offline run opened again in this process: its rows, its model, and the trace index of its training."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from raylign.app.configuration import from_resolved
from raylign.app.launch.inputs import run_inputs
from raylign.app.launch.reference import RECORD, reference_spec
from raylign.app.launch.rows import TRAIN, read_offline
from raylign.conf.derive import offline_steps
from raylign.conf.errors import ModelLoadError, UserError
from raylign.conf.schema import Precision, RunConfig
from raylign.data.row_kinds import TrainRows, load_rows
from raylign.data.tokenize import load_tokenizer
from raylign.data.types import RankShard, TokenBatch
from raylign.evals.replay import ReplaySettings, RowEngine, outputs_of, replay, row_window, sketch_of, units_of
from raylign.evals.trace_index import FOLDER, TraceIndex, load_index, save_index
from raylign.records.manifest import digest, read_manifest
from raylign.records.metrics_log import read_history
from raylign.records.run_folder import RunPaths
from raylign.trainer.algorithms import algorithm_of
from raylign.trainer.algorithms.base import ModelKind, OfflineAlgorithm, Role
from raylign.trainer.engine.torch_engine import TorchEngine
from raylign.trainer.learner import Learner
from raylign.trainer.models.adapters import add_adapters, start_adapters
from raylign.trainer.models.loading import load_causal_lm, load_scalar_model
from raylign.trainer.models.scalar_head import last_states
from raylign.trainer.reference_cache import CacheKey, read_cache
from raylign.trainer.workers.offline_model import objective_of
from raylign.trainer.workers.sequence_scores import score_sequences
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

_TRAINED = "trained.safetensors"
_LOSS = "train/loss"


@dataclass(frozen=True, slots=True)
class TracedRun:
    """What a trace needs of a run."""

    paths: RunPaths
    config: RunConfig
    algorithm: OfflineAlgorithm
    rows: TrainRows  # with the reference's log-probs where the loss needs them
    held_out: Mapping[str, TrainRows]
    tokenizer: PreTrainedTokenizerBase
    losses: Mapping[int, float]  # the run's own, by step
    settings: ReplaySettings
    key: str
    total_steps: int

    @property
    def scalar(self) -> bool:
        """Whether the model gives scores."""
        return self.algorithm.needs.model is ModelKind.SCALAR

    @property
    def index_folder(self) -> Path:
        """Where the index lies."""
        return self.paths.path / FOLDER

    def start_model(self) -> nn.Module:
        """The model as training began, float32, adapters in place."""
        model = self._load(self.config.policy.model)
        if self.config.policy.lora.rank:
            add_adapters(model.hf, self.config.policy.lora)
            start_adapters(model.hf, self.config.seed)
        return model

    def end_model(self) -> nn.Module:
        """The model of the run's newest export."""
        return self._load(self.end_folder())

    def end_folder(self) -> str:
        """The run's newest export. Raises UserError when there is none."""
        exports = [path for path in self.paths.export.glob("step-*") if (path / "config.json").is_file()]
        if not exports:
            raise UserError(f"{self.paths.path} has no export: a run writes one at its end; resume it first.")
        return str(max(exports, key=lambda path: int(path.name.removeprefix("step-"))))

    def trained_model(self) -> nn.Module:
        """The newest weights under the names that training gave them: with adapters, base and adapters apart."""
        if not self.config.policy.lora.rank:
            return self.end_model()
        model = self.start_model()
        model.load_state_dict(load_file(self.index_folder / _TRAINED), strict=False)
        return model

    def values(self, model: nn.Module, rows: TrainRows, which: Sequence[int]) -> list[Tensor]:
        """The units of some rows under a model: answer tokens' log-probs, or scores. `[U]` each, as in the index."""
        batch = rows.batch(which)
        seen = outputs_of(Learner(TorchEngine(model, self.config.policy.optim, total_steps=0)), batch, self.settings)
        return [seen[i][units_of(batch.select([i]), scalar=self.scalar)[0]] for i in range(len(which))]

    def _load(self, folder: str) -> Any:
        if self.scalar:
            return load_scalar_model(folder, precision=Precision.float32, new_head_seed=self.config.seed)
        return load_causal_lm(folder, precision=Precision.float32)


def open_traced(folder: Path, tell: Callable[[str], None]) -> TracedRun:
    """The run at `folder`. Raises UserError for an online run, one that trained no step, and changed data or models."""
    paths = RunPaths(folder)
    if not paths.resolved.is_file() or not paths.manifest.is_file():
        raise UserError(f"{folder} is not the folder of a run: it has no resolved.yaml and manifest.json.")
    config = from_resolved(paths.resolved.read_text(encoding="utf-8")).config
    algorithm = algorithm_of(config.algorithm)
    if Role.ROLLOUT in algorithm.roles:
        raise UserError(
            f"{folder} is a run of {config.algorithm.name}, trained on answers of its own, and its reward model is "
            "no run of raylign: there is no feedback behind it to trace."
        )
    offline = cast("OfflineAlgorithm", algorithm)
    manifest = read_manifest(paths.manifest)
    inputs = run_inputs(config)
    _refuse_changed(folder, manifest.starts[0].inputs, inputs)
    losses = {step: value for step, value in read_history(paths.metrics).series(_LOSS) if value is not None}
    if not losses:
        raise UserError(f"{folder} has trained no step yet, so there is nothing to trace.")
    read = read_offline(config, offline.needs, manifest.today)
    rows = read.sets[TRAIN]
    if Role.REFERENCE in algorithm.roles:
        rows = _with_kept_reference(paths, config, rows, TRAIN, tell)
    per_update = config.algorithm.units_per_update
    settings = ReplaySettings(
        max(losses),
        per_update,
        config.policy.micro_batch_tokens,
        config.seed,
        config.data.shuffle,
        offline.needs.model is ModelKind.SCALAR,
    )
    total = config.num_steps or offline_steps(len(rows), per_update, config.num_epochs)
    parts = [paths.resolved.read_text(encoding="utf-8"), json.dumps(dict(manifest.starts[0].inputs), sort_keys=True)]
    parts += [rows.digest, str(settings.num_steps)]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    held_out = {name: one for name, one in read.sets.items() if name != TRAIN}
    return TracedRun(paths, config, offline, rows, held_out, read.tokenizer, losses, settings, key, total)


def reward_run(folder: Path) -> Path | None:
    """The run whose reward model scored the answers of the online run at `folder`; None for any other run."""
    manifest = RunPaths(folder).manifest
    came_from = read_manifest(manifest).current.came_from if manifest.is_file() else {}
    if "reward" not in came_from:
        return None
    config = from_resolved(RunPaths(folder).resolved.read_text(encoding="utf-8")).config
    return Path(came_from["reward"]) if Role.ROLLOUT in algorithm_of(config.algorithm).roles else None


def reads_tokens_of(run: TracedRun, online: Path) -> bool:
    """Whether the reward model of `run` reads the token ids of the online run at `online` as they are."""
    config = from_resolved(RunPaths(online).resolved.read_text(encoding="utf-8")).config
    theirs = load_tokenizer(config.policy.model)
    return theirs.backend_tokenizer.to_str() == run.tokenizer.backend_tokenizer.to_str()


def score_gradients(
    run: TracedRun, index: TraceIndex, sequences: Sequence[Sequence[int]]
) -> list[tuple[float, Tensor]]:
    """The newest model's score of each sequence, and the sketch `[size]` of the score's gradient."""
    model = run.trained_model()
    sketch = sketch_of(model, num_draws=1, largest=index.header.sketch_size, seed=index.header.sketch_seed)
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    found = []
    for ids in sequences:
        tokens = TokenBatch.from_sequences([ids], [[False] * len(ids)])
        score = last_states(model(tokens), tokens)[0]
        gradients = torch.autograd.grad(score, [p for _, p in trained], allow_unused=True)
        kept = ((name, g) for (name, _), g in zip(trained, gradients, strict=True) if g is not None)
        found.append((float(score.detach()), sketch.of(kept)))
    return found


def find_index(run: TracedRun, tell: Callable[[str], None], *, largest: int = 16384) -> TraceIndex:
    """The run's index, from its folder; else made now, which takes about 1.6 times as long as the training did."""
    found = load_index(run.index_folder, run.key)
    if found is not None:
        return found
    steps = run.settings.num_steps
    tell(f"making the trace index once: {steps} steps of {run.paths.path.name} are trained again, row by row")
    model = run.start_model()
    sketch = sketch_of(model, num_draws=steps * run.settings.rows_per_update, largest=largest)
    engine = RowEngine(TorchEngine(model, run.config.policy.optim, total_steps=run.total_steps), sketch)
    shown = max(1, steps // 20)

    def step(done: int, total: int) -> None:
        if done % shown == 0 or done == total:
            tell(f"trace index: step {done} of {total}")

    index = replay(engine, objective_of(run.algorithm), run.rows, run.settings, run.losses, key=run.key, tell=step)
    save_index(run.index_folder, index)
    if run.config.policy.lora.rank:
        trained = {name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}
        save_file(trained, run.index_folder / _TRAINED)
    return index


def target_gradient(run: TracedRun, index: TraceIndex, rows: TrainRows, which: Sequence[int]) -> Tensor:
    """Sketch `[size]` of the gradient of the mean loss over some rows under the newest weights."""
    model = run.trained_model()
    sketch = sketch_of(model, num_draws=1, largest=index.header.sketch_size, seed=index.header.sketch_seed)
    engine = RowEngine(TorchEngine(model, run.config.policy.optim, total_steps=1), sketch)
    engine.keeps_weights = True
    window = row_window(rows.batch(which), len(which), run.settings)
    Learner(engine).update(RankShard((window,)), objective_of(run.algorithm))
    return torch.stack([passed.sketch for passed in engine.passes]).sum(0)


def other_rows(run: TracedRun, name: str, tell: Callable[[str], None]) -> TrainRows:
    """A held-out set of the run by its name, or a file of such rows. Raises DataError."""
    rows = run.held_out.get(name)
    if rows is None:
        needs, today = run.algorithm.needs, read_manifest(run.paths.manifest).today
        rows = load_rows(
            needs.rows, name, run.config.data, run.tokenizer, train_prompts=needs.train_prompts, today=today
        )
    if Role.REFERENCE not in run.algorithm.roles:
        return rows
    return _with_kept_reference(run.paths, run.config, rows, name, tell)


def _refuse_changed(folder: Path, before: Mapping[str, str], inputs: Mapping[str, Path]) -> None:
    decisive = {name: path for name, path in inputs.items() if name.startswith(("data.train", "policy.model"))}
    missing = [name for name in ("data.train", "policy.model") if name in before and name not in decisive]
    if missing:
        raise UserError(f"{folder}: {missing[0]} of the run is no longer where it was; put it back to trace the run.")
    changed = [name for name, path in decisive.items() if name in before and digest(path) != before[name]]
    if changed:
        raise UserError(
            f"{folder}: {', '.join(changed)} has other content than when the run began; a trace needs what it was "
            "trained on."
        )


def _with_kept_reference(
    paths: RunPaths, config: RunConfig, rows: TrainRows, name: str, tell: Callable[[str], None]
) -> TrainRows:
    """With the log-probs that the run kept of a set; asked anew where there are none."""
    record = paths.path / RECORD
    keys = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    if name in keys:
        key = CacheKey(**keys[name])
        kept = read_cache(Path(config.reference.cache or Path(config.run_root) / ".reference").expanduser(), key)
        if kept is not None:
            return rows.with_reference(kept)
    tell(f"reference log-probs of {name}: computed now, {len(rows)} rows")
    return _asked_reference(config, rows)


def _asked_reference(config: RunConfig, rows: TrainRows) -> TrainRows:
    spec = reference_spec(config)
    try:
        learner = Learner(
            TorchEngine(load_causal_lm(spec.folder, precision=spec.precision), config.policy.optim, total_steps=0)
        )
    except ModelLoadError as error:
        raise UserError(f"the run's reference model cannot be loaded: {error}") from error
    asked = score_sequences(
        rows.sequences(), _Alone(learner), num_ranks=1, micro_batch_tokens=config.reference.micro_batch_tokens
    )
    return rows.with_reference(asyncio.run(asked))


@dataclass(frozen=True, slots=True)
class _Alone:
    """One learner as a workers.sequence_scores.SequenceScorer."""

    learner: Learner

    async def sequence_logprobs(self, batches: Any) -> list[list[Tensor]]:
        return [self.learner.sequence_logprobs(rank) for rank in batches]
