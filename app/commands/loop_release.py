"""What a night does with its models: evaluate, audit, compare, ask the gate, promote."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from raylign.app.commands.audit import AuditSettings, audit, headline, write_page, write_record
from raylign.app.commands.compare import Grading, compare_models
from raylign.app.commands.evaluate import EvalSettings, evaluate
from raylign.app.commands.evaluate_table import table
from raylign.app.commands.gate import decide, promote
from raylign.app.commands.judged_pairs import read_pairs
from raylign.app.commands.loop_training import NoRows
from raylign.conf.loop import BUILD, CURRENT, LoopAuditConfig, LoopConfig
from raylign.evals.gate import Verdict
from raylign.evals.registry import Registry
from raylign.evals.result_pages import write_eval_page
from raylign.evals.results import model_digest
from raylign.evals.slices import slice_lines
from raylign.evals.suite_lines import suite_lines
from raylign.evals.suites import open_suite
from raylign.feedback.build_result import read_result
from raylign.records.atomic import write_atomic
from raylign.records.manifest import digest
from raylign.records.model_names import short_model
from raylign.records.nights import Night, Nights, made_before
from rich.console import Console

from raylign import __version__


@dataclass(frozen=True, slots=True)
class Current:
    """The model that people use: what the alias points to, else the loop's start."""

    folder: Path
    digest: str


@dataclass(frozen=True, slots=True)
class Release:
    """The second half of a night. Each stage returns the night with itself noted, and does nothing a second time."""

    config: LoopConfig
    nights: Nights
    current: Current
    console: Console
    say: Callable[[str], None]

    @property
    def settings(self) -> EvalSettings:
        """Answers are kept beside the nights, shared by all of them."""
        return EvalSettings(self.nights.folder / "eval-results", self.nights.folder / "runs")

    @property
    def registry(self) -> Path:
        """The folder of aliases."""
        return Path(self.config.registry).expanduser()

    def evaluated(self, night: Night) -> Night:
        """The candidate and the current model on the loop's suites."""
        if not self.config.evaluate or night.stage("evaluate"):
            return night
        suites = [str(open_suite(name).path) for name in self.config.evaluate]
        asked: list[str] = []

        def say(line: str) -> None:
            asked.append(line)
            self.say(line)

        found = evaluate(night.candidate, suites, self.settings, say)
        others = evaluate(str(self.current.folder), suites, self.settings, say)
        if not asked:
            self.say("evaluate: both models' answers are used again; no suite was asked")
        lines, slices = suite_lines(found, others), slice_lines(found, others)
        shown = table(lines, night.candidate, str(self.current.folder), self.settings.results, slices)
        self.console.print(shown, markup=False, highlight=False, soft_wrap=True)
        page = self.nights.path(night) / "eval.html"
        named = short_model(night.candidate), short_model(str(self.current.folder))
        write_eval_page(page, lines, slices, found, *named)
        return self.nights.done(night, "evaluate", f"{len(suites)} suites, also of the current model", made=str(page))

    def audited(self, night: Night) -> Night:
        """Each reward model that the loop audits."""
        for one in self.config.audit:
            if night.stage(f"audit {one.model}") is None:
                night = self._audit(night, one)
        return night

    def _audit(self, night: Night, one: LoopAuditConfig) -> Night:
        pairs = one.pairs or self._held_out(night)
        if not pairs:
            raise NoRows(f"audit {one.model}: the build holds out no pair; give audit.pairs, or a larger split.eval")
        key = _audit_key(night.model(one.model), pairs, one)
        record = self.nights.path(night) / f"audit-{one.model}.json"
        if before := made_before(self.nights.all(), key):
            earlier, stage = before
            for suffix in (".json", ".html"):
                shutil.copyfile(Path(stage.made).with_suffix(suffix), record.with_suffix(suffix))
            self.say(
                f"{one.model}: the audit of night {earlier.number} is used again; model, pairs and settings are equal"
            )
            return self.nights.done(night, f"audit {one.model}", stage.said, key=key, made=str(record))
        settings = AuditSettings(pairs, self.settings.run_root, one.agreement, most=one.most)
        found = replace(audit(night.model(one.model), settings, self.say), model=one.model)  # a name, not a folder
        write_page(record.with_suffix(".html"), found)
        write_record(record, found)
        self.say(headline(found))
        return self.nights.done(night, f"audit {one.model}", headline(found), key=key, made=str(record))

    def compared(self, night: Night) -> Night:
        """The page with the models' answers side by side."""
        given = self.config.compare
        if not given.models or night.stage("compare"):
            return night
        folders = {name: str(self.current.folder) if name == CURRENT else night.model(name) for name in given.models}
        models: dict[str, str] = {}
        for name, folder in folders.items():  # a training without new rows leaves the current model
            models.setdefault(folder, name)
        if len(models) < 2:
            return self.nights.done(night, "compare", f"{' and '.join(given.models)} are one model: nothing to compare")
        page = self.nights.path(night) / "compare.html"
        judge = night.model(given.reward_model) if given.reward_model else None
        prompts = given.prompts or str(self._questions(night))
        audited = night.stage(f"audit {given.reward_model}")
        grading = Grading(given.rules, judge, f"Audit: {audited.said}" if audited else "")
        found = compare_models(list(models), prompts, grading, self.settings, page, self.say, list(models.values()))
        said = f"{len(models)} models on {len(found.asked)} prompts"
        self.say(f"compared {said}: {page}")
        return self.nights.done(night, "compare", said, made=str(page))

    def decided(self, night: Night) -> tuple[Night, Verdict]:
        """The gate's verdict."""
        record = self.nights.path(night) / "gate.json"
        if night.stage("gate") is None:
            against, policy = str(self.current.folder), Path(self.config.gate)
            audits = {one.model: Path(night.made(f"audit {one.model}")) for one in self.config.audit}
            decide(night.candidate, against, policy, self.settings, self.registry, record, self.say, audits)
            night = self.nights.done(night, "gate", _verdict(record).words, made=str(record))
        return night, _verdict(record)

    def promoted(self, night: Night) -> Night:
        """The alias points to the candidate."""
        release = Registry(self.registry).current(self.config.alias)
        said = f"{self.config.alias} points to {night.candidate}"
        if release is None or release.digest != night.digest:  # else it was, before that could be noted
            record = self.nights.path(night) / "gate.json"
            said = promote(self.registry, self.config.alias, night.candidate, self.settings.run_root, record)
        self.say(said)
        return self.nights.done(night, "promote", said)

    def _held_out(self, night: Night) -> list[str]:
        """The build's files of pairs that no training of it reads."""
        build = self.nights.path(night) / BUILD
        made = [m for m in read_result(build).produced if m.kind == "pairs" and m.split != "train" and m.rows]
        return [str((build / m.path).absolute()) for m in made]

    def _questions(self, night: Night) -> Path:
        """A file with the first questions of the held-out pairs, each once; none with tools or calls."""
        pairs, _ = read_pairs(self._held_out(night), 100 * self.config.compare.most)
        plain = [p for p in pairs if not p.variables and not any(turn.extra for turn in p.prompt)]
        questions = dict.fromkeys(pair.prompt for pair in plain)
        if not questions:
            raise NoRows("compare: the build holds out no pair; give compare.prompts, or a larger split.eval")
        rows: list[Mapping[str, object]] = [
            {"prompt": [{"role": turn.role, "content": turn.content} for turn in turns]}
            for turns in islice(questions, self.config.compare.most)
        ]
        file = self.nights.path(night) / "questions.jsonl"
        write_atomic(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return file


def _audit_key(model: str, pairs: Sequence[str], one: LoopAuditConfig) -> str:
    """Hash of the model and the pairs by content, and of the audit's settings."""
    parts = [__version__, model_digest(Path(model)), [digest(Path(path)) for path in pairs], one.agreement, one.most]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _verdict(record: Path) -> Verdict:
    words = json.loads(record.read_text(encoding="utf-8"))["verdict"]
    return next(verdict for verdict in Verdict if verdict.words == words)
