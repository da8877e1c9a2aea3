"""The reference's log-probs before offline training: from the cache where they are, else by the frozen model, once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from raylign.app.launch.demand import role_requests
from raylign.app.launch.stage import Stage
from raylign.conf.derive import reference_model
from raylign.conf.errors import DataError
from raylign.conf.schema import RunConfig
from raylign.data.row_kinds import TrainRows
from raylign.records.atomic import write_atomic
from raylign.trainer.algorithms.base import Role
from raylign.trainer.reference_cache import CacheKey, cache_file, cache_key, read_cache, write_cache
from raylign.trainer.workers.learner_group import LearnerGroup
from raylign.trainer.workers.sequence_scores import score_sequences
from raylign.trainer.workers.specs import FrozenSpec
from torch import Tensor
from transformers import PreTrainedTokenizerBase

RECORD = "reference.json"
"""In the run folder: the key of each set's log-probs, so that a resumed run continues with the same ones."""


async def with_reference(
    stage: Stage, sets: Mapping[str, TrainRows], tokenizer: PreTrainedTokenizerBase
) -> dict[str, TrainRows]:
    """Every set with the reference's log-probs.

    The reference starts only when a set's are not cached, and is gone before this returns. Raises DataError when a
    cached file does not match its key, or a resumed run's model, data or template have changed.
    """
    config = stage.config
    folder = Path(config.reference.cache or Path(config.run_root) / ".reference").expanduser()
    model = reference_model(config)
    keys = {
        name: cache_key(model, config.reference.precision, rows.sequences(), tokenizer) for name, rows in sets.items()
    }
    hold_keys(stage.folder.path / RECORD, keys)
    found = {name: read_cache(folder, key) for name, key in keys.items()}
    missing = {name: rows for name, rows in sets.items() if found[name] is None}
    for name, key in keys.items():
        origin = "computed now, kept in" if name in missing else "taken from"
        stage.progress.notice(f"reference log-probs of {name}, key {key.name}: {origin} {cache_file(folder, key)}")
    if missing:
        for name, logps in (await _compute(stage, missing)).items():
            write_cache(folder, keys[name], logps)
    complete: dict[str, TrainRows] = {}
    for name, rows in sets.items():
        logps_read = read_cache(folder, keys[name])  # also what was just written: it is verified before it is used
        if logps_read is None:
            raise DataError(f"reference.cache: {cache_file(folder, keys[name])} vanished while the run started.")
        complete[name] = rows.with_reference(logps_read)
    return complete


def hold_keys(record: Path, keys: Mapping[str, CacheKey]) -> None:
    """Write down what the run trains against, or compare with what an earlier start wrote.

    Raises DataError naming both keys and what changed.
    """
    if record.is_file():
        before = {name: CacheKey(**parts) for name, parts in json.loads(record.read_text(encoding="utf-8")).items()}
        problems = [
            f"reference log-probs of {name}: this run began with key {before[name].name} and would continue with "
            f"{key.name}: {'; '.join(key.differences(before[name]))}; resume with what it began with, or start again "
            "under another name="
            for name, key in keys.items()
            if name in before and before[name] != key
        ]
        if problems:
            raise DataError(problems)
    write_atomic(record, json.dumps({name: asdict(key) for name, key in keys.items()}, indent=1) + "\n")


def reference_spec(config: RunConfig) -> FrozenSpec:
    """The frozen reference of a run."""
    reference, cluster = config.reference, config.cluster
    return FrozenSpec(
        reference_model(config), reference.precision, cluster.device, reference.sharded, cluster.step_timeout_s
    )


async def _compute(stage: Stage, sets: Mapping[str, TrainRows]) -> dict[str, Tensor]:
    """Run the frozen model. Its processes and their reservation are gone afterwards."""
    config = stage.config
    requests = [r for r in role_requests(config, frozenset({Role.REFERENCE})) if r.role == Role.REFERENCE.value]
    reservation, cores = stage.reserve(requests)
    try:
        spec = reference_spec(config)
        settings = stage.group_settings("reference", config.reference)
        group = await LearnerGroup.start(spec, settings, reservation=reservation, cores=cores)
        try:
            computed = {}
            for name, rows in sets.items():
                sequences = rows.sequences()

                def on_round(done: int, name: str = name, total: int = len(sequences)) -> None:
                    stage.progress.phase(f"reference log-probs of {name}: {done} of {total}")

                computed[name] = await score_sequences(
                    sequences,
                    group,
                    num_ranks=group.num_ranks,
                    micro_batch_tokens=config.reference.micro_batch_tokens,
                    on_round=on_round,
                )
            return computed
        finally:
            group.stop()
    finally:
        reservation.release()
