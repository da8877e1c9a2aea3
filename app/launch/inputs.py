"""The files and folders that a run reads, by the setting that names them."""

from __future__ import annotations

from pathlib import Path

from raylign.app.configuration import needs
from raylign.app.launch.callbacks import callback_files
from raylign.app.launch.environment import environment_files
from raylign.app.launch.functions import function_files
from raylign.app.launch.judges import rubric_files
from raylign.app.launch.own_metrics import metric_files
from raylign.app.launch.suites import suite_files
from raylign.conf.held_out import DEFAULT_NAME, held_out_sets
from raylign.conf.own_code import files_of
from raylign.conf.schema import RunConfig
from raylign.data.chat_template import FAMILIES
from raylign.trainer.algorithms import algorithm_of


def run_inputs(config: RunConfig) -> dict[str, Path]:
    """What the run reads, by key, of what there is here: for the manifest's hashes, and for what a job must be sent."""
    named_paths = {
        "policy.model": config.policy.model,
        "critic.model": config.critic.model,
        "reference.model": config.reference.model,
        "reward.model": config.reward.model,
        "data.train": config.data.train,
        "data.chat_template": "" if config.data.chat_template in FAMILIES else config.data.chat_template,
        **{
            "data.eval" if name == DEFAULT_NAME else f"data.eval.{name}": source
            for name, source in held_out_sets(config.data.eval).items()
        },
    }
    found = {key: Path(value) for key, value in named_paths.items() if value and Path(value).exists()}
    found |= {f"algorithm/{file.name}": file for file in files_of(type(algorithm_of(config.algorithm)).__module__)}
    found |= callback_files(config.callbacks)
    found |= metric_files(config.evaluation)
    found |= environment_files(config.environment)
    found |= suite_files(config)
    return found | (function_files(config.reward) | rubric_files(config.reward) if needs(config).reward else {})
