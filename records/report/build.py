"""Puts the page together. Everything that comes from a run is escaped by the template; only our own SVG is not."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from raylign.pages.frame import render_page
from raylign.pages.numbers import short
from raylign.records.atomic import write_atomic
from raylign.records.report.evidence import checks, guard_checks, ledger_checks
from raylign.records.report.facts import AnswerPair, RunFacts, read_run
from raylign.records.report.next_steps import next_steps
from raylign.records.report.origin import origin, when
from raylign.records.report.panels import all_metrics, questions, time_panel
from raylign.records.report.support import write_ask_next
from raylign.records.report.verdict import judge

_HERE = Path(__file__).parent
_ANSWERS_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure under an answer."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Answer:
    """One side of a pair, as it is shown."""

    side: str
    text: str
    figures: tuple[Figure, ...]


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt with both answers."""

    prompt: str
    answers: tuple[Answer, ...]
    preferred: str


@dataclass(frozen=True, slots=True)
class Command:
    """How to go on: what for, and what to type."""

    purpose: str
    text: str


def write_report(run_dir: Path) -> Path:
    """Write `<run_dir>/report.html` and return its path. Raises UserError when the folder holds no steps."""
    facts = read_run(run_dir if run_dir.name else run_dir.resolve())
    guarded = guard_checks(facts.history, facts.guard, facts.alerts)
    found = (*checks(facts.history), *guarded, *ledger_checks(facts.paths.path))
    curves = questions(facts.history, facts.gold)
    unsure, asked = write_ask_next(facts.paths)
    verdict = judge(facts, checks=found, questions=curves, support=unsure)
    values = {
        "name": facts.paths.path.name,
        "written": when(datetime.now(UTC)),
        "origin": origin(facts),
        "verdict": verdict,
        "next_steps": next_steps(verdict, curves, facts.alerts, facts.summary, asked),
        "questions": curves,
        "suites": facts.suites,
        "short": short,
        "time": time_panel(facts.history),
        "examples": [example(pair) for pair in facts.answers[:_ANSWERS_SHOWN]],
        "num_answers": len(facts.answers),
        "judge": facts.judge,
        "checks": found,
        "metrics": all_metrics(facts.history),
        "start": facts.manifest.current if facts.manifest else None,
        "overrides": facts.overrides,
        "config_text": facts.config_text,
        "commands": commands(facts),
    }
    page = render_page(_HERE / "report.html", values)
    write_atomic(facts.paths.report, page)
    return facts.paths.report


def example(pair: AnswerPair) -> Example:
    """Both answers with their figures; the higher gold score is the preferred one, as in the win rate."""
    preferred = ""
    if pair.gold_before is not None and pair.gold_after is not None:
        better = "after" if pair.gold_after > pair.gold_before else "before"
        preferred = "tie" if pair.gold_after == pair.gold_before else better
    before = _figures(pair.gold_before, pair.reward_before, pair.fluency_before)
    after = _figures(pair.gold_after, pair.reward_after, pair.fluency_after)
    return Example(pair.prompt, (Answer("before", pair.before, before), Answer("after", pair.after, after)), preferred)


def _figures(gold: float | None, reward: float | None, fluency: float | None) -> tuple[Figure, ...]:
    named = (("gold", gold), ("reward", reward), ("fluency", fluency))
    return tuple(Figure(name, short(value)) for name, value in named if value is not None)


def commands(facts: RunFacts) -> Sequence[Command]:
    """What a reader may want to do next, ready to paste."""
    folder = facts.paths.path
    where = shlex.quote(str(folder))
    moved = ("name=", "run_root=", "num_steps=", "checkpoint.resume=")
    given = [o for o in facts.overrides if not o.startswith(moved)]
    named = [f"num_steps={2 * max(1, facts.last_step)}", f"name={folder.name}", f"run_root={folder.parent}"]
    result = [Command("Train on, from the last checkpoint", shlex.join(["raylign", "train", *given, *named]))]
    if not facts.exports:
        return [*result, Command("Write the model as a Hugging Face folder", f"raylign export {where}")]
    model = str(facts.exports[-1])
    load = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"model = AutoModelForCausalLM.from_pretrained({model!r})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({model!r})"
    )
    return [
        *result,
        Command("Load the model with transformers", load),
        Command("Serve it with vLLM", f"raylign serve {shlex.quote(model)}"),
        Command("Write this page again", f"raylign report {where}"),
    ]
