"""`raylign loop` over several nights: what begins one, what is used again, where a killed one goes on, what is refused.

Builds, keys, gates' records and releases are real; trainings leave a model of a few bytes, and suites are not asked.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from raylign.app.commands import loop_release, loop_training
from raylign.app.commands.audit import Audit, AuditSettings
from raylign.app.commands.compare import Grading
from raylign.app.commands.loop import run_loop
from raylign.conf.compose import Composed
from raylign.conf.errors import ConfigError, DataError, Stopped, UserError
from raylign.evals.audit import Calibration
from raylign.evals.gate import Verdict
from raylign.evals.registry import Registry
from raylign.evals.results import model_digest
from raylign.feedback.forget import forget
from raylign.records.folder_lock import hold
from raylign.records.nights import Night, Nights
from rich.console import Console

REWARD_MODEL: dict[str, object] = {
    "name": "reward-model",
    "kind": "pairs",
    "settings": ["+experiment=rm_tiny_cpu", "policy.model={current}"],
}
POLICY: dict[str, object] = {
    "name": "policy",
    "kind": "sft",
    "settings": ["+experiment=sft_tiny_cpu", "policy.model={current}"],
}

EMPTY = Audit("", "", "", 0, 0, (), (), None, Calibration((), 0.0, 0.0, None, None), 0.0, (), (), None)


def choice(n: int) -> dict[str, object]:
    turn = {"role": "user", "content": f"How do I reset pump number {7 * n} in building {n}?"}
    answers = {"response_a": f"Hold the button of pump {n} for ten seconds.", "response_b": f"Buy a new pump {n}."}
    return {"event_id": f"c{n}", "kind": "side_by_side", "prompt": [turn], **answers, "choice": "a",
            "user_id": f"user{n}", "time": f"2026-03-01T12:{n:02d}:00Z"}  # fmt: skip


def thumb(n: int) -> dict[str, object]:
    turn = {"role": "user", "content": f"Where is the filter of machine {13 * n} on floor {n}?"}
    return {"event_id": f"t{n}", "kind": "thumb", "prompt": [turn], "response_a": f"Behind panel {n}, at the left.",
            "thumb": 1, "user_id": f"thumb{n}", "time": f"2026-03-02T12:{n:02d}:00Z"}  # fmt: skip


@dataclass
class Desk:
    """A folder with a loop, and what it did."""

    folder: Path
    trained: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)  # of data.train, by training
    gated: list[tuple[str, str]] = field(default_factory=list)
    audits: list[dict[str, Path]] = field(default_factory=list)  # that each gate was given
    verdict: Verdict = Verdict.PASSED
    told: str = ""
    break_at: Callable[[str], None] = lambda name: None

    def log(self, *events: dict[str, object]) -> None:
        with (self.folder / "log.jsonl").open("a") as file:
            file.writelines(json.dumps(event) + "\n" for event in events)

    def write(self, **changes: object) -> None:
        given = {"logs": ["log.jsonl"], "start": "start", "build": ["split.eval=0", "split.test=0"],
                 "train": [REWARD_MODEL, POLICY], "gate": "gate.yaml", "promote": True, **changes}  # fmt: skip
        (self.folder / "loop.yaml").write_text(yaml.safe_dump(given))

    def run(self, *, anew: bool = False) -> int:
        told = StringIO()
        try:
            return run_loop(self.folder / "loop.yaml", Console(file=told, width=200), anew=anew)
        finally:
            self.told = told.getvalue()

    def nights(self) -> tuple[Night, ...]:
        return Nights(self.folder / "loop").all()

    @property
    def production(self) -> Path:
        release = Registry(self.folder / "registry").current("production")
        assert release is not None
        return Path(release.model)

    def train(self, composed: Composed, *, console: Console) -> None:
        """A run whose model depends on its rows."""
        config = composed.config
        self.break_at(config.name)
        rows = Path(config.data.train).read_text()
        self.trained.append(config.name)
        self.texts.append(rows)
        run = Path(config.run_root) / config.name
        shutil.copytree(self.folder / "start", run / "export" / "step-1")
        (run / "export" / "step-1" / "made.json").write_text(json.dumps([rows, config.policy.model, config.seed]))
        (run / "resolved.yaml").write_text(composed.resolved_yaml)
        (run / "summary.json").write_text("{}")

    def gate(self, candidate: str, against: str, policy: Path, settings: object, registry: Path, record: Path,
             tell: Callable[[str], None], audits: Mapping[str, Path]) -> int:  # fmt: skip
        self.break_at("gate")
        self.gated.append((candidate, against))
        self.audits.append(dict(audits))
        digests = {"candidate": model_digest(Path(candidate)), "current": model_digest(Path(against))}
        record.write_text(json.dumps({"verdict": self.verdict.words, "when": "2026-03-03", "digests": digests}))
        return self.verdict.value


@pytest.fixture
def desk(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    desk = Desk(tmp_path)
    shutil.copytree(tiny_model_dir, tmp_path / "start")
    suite = {"prompts": "asks.jsonl", "reward": {"rules": [{"rule": "finished"}]}}
    (tmp_path / "asks.jsonl").write_text('{"prompt": "Why?"}\n')
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(suite))
    (tmp_path / "gate.yaml").write_text("conditions: [{suite: mine.yaml, must: not_worse, by: 0.1}]\n")
    desk.log(*(choice(n) for n in range(12)), *(thumb(n) for n in range(6)))
    desk.write()
    monkeypatch.setattr(loop_training, "run", desk.train)
    monkeypatch.setattr(loop_release, "decide", desk.gate)
    monkeypatch.setattr(loop_release, "evaluate", lambda *given: [])
    monkeypatch.setattr(loop_release, "write_eval_page", lambda *given: None)
    return desk


@pytest.mark.slow
def test_three_nights(desk: Desk):
    assert desk.run() == 0
    assert desk.trained == ["night-0001-reward-model", "night-0001-policy"]
    first = desk.production
    assert "night-0001-policy" in str(first) and desk.gated == [(str(first), str(desk.folder / "start"))]

    assert desk.run() == 0
    assert "nothing new since night 1" in desk.told and len(desk.nights()) == 1 and len(desk.trained) == 2

    desk.log(thumb(6), thumb(7))
    assert desk.run() == 0
    assert "2 new judgements since night 1" in desk.told and "built whole" in desk.told
    assert desk.production != first and desk.gated[-1] == (str(desk.production), str(first))
    assert (
        '"c3"' in desk.texts[2] and '"t0"' in desk.texts[3] and '"t7"' in desk.texts[3]
    )  # all rows, from the current model
    assert [stage.name for stage in desk.nights()[1].stages] == [
        "build", "train reward-model", "train policy", "gate", "promote",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_training_of_equal_rows_models_and_settings_is_used_again(desk: Desk):
    settings = [s.replace("{current}", str(desk.folder / "start")) for s in REWARD_MODEL["settings"]]  # type: ignore[attr-defined]
    desk.write(train=[{**REWARD_MODEL, "settings": settings}, POLICY])
    desk.run()
    desk.log(thumb(6))  # no pair more
    desk.run()

    assert desk.trained == ["night-0001-reward-model", "night-0001-policy", "night-0002-policy"]
    assert "reward-model: the model of night 1 is used again" in desk.told
    desk.log(choice(12))
    desk.run()
    assert desk.trained[-2:] == ["night-0003-reward-model", "night-0003-policy"]

    weights = desk.folder / "start" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")  # the same size, another model
    desk.log(thumb(7))
    desk.run()
    assert "night-0004-reward-model" in desk.trained


@pytest.mark.slow
def test_new_rows_alone_continue_from_the_current_model(desk: Desk):
    desk.write(train=[{**POLICY, "rows": "new"}])
    desk.run()
    assert "every row is new" in desk.told and desk.texts[0].count("\n") == 6
    desk.verdict = Verdict.FAILED
    desk.log(thumb(6))
    assert desk.run() == Verdict.FAILED.value
    assert "1 new rows of sft; 6 that the current model was trained on are left out" in desk.told
    desk.verdict = Verdict.PASSED
    desk.log(thumb(7))
    desk.run()
    assert {row for row in ("t5", "t6", "t7") if f'"{row}"' in desk.texts[-1]} == {"t6", "t7"}  # the failed night's too

    desk.write(train=[{**POLICY, "rows": "new"}], min_new_events=2)  # other settings: a night without a new judgement
    gated = len(desk.gated)
    assert desk.run() == 0
    assert "settings have changed" in desk.told and "no new row of sft; the current model stays" in desk.told
    assert "the candidate is the current model" in desk.told and len(desk.gated) == gated


@pytest.mark.slow
def test_a_training_may_be_limited_to_some_rows(desk: Desk):
    desk.write(train=[{**POLICY, "most": 5}])
    desk.run()
    assert "policy: 5 of 6 rows of sft" in desk.told and desk.texts[0].count("\n") == 5


@pytest.mark.slow
@pytest.mark.parametrize("where", ["night-0001-reward-model", "night-0001-policy", "gate"])
def test_a_killed_night_goes_on_where_it_was(desk: Desk, where: str):
    def break_once(name: str) -> None:
        if name == where:
            desk.break_at = lambda name: None
            raise Stopped("killed")

    desk.break_at = break_once
    with pytest.raises(Stopped) as stopped:
        desk.run()
    assert stopped.value.problems[-1].startswith("killed; the loop goes on with: raylign loop --config ")
    desk.log(choice(12))  # of the next night
    assert desk.run() == 0
    assert "night 1, begun" in desk.told
    assert desk.trained == ["night-0001-reward-model", "night-0001-policy"]  # each once
    assert len(desk.gated) == 1 and "c12" not in "".join(desk.texts)
    assert desk.run() == 0 and desk.trained[-1] == "night-0002-policy"


@pytest.mark.slow
def test_a_stop_after_a_training_is_heard_though_ray_has_taken_the_signals(desk: Desk):
    def ray_like(name: str) -> None:
        if name == "gate":
            assert callable(signal.getsignal(signal.SIGTERM)), "this would end the tests"
            os.kill(os.getpid(), signal.SIGTERM)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    before = signal.getsignal(signal.SIGTERM)
    desk.break_at = ray_like
    with pytest.raises(Stopped) as stopped:
        desk.run()
    assert stopped.value.problems[-1].startswith("stopped by SIGTERM; the loop goes on with")
    assert signal.getsignal(signal.SIGTERM) == before
    desk.break_at = lambda name: None
    assert desk.run() == 0 and len(desk.trained) == 2


@pytest.mark.slow
def test_what_ended_before_it_was_noted_is_not_done_again(desk: Desk):
    desk.run()
    (night,) = desk.nights()
    nights = Nights(desk.folder / "loop")
    for kept in range(5):  # killed between the end of each stage and its note
        nights.keep(Night(night.number, night.began, night.settings, night.forgotten, night.stages[:kept]))
        if kept < 4:  # with the gate's note lost, the alias too is as it was then
            shutil.rmtree(desk.folder / "registry", ignore_errors=True)
        assert desk.run() == 0
        assert desk.trained == ["night-0001-reward-model", "night-0001-policy"]
        assert len(Registry(desk.folder / "registry").history("production")) == 1


@pytest.mark.slow
def test_a_candidate_that_does_not_pass_is_not_promoted(desk: Desk):
    desk.verdict = Verdict.NOT_ENOUGH
    assert desk.run() == Verdict.NOT_ENOUGH.value
    assert Registry(desk.folder / "registry").current("production") is None
    assert "not promoted" in desk.nights()[0].outcome
    assert desk.run() == 0 and len(desk.nights()) == 1  # nothing new


@pytest.mark.slow
def test_what_was_forgotten_in_any_night_stays_forgotten(desk: Desk):
    desk.run()
    forget(desk.folder / "loop" / "night-0001" / "build", users=["user3"], with_report=False)
    assert desk.run() == 0
    assert "something is to be forgotten since night 1" in desk.told
    assert '"c4"' in desk.texts[2] and '"c3"' not in desk.texts[2]
    assert desk.run() == 0 and "nothing new since night 2" in desk.told  # the forgotten event is not a new one


@pytest.mark.slow
def test_a_judgement_that_was_changed_begins_a_night_and_a_log_in_two_files_trains_nothing(desk: Desk):
    desk.run()
    log = desk.folder / "log.jsonl"
    log.write_text(log.read_text().replace('"choice": "a"', '"choice": "b"', 1))
    assert desk.run() == 0
    assert "no new judgement since night 1, but other files: log.jsonl" in desk.told and len(desk.trained) == 4
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:9]))
    (desk.folder / "more.jsonl").write_text("".join(lines[9:]))
    desk.write(
        logs=["log.jsonl", "more.jsonl"],
        train=[
            {**one, "settings": [*one["settings"][:1], f"policy.model={desk.folder}/start"]}
            for one in (REWARD_MODEL, POLICY)
        ],
    )  # type: ignore[index]
    desk.run()
    trained = len(desk.trained)
    log.write_text("".join(lines))
    (desk.folder / "more.jsonl").write_text(lines[-1])
    assert desk.run() == 0
    assert "but other files" in desk.told and len(desk.trained) == trained


@pytest.mark.slow
def test_too_little_and_nothing_begin_no_night(desk: Desk):
    desk.write(min_new_events=100)
    assert desk.run() == 0
    assert "18 new judgements in the log, fewer than min_new_events=100" in desk.told and not desk.nights()
    (desk.folder / "log.jsonl").write_text("")
    desk.log(thumb(1))
    desk.write()
    assert desk.run() == Verdict.NOT_ENOUGH.value  # a thumb is no pair
    assert "no row of pairs" in desk.nights()[0].outcome
    desk.log(*(choice(n) for n in range(12)))
    assert desk.run() == 0 and desk.production  # a night that had too little does not block the next


@pytest.mark.slow
def test_other_settings_in_the_middle_of_a_night_are_refused(desk: Desk):
    def broken(name: str) -> None:
        raise DataError("data.train: no good.")

    desk.break_at = broken
    with pytest.raises(DataError) as refused:
        desk.run()
    assert "--anew" in refused.value.problems[-1]
    desk.write(promote=False)
    with pytest.raises(UserError, match="settings have changed since night 1 began"):
        desk.run()
    desk.break_at = lambda name: None
    assert desk.run(anew=True) == 0 and [night.number for night in desk.nights()] == [1, 2]


@pytest.mark.slow
def test_a_second_loop_in_the_folder_is_refused(desk: Desk):
    (desk.folder / "loop").mkdir()
    lock = hold(desk.folder / "loop" / ".lock", "test", "")
    with pytest.raises(UserError, match=f"folder=loop: .* in use by process {os.getpid()}"):
        desk.run()
    os.close(lock)
    assert desk.run() == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"logs": []}, "logs: there are none"),
        ({"logs": ["gone.jsonl"]}, "logs: gone.jsonl: there is no such file"),
        ({"start": "gone"}, "gone: there is neither a run nor an exported model"),
        ({"train": []}, "train: there is none"),
        ({"gate": ""}, "promote: true needs a gate"),
        ({"evaluate": ["arithmetics"]}, "arithmetics"),
        ({"build": ["split.evil=0"]}, "split.evil"),
        ({"trian": []}, "did you mean train?"),
        ({"train": [{**POLICY, "name": "current"}]}, "train[0].name='current'"),
        ({"train": [POLICY, POLICY]}, "train[1].name='policy'"),
        ({"train": [{**POLICY, "rows": "new", "settings": []}]}, "train[0].rows=new"),
        ({"train": [{**POLICY, "settings": ["data.train=x"]}]}, "data.train=x: the loop gives this setting itself"),
        ({"train": [{**POLICY, "settings": ["policy.model={polity}"]}]}, "{polity} stands for nothing here"),
        ({"train": [{**POLICY, "settings": ["+experiment=sft_tiny_cpu", "policy.optim.lrr=1"]}]}, "policy.optim.lrr"),
        ({"train": [{**POLICY, "rows": "new", "most": 5}]}, "train[0].most=5"),
        ({"audit": [{"model": "rewards"}]}, "audit[0].model='rewards': no training has that name"),
        ({"audit": [{"model": "policy"}]}, "audit: policy trains sft, which makes no reward model"),
        ({"audit": [{"model": "reward-model", "pairs": ["gone.jsonl"]}]}, "gone.jsonl: there is no such file"),
        ({"audit": [{"model": "reward-model", "agreement": 0.4}]}, "audit[0].agreement=0.4"),
        ({"audit": 2 * [{"model": "reward-model"}]}, "it is audited already"),
        ({"compare": {"rules": ["concise"]}}, "compare.models: there are none"),
        ({"compare": {"models": ["current", "policy"]}}, "compare: nothing says which answer is better"),
        ({"compare": {"models": ["policy"], "rules": ["concise"]}}, "compare.models: 1 given; name 2 to 8"),
        ({"compare": {"models": ["current", "police"], "rules": ["concise"]}}, "'police' is no training"),
        ({"compare": {"models": ["current", "reward-model"], "rules": ["concise"]}}, "a reward model, which writes no"),
        ({"compare": {"models": ["current", "policy"], "reward_model": "policy"}}, "which makes no reward model"),
        (
            {"compare": {"models": ["current", "policy"], "prompts": "x.jsonl", "rules": ["concise"]}},
            "x.jsonl: there is",
        ),
        ({"compare": {"models": ["current", "policy"], "prompts": "facts", "rules": ["concise"]}}, "a suite says how"),
        ({"compare": {"models": ["current", "policy"], "prompts": "asks.jsonl"}}, "compare: nothing says which"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_read(desk: Desk, changes: dict[str, object], said: str):
    desk.write(**changes)
    with pytest.raises(ConfigError) as refused:
        desk.run()
    assert said in "\n".join(refused.value.problems)
    assert not desk.nights() and not desk.trained


def test_an_audit_that_the_loop_does_not_make_is_refused(desk: Desk):
    (desk.folder / "gate.yaml").write_text('audits: [{audit: "{reward-model}"}]\n')
    with pytest.raises(ConfigError, match=r"the loop makes no such audit; add audit: \[{model: reward-model}\]"):
        desk.run()


@pytest.mark.slow
def test_reward_models_are_audited_and_the_gate_reads_it(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[str, AuditSettings]] = []
    monkeypatch.setattr(loop_release, "audit", lambda model, how, tell: asked.append((model, how)) or EMPTY)
    monkeypatch.setattr(loop_release, "headline", lambda found: "it reads")
    monkeypatch.setattr(loop_release, "write_page", lambda path, found: path.write_text("page"))
    monkeypatch.setattr(loop_release, "write_record", lambda path, found: path.write_text("{}"))
    (desk.folder / "gate.yaml").write_text('audits: [{audit: "{reward-model}"}]\n')
    desk.write(
        audit=[{"model": "reward-model", "most": 7}], build=["split.by=prompt", "split.eval=0.4", "split.test=0"]
    )
    assert desk.run() == 0
    night = desk.folder / "loop" / "night-0001"
    ((model, how),) = asked
    assert "night-0001-reward-model" in model and how.most == 7
    assert [Path(file).parts[-3:] for file in how.sources] == [("build", "pairs", "eval.jsonl")]
    assert desk.audits == [{"reward-model": night / "audit-reward-model.json"}]
    assert (night / "audit-reward-model.html").read_text() == "page" and "it reads" in desk.told
    assert [one.name for one in desk.nights()[0].stages][-3:] == ["audit reward-model", "gate", "promote"]

    desk.write(audit=[{"model": "reward-model"}])  # nothing is held out
    assert desk.run() == Verdict.NOT_ENOUGH.value
    assert "audit reward-model: the build holds out no pair" in desk.nights()[1].outcome


@pytest.mark.slow
def test_an_audit_of_the_same_model_on_the_same_pairs_is_used_again(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []
    monkeypatch.setattr(loop_release, "audit", lambda model, how, tell: asked.append(model) or EMPTY)
    monkeypatch.setattr(loop_release, "headline", lambda found: "it reads")
    monkeypatch.setattr(loop_release, "write_page", lambda path, found: path.write_text("page"))
    monkeypatch.setattr(loop_release, "write_record", lambda path, found: path.write_text("{}"))
    desk.verdict = Verdict.FAILED  # so the current model stays, and with it what the reward model begins with
    night = {"audit": [{"model": "reward-model"}], "build": ["split.by=prompt", "split.eval=0.4", "split.test=0"]}
    desk.write(**night)
    desk.run()
    desk.write(**night, min_new_events=2)
    desk.run()
    assert len(asked) == 1 and "reward-model: the audit of night 1 is used again" in desk.told
    later = desk.folder / "loop" / "night-0002"
    assert (later / "audit-reward-model.html").read_text() == "page"
    assert desk.audits[1] == {"reward-model": later / "audit-reward-model.json"}
    assert desk.nights()[1].stage("audit reward-model").said == "it reads"  # type: ignore[union-attr]

    desk.write(**{**night, "audit": [{"model": "reward-model", "most": 3}]})
    desk.run()
    assert len(asked) == 2, "other settings are another audit"


@pytest.mark.slow
def test_models_of_a_night_are_compared_on_questions_held_out(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[Sequence[str], str, Grading, Sequence[str]]] = []

    def page(models: Sequence[str], prompts: str, grading: Grading, settings: object, out: Path, tell: object,
             names: Sequence[str]) -> SimpleNamespace:  # fmt: skip
        asked.append((models, prompts, grading, names))
        return SimpleNamespace(asked=[1, 2, 3])

    monkeypatch.setattr(loop_release, "compare_models", page)
    compare = {"models": ["current", "policy"], "reward_model": "reward-model", "rules": ["concise"], "most": 3}
    held_out = ["split.by=prompt", "split.eval=0.5", "split.test=0"]
    desk.write(compare=compare, build=held_out)
    desk.run()
    ((models, prompts, grading, names),) = asked
    rules, judge = grading.rules, str(grading.reward_model)
    assert names == ["current", "policy"] and rules == ["concise"] and "night-0001-reward-model" in judge
    assert [Path(model).parent.name for model in models] == [desk.folder.name, "export"]
    questions = [json.loads(line)["prompt"][0]["content"] for line in Path(prompts).read_text().splitlines()]
    seen = "".join(desk.texts)
    assert len(set(questions)) == 3 and not any(question in seen for question in questions)
    assert desk.nights()[0].made("compare") == str(desk.folder / "loop" / "night-0001" / "compare.html")

    new = {**POLICY, "rows": "new"}
    desk.write(compare={**compare, "models": ["current", "old"]}, build=held_out,
               train=[REWARD_MODEL, {**new, "name": "old"}, {**POLICY, "settings": [*POLICY["settings"], "seed=5"]}])  # type: ignore[misc] # fmt: skip
    desk.run()
    assert len(asked) == 1 and "one model: nothing to compare" in desk.nights()[1].stage("compare").said  # type: ignore[union-attr]


@pytest.mark.slow
def test_evaluations_are_of_both_models(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[str, Sequence[str]]] = []
    monkeypatch.setattr(loop_release, "evaluate", lambda model, suites, *given: asked.append((model, suites)) or [])
    desk.write(evaluate=["mine.yaml"])
    desk.run()
    assert [Path(model).name for model, _ in asked] == ["step-1", "start"]
    assert desk.nights()[0].stage("evaluate") is not None
    assert "both models' answers are used again" in desk.told, "nothing was asked, and it says so"
