"""`raylign loop`: inspect, build, train, evaluate, audit, gate and promote on a growing log; one call is one night.

Each stage is noted when it has ended (records/nights.py), so a loop that was killed goes on with the stage it was in: a
build appears whole or not at all, a run resumes from its checkpoint, answers to suites are kept one suite at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from raylign.app.commands.feedback import run_build, run_inspect
from raylign.app.commands.loop_checks import check
from raylign.app.commands.loop_release import Current, Release
from raylign.app.commands.loop_training import NoRows, Surroundings, train
from raylign.app.commands.serve import causal_export
from raylign.app.launch.stopping import stoppable
from raylign.conf.errors import RaylignError, UserError
from raylign.conf.loop import BUILD, Kind, LoopConfig, read_loop
from raylign.evals.gate import Verdict
from raylign.evals.registry import Registry
from raylign.evals.results import model_digest
from raylign.feedback.build import input_files
from raylign.feedback.build_result import read_result
from raylign.feedback.given import set_apart
from raylign.feedback.growth import growth
from raylign.feedback.overrides import parse_settings
from raylign.feedback.source import Source
from raylign.feedback.tombstones import FILE, Tombstones, read_tombstones
from raylign.records.folder_lock import hold
from raylign.records.model_names import short_model
from raylign.records.nights import Night, Nights
from raylign.records.run_folder import plain
from rich.console import Console


def run_loop(file: Path, console: Console, *, anew: bool = False) -> int:
    """One night by the settings of `file`; the exit code: 0, or the gate's when it did not let the candidate pass.

    `anew`: leave a night that has not ended as it is. Raises RaylignError, with what goes on in its last sentence.
    """
    config = read_loop(file)
    with contextlib.chdir(file.parent or Path(".")):
        folder = Path(config.folder).expanduser().absolute()
        check(config, folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = hold(folder / ".lock", f"folder={config.folder}", "wait for that loop, or stop it")
        except OSError as error:
            raise UserError(f"folder={config.folder}: {folder} cannot be written ({error.strerror}).") from error
        try:
            with stoppable(), _hint(file):
                return Loop.opened(config, folder, console).night(anew)
        finally:
            os.close(lock)


@dataclass(frozen=True, slots=True)
class Loop:
    """A loop whose folder this process holds."""

    config: LoopConfig
    nights: Nights
    source: Source
    forgotten: Tombstones  # by any build of this loop, or by the settings
    console: Console

    @staticmethod
    def opened(config: LoopConfig, folder: Path, console: Console) -> Loop:
        """Raises UserError for damaged records and tombstones."""
        source = Source(
            logs=tuple(Path(log).expanduser() for log in config.logs),
            format=config.format or None,
            mapping=Path(config.mapping).expanduser() if config.mapping else None,
            companion=Path(config.companion).expanduser() if config.companion else None,
            overrides=tuple(config.build),
        )
        named = parse_settings(source.overrides).privacy.forgotten
        files = [*sorted(folder.glob(f"night-*/{BUILD}/{FILE}")), *([Path(named).expanduser()] if named else [])]
        forgotten = Tombstones()
        for path in files:
            forgotten |= read_tombstones(path)
        return Loop(config, Nights(folder), source, forgotten, console)

    def night(self, anew: bool) -> int:
        """Begin a night, or go on with the one that has not ended."""
        nights = self.nights.all()
        night = nights[-1] if nights and not nights[-1].outcome else None
        if night and not anew:
            self._refuse_other_settings(night)
            last = night.stages[-1].name if night.stages else "its beginning"
            self.say(f"night {night.number}, begun {night.began}, goes on after {last}")
        else:
            why = self._why([one for one in nights if one.outcome])
            if not why:
                return 0
            night = self.nights.begin(_hash(plain(self.config)), _hash(self.forgotten.to_json()))
            self.say(f"night {night.number}: {why}")
        try:
            return self._stages(night)
        except NoRows as nothing:
            self._end(self.nights.all()[-1], str(nothing))
            return Verdict.NOT_ENOUGH.value

    def _why(self, ended: list[Night]) -> str:
        """What the log has that the last night did not see; empty: nothing that begins a night, which is told."""
        log = run_inspect(self.source, self.console)
        privacy = parse_settings(self.source.overrides).privacy
        last = ended[-1] if ended else None
        build = self.nights.path(last) / BUILD if last else None
        grown = growth(log.events, privacy, self.forgotten, build)
        count = f"{grown.new:,} new judgements"
        if last is None or build is None:
            return count if self._enough(grown.new, "in the log") else ""
        gone = f", {grown.gone:,} of its judgements are not in the log any more" if grown.gone else ""
        since = f"since night {last.number}{gone}"
        if last.forgotten != _hash(self.forgotten.to_json()):
            return f"something is to be forgotten {since}; {count}"
        if last.settings != _hash(plain(self.config)):
            return f"the loop's settings have changed {since}; {count}"
        files = input_files(self.source, (*log.files, *set_apart(self.source.logs).beside))
        changed = sorted({file.name for file in set(files) ^ set(read_result(build).inputs)})
        if changed and not grown.new:  # a judgement was changed, a review written, a log cut in two: the rows will tell
            return f"no new judgement {since}, but other files: {', '.join(changed)}"
        return f"{count} {since}" if self._enough(grown.new, since) else ""

    def _enough(self, new: int, since: str) -> bool:
        least = self.config.min_new_events
        if not new:
            self.say(f"nothing new {since}; no night begins")
        elif new < least:
            self.say(f"{new:,} new judgements {since}, fewer than min_new_events={least:,}; no night begins")
        return new >= least

    def _stages(self, night: Night) -> int:
        night = self._build(night)
        current = self._current()
        before = next((n for n in reversed(self.nights.all()) if n.outcome and n.digest == current.digest), None)
        for training in self.config.train:
            if night.stage(f"train {training.name}") is None:
                build = self.nights.path(before) / BUILD if before else None
                of = Surroundings(self.nights, night, current.folder, build, self.console, self.say)
                with stoppable():  # Ray sets handlers of its own when it starts, and leaves others when it ends
                    night = train(training, of)
        candidate = Path(night.model(self.config.train[-1].name))
        night = self.nights.keep(replace(night, candidate=str(candidate), digest=model_digest(candidate)))
        if night.digest == current.digest and not night.stage("gate"):  # else it has been promoted already
            self._end(night, "the candidate is the current model: nothing to gate or promote")
            return 0
        return self._release(night, Release(self.config, self.nights, current, self.console, self.say))

    def _build(self, night: Night) -> Night:
        if night.stage(BUILD):
            return night
        out = self.nights.path(night) / BUILD
        if not (out / "build.json").is_file():  # else it ended, and the loop with it, before that was noted
            run_build(self.source, out, self.console, tombstones=self.forgotten)
        rows = {kind.value: 0 for kind in Kind if kind is not Kind.none}
        for made in read_result(out).produced:
            rows[made.kind] += made.rows
        said = f"built whole, as rules and splits look at all rows: {', '.join(f'{n:,} {k}' for k, n in rows.items())}"
        self.say(said)
        return self.nights.done(night, BUILD, said, made=str(out))

    def _release(self, night: Night, release: Release) -> int:
        """Evaluate, audit, compare, ask the gate, and promote what it lets pass."""
        night = release.compared(release.audited(release.evaluated(night)))
        if not self.config.gate:
            self._end(night, f"trained {night.candidate}; no gate is asked, so nothing is promoted")
            return 0
        night, verdict = release.decided(night)
        if verdict is Verdict.PASSED and self.config.promote:
            night = release.promoted(night)
        said = "promoted" if night.stage("promote") else "not promoted"
        self._end(night, f"{short_model(night.candidate)}: {verdict.words}, {said}")
        return verdict.value

    def _current(self) -> Current:
        release = Registry(Path(self.config.registry).expanduser()).current(self.config.alias)
        if release:
            return Current(Path(release.model), release.digest)
        folder = causal_export(self.config.start, self.nights.folder / "runs").absolute()
        return Current(folder, model_digest(folder))

    def _end(self, night: Night, outcome: str) -> None:
        self.nights.keep(replace(night, outcome=outcome))
        self.say(f"night {night.number} has ended: {outcome}")

    def _refuse_other_settings(self, night: Night) -> None:
        if night.settings != _hash(plain(self.config)):
            raise UserError(
                f"the loop's settings have changed since night {night.number} began, and it has not ended; put them "
                "back, or give --anew to leave it as it is and begin another."
            )

    def say(self, sentence: str) -> None:
        """One line."""
        self.console.print(sentence, markup=False, highlight=False, soft_wrap=True)


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


@contextlib.contextmanager
def _hint(file: Path) -> Iterator[None]:
    """The last sentence of what ended the loop says how it goes on."""
    try:
        yield
    except RaylignError as error:
        again = shlex.join(["raylign", "loop", "--config", str(file)])
        other = " (or begins another night with --anew)" if isinstance(error, UserError) else ""
        said = f"{error.problems[-1].rstrip('.')}; the loop goes on with: {again}{other}"
        error.problems = (*error.problems[:-1], said)
        raise
