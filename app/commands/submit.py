"""What `raylign submit` refuses before anything is sent: settings, files that would stay behind, unset secrets."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from raylign.app.configuration import compose, needs
from raylign.app.launch.inputs import run_inputs
from raylign.app.launch.remotes import remote_problems, served_problems
from raylign.cluster.submit import shipped_files
from raylign.conf.errors import ConfigError, UserError
from raylign.conf.loop import LoopConfig, read_loop
from raylign.conf.schema import RunConfig
from raylign.evals.suites import shipped_names
from raylign.records.wandb_login import key_source, server_url


def checked(arguments: Sequence[str], working_dir: Path) -> RunConfig:
    """The run as the job will find it. Raises ConfigError with every problem that can be seen from here.

    Relative paths are of `working_dir`, which goes along; absolute ones are looked at where the job runs.
    """
    if not working_dir.is_dir():
        raise UserError(f"--working-dir {working_dir}: there is no such folder; name the one that holds the code")
    with contextlib.chdir(working_dir):
        config = compose(arguments, elsewhere=True).config
        problems = [*_run_root(config), *_left_behind(config)]
    if problems:
        raise ConfigError(problems)
    return config


def tokens(config: RunConfig, environ: Mapping[str, str]) -> list[str]:
    """The environment variables that the settings name, each of which is sent with the job.

    Raises ConfigError for those that are not set, and for addresses that no token should be sent to.
    """
    if not needs(config).reward:
        return []
    if problems := [*remote_problems(config.reward, environ), *served_problems(config.environment, environ)]:
        raise ConfigError(problems)
    named = {given.token_env for given in config.reward.remote} | {given.token_env for given in config.reward.judges}
    return sorted((named | {config.environment.token_env}) - {""})


def login_notice(environ: Mapping[str, str]) -> str:
    """A sentence where this machine's `wandb login` will not be the job's; else empty."""
    source = key_source(environ, server_url(environ))
    if source is None or source in environ:
        return ""
    return f"Weights & Biases: the key in {source} stays on this machine; `export WANDB_API_KEY=...` to send it along"


def _run_root(config: RunConfig) -> Iterator[str]:
    if not os.path.isabs(os.path.expanduser(config.run_root)):
        yield (
            f"run_root={config.run_root}: a job's working folder is deleted after the job, and the run with it; "
            "give an absolute path on a disk that the nodes share."
        )


def checked_loop(file: Path, working_dir: Path) -> LoopConfig:
    """A loop as the job will find it. Raises ConfigError as `checked` does."""
    with contextlib.chdir(working_dir):
        config = read_loop(file)
        problems = []
        for key, given in (("folder", config.folder), ("registry", config.registry)):
            if not os.path.isabs(os.path.expanduser(given)):
                problems.append(
                    f"{key}={given}: a job's working folder is deleted after the job, and what the loop keeps with it; "
                    "give an absolute path on a disk that the nodes share."
                )
        named = {"--loop": file} | {key: file.parent / path for key, path in _named_by_loop(config)}
        problems += _not_sent({key: path for key, path in named.items() if not path.is_absolute()})
    if problems:
        raise ConfigError(problems)
    return config


def _named_by_loop(config: LoopConfig) -> Iterator[tuple[str, str]]:
    """Settings of a loop and its trainings that name a file, and the file."""
    for key in ("start", "gate", "mapping", "companion"):
        if given := str(getattr(config, key)):
            yield key, given
    yield from ((f"logs: {log}", log) for log in config.logs)
    yield from ((f"evaluate: {suite}", suite) for suite in config.evaluate if suite not in shipped_names())
    yield from ((f"audit: pairs: {path}", path) for one in config.audit for path in one.pairs)
    if config.compare.prompts and config.compare.prompts not in shipped_names():
        yield "compare.prompts", config.compare.prompts
    for training in config.train:
        for setting in training.settings:
            key, _, path = setting.partition("=")
            if key in ("--config", "--config-dir"):
                yield f"train: {training.name}: {key}", path


def _left_behind(config: RunConfig) -> Iterator[str]:
    """Of the current folder: what the settings name by a relative path and the job will not have."""
    return _not_sent({key: path for key, path in run_inputs(config).items() if not path.is_absolute()})


def _not_sent(named: Mapping[str, Path]) -> Iterator[str]:
    """Of the current folder: which of these relative paths the job will not have."""
    here = Path.cwd()
    sent = list(shipped_files(here))
    for key, path in named.items():
        real = Path(os.path.normpath(here / path))
        if not any(file == real or real in file.parents for file in sent):
            yield (
                f"{key}: {path} is not sent with the job (it is outside of {here}, or an exclusion, .gitignore or "
                ".rayignore names it); name it there, or give an absolute path on a disk that the nodes share."
            )
