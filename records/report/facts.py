"""Reads what a run folder holds, as far as it is there: a report of a live or broken run is still a report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import yaml
from raylign.conf.errors import UserError
from raylign.conf.schema import GuardConfig
from raylign.records.alert_watch import read_alerts
from raylign.records.alerts import DEFAULTS, Alert
from raylign.records.manifest import Manifest, read_manifest
from raylign.records.metrics_log import MetricHistory, read_history
from raylign.records.run_folder import RunPaths
from raylign.records.suite_changes import SuiteChange, read_changes
from raylign.records.summary import RunSummary, read_summary

_LONGEST_TEXT = 6000


@dataclass(frozen=True, slots=True)
class AnswerPair:
    """One held-out prompt answered by the start model and by the trained one; None: the figure could not be had."""

    prompt: str
    before: str
    after: str
    gold_before: float | None
    gold_after: float | None
    reward_before: float | None
    reward_after: float | None
    fluency_before: float | None
    fluency_after: float | None


@dataclass(frozen=True, slots=True)
class RunFacts:
    """Everything the page is made from."""

    paths: RunPaths
    history: MetricHistory
    summary: RunSummary | None
    manifest: Manifest | None
    answers: tuple[AnswerPair, ...]
    config_text: str
    overrides: tuple[str, ...]
    algorithm: str | None
    start_model: str | None
    gold: str | None
    exports: tuple[Path, ...]
    judge: str  # who says which answer is better: "the rule taste"; empty without one
    gpus: float  # of all roles together
    alerts: tuple[Alert, ...]
    came_from: Mapping[str, str]  # role -> folder of an earlier run
    wandb_address: str  # empty without a page
    suites: tuple[SuiteChange, ...] = ()  # that must not get worse, before and after
    guard: GuardConfig = field(default_factory=GuardConfig)

    @property
    def last_step(self) -> int:
        """The newest step on disk."""
        return self.history.rows[-1].step


def read_run(run_dir: Path) -> RunFacts:
    """Read a run folder. Raises UserError when there is nothing to report."""
    paths = RunPaths(run_dir)
    history = read_history(paths.metrics)
    if not history.rows:
        raise UserError(f"{run_dir}: no steps in metrics.jsonl, so there is nothing to report; is this a run folder?")
    config_text = paths.resolved.read_text(encoding="utf-8") if paths.resolved.exists() else ""
    config = yaml.safe_load(config_text) if config_text else {}
    overrides = yaml.safe_load(paths.overrides.read_text(encoding="utf-8")) if paths.overrides.exists() else []
    manifest = read_manifest(paths.manifest) if paths.manifest.exists() else None
    return RunFacts(
        paths=paths,
        history=history,
        summary=read_summary(paths.summary) if paths.summary.exists() else None,
        manifest=manifest,
        answers=read_answers(paths.answers),
        config_text=config_text,
        overrides=tuple(overrides or ()),
        algorithm=_setting(config, "algorithm", "name"),
        start_model=_setting(config, "policy", "model"),
        gold=_setting(config, "evaluation", "gold"),
        exports=tuple(sorted((p for p in paths.export.glob("step-*") if p.is_dir()), key=_step_of)),
        judge=_judge(config),
        gpus=_gpus(config, history),
        alerts=read_alerts(paths.alerts),
        came_from=manifest.current.came_from if manifest else {},
        wandb_address=_web_address(paths.wandb_address),
        suites=read_changes(paths.suites),
        guard=_guard(config),
    )


def _guard(config: Mapping[str, object]) -> GuardConfig:
    """The run's; of settings that this version does not know, nothing."""
    given = config.get("guard")
    known = {f.name: type(getattr(DEFAULTS, f.name)) for f in fields(GuardConfig)}
    values = given.items() if isinstance(given, Mapping) else ()
    return GuardConfig(**{name: known[name](value) for name, value in values if name in known})


def _judge(config: Mapping[str, object]) -> str:
    """What `evaluation.gold` names: a rule, a function of the user's own, or another part of the reward."""
    gold, reward = _setting(config, "evaluation", "gold"), config.get("reward")
    if gold is None or not isinstance(reward, Mapping):
        return ""
    rules = [str(rule.get("rule", "")).partition(":")[0] for rule in reward.get("rules") or ()]
    if gold in rules:
        return f"the rule {gold}"
    if gold == "model":
        return "the reward model"
    return f"the reward function {gold}" if reward.get("functions") else f"the score {gold}"


def _gpus(config: Mapping[str, object], history: MetricHistory) -> float:
    """GPUs that the roles held together; which roles there were is seen by what they logged."""
    logged = set(history.names())
    counts = (
        ("policy", "num_ranks", "gpus_per_rank", True),
        ("critic", "num_ranks", "gpus_per_rank", "critic/loss" in logged),
        ("reference", "num_ranks", "gpus_per_rank", "time/reference" in logged),
        ("reward", "num_replicas", "gpus_per_replica", _setting(config, "reward", "model") is not None),
        ("rollout", "num_workers", "gpus_per_worker", "time/generation" in logged),
    )
    total = 0.0
    for role, number, each, there in counts:
        part = config.get(role)
        if there and isinstance(part, Mapping):
            total += float(part.get(number) or 0) * float(part.get(each) or 0)
    return total


def _web_address(path: Path) -> str:
    """Only what a browser may follow safely."""
    text = path.read_text(encoding="utf-8").strip() if path.exists() else ""
    return text if text.startswith(("https://", "http://")) else ""


def read_answers(path: Path) -> tuple[AnswerPair, ...]:
    """eval/answers.jsonl, in its own order; none when the run has not evaluated at its end yet."""
    if not path.exists():
        return ()
    # Not splitlines: answers may hold line separators that JSON leaves as they are.
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    return tuple(AnswerPair(**{**row, **{k: _bounded(row[k]) for k in ("prompt", "before", "after")}}) for row in rows)


def _bounded(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]} \u2026 ({len(text):,} characters)"


def _setting(config: Mapping[str, object], group: str, name: str) -> str | None:
    """A text setting; None when it is empty or the configuration lacks it."""
    part = config.get(group)
    value = part.get(name) if isinstance(part, Mapping) else None
    return value if isinstance(value, str) and value else None


def _step_of(folder: Path) -> int:
    number = folder.name.removeprefix("step-")
    return int(number) if number.isdigit() else -1
