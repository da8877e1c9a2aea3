"""`raylign compare`: several models answer the same prompts, graded alike, side by side on a page."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml
from raylign.app.commands.evaluate import EvalSettings, evaluate
from raylign.app.commands.serve_reward import scalar_export
from raylign.conf.errors import UserError
from raylign.conf.loop import MOST_COMPARED
from raylign.evals.compare import Comparison, compare
from raylign.evals.compare_page import write_page
from raylign.evals.suites import is_suite, open_suite, shipped_names
from raylign.records.atomic import write_atomic
from raylign.records.model_names import short_model


@dataclass(frozen=True, slots=True)
class Grading:
    """What says which answer is better, where the prompts are rows."""

    rules: Sequence[str] = ()
    reward_model: str | None = None  # a run or an export
    remark: str = ""  # what a reader of the page should know of it


def compare_models(
    models: Sequence[str],
    prompts: str,
    grading: Grading,
    settings: EvalSettings,
    out: Path,
    tell: Callable[[str], None],
    names: Sequence[str] | None = None,
) -> Comparison:
    """Ask every model, write the page `out` and a record beside it.

    `names`: what the page calls the models; else their folders' short names.

    Raises UserError for fewer than two models, more than eight, one named twice, and prompts that nothing grades.
    """
    if not 2 <= len(models) <= MOST_COMPARED:
        raise UserError(f"compare: name 2 to {MOST_COMPARED} models; {len(models)} given.")
    if twice := [model for model in models if models.count(model) > 1]:
        raise UserError(f"compare: {twice[0]} is named twice.")
    suite = _suite(prompts, grading, settings)
    results = [evaluate(model, [suite], settings, tell)[0] for model in models]
    found = compare(results, names or _names(models))
    write_page(out, found)
    write_atomic(out.with_suffix(".json"), json.dumps(asdict(found), ensure_ascii=False, indent=1) + "\n")
    return found


def _suite(prompts: str, grading: Grading, settings: EvalSettings) -> str:
    """`prompts` itself where it is a suite; else a suite of these rows, kept beside the results."""
    rules, reward_model = grading.rules, grading.reward_model
    if is_suite(prompts):
        if rules or reward_model:
            raise UserError(f"--prompts {prompts}: a suite says how it is graded; leave --rule and --reward-model out.")
        return str(open_suite(prompts).path)
    rows = Path(prompts).expanduser().absolute()
    if not rows.exists():
        raise UserError(
            f"--prompts {prompts}: there is no such file; give rows (JSONL, parquet), a suite's yaml file, or one of "
            f"{', '.join(shipped_names())}."
        )
    if not rules and not reward_model:
        raise UserError(
            f"--prompts {prompts}: nothing says which answer is better; give --rule or --reward-model, or a suite's "
            "yaml file with a judge."
        )
    reward: dict[str, object] = {"rules": [{"rule": rule} for rule in rules], "clip": 0.0}
    if reward_model:
        folder = scalar_export(reward_model, settings.run_root)
        reward |= {"model": str(folder.absolute()), "retokenize": True}
    judges = [*rules, *([f"the reward model {short_model(reward_model)}"] if reward_model else [])]
    about = f"Scored by {' + '.join(judges)}. {grading.remark}".strip()
    path = settings.results.expanduser().absolute() / "suites" / f"{rows.stem}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, yaml.safe_dump({"about": about, "prompts": str(rows), "reward": reward}, sort_keys=False))
    open_suite(str(path))
    return str(path)


def _names(models: Sequence[str]) -> list[str]:
    """Short names where they differ, else what was typed."""
    names = [short_model(str(Path(model).absolute()) if Path(model).exists() else model) for model in models]
    return names if len(set(names)) == len(names) else list(models)
