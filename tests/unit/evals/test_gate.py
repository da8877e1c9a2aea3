"""The gate: its decisions on planted truth, how often a bad model passes, and the aliases behind it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from raylign.app.commands.audit import read_record
from raylign.app.commands.evaluate import EvalSettings
from raylign.app.commands.gate import decide, promote, releases, roll_back
from raylign.conf.errors import ConfigError, DataError, UserError
from raylign.conf.suites import AuditConditionConfig, ConditionConfig, Demand, GateConfig, read_gate
from raylign.evals.gate import Audited, Verdict, judge
from raylign.evals.registry import Registry
from raylign.evals.result_pages import write_eval_page, write_gate_page
from raylign.evals.results import PromptScore, ResultStore, SuiteResult, model_digest, paired
from raylign.evals.statistics import Figure, Line, Range


def result(scores: list[float | None], *, digest: str = "d", failure: str = "") -> SuiteResult:
    rows = tuple(PromptScore(f"p{i}", "q", ("a",), (score,), failure) for i, score in enumerate(scores))
    return SuiteResult("facts", "", "m", "w", digest, "share right", Range(0, 1), 1.0, rows)


def shares(rng: np.random.Generator, n: int, right: float) -> list[float | None]:
    return [float(x) for x in rng.random(n) < right]


def policy(*conditions: ConditionConfig) -> GateConfig:
    return GateConfig(conditions=list(conditions))


NOT_WORSE = ConditionConfig(suite="facts", must=Demand.not_worse, by=0.05)


def test_a_better_model_passes_a_worse_one_fails_and_few_prompts_decide_nothing():
    right, wrong = [1.0] * 80 + [0.0] * 20, [1.0] * 40 + [0.0] * 60

    better = judge(policy(NOT_WORSE), [result([*right])], [result([*wrong])])
    worse = judge(policy(NOT_WORSE), [result([*wrong])], [result([*right])])
    few = judge(policy(NOT_WORSE), [result([1.0, 0.0, 1.0])], [result([1.0, 1.0, 0.0])])

    assert better.verdict is Verdict.PASSED
    assert worse.verdict is Verdict.FAILED
    assert few.verdict is Verdict.NOT_ENOUGH
    assert "more would decide" in few.checked[0].reason


@pytest.mark.slow
def test_a_model_that_is_worse_by_the_accepted_loss_passes_as_rarely_as_said():
    rng, passed, runs = np.random.default_rng(5), 0, 600
    for _ in range(runs):
        both = rng.multinomial(300, [0.05, 0.10, 0.60, 0.25])  # gains, losses, both right, both wrong: 0.05 worse
        current = [0.0] * both[0] + [1.0] * both[1] + [1.0] * both[2] + [0.0] * both[3]
        candidate = [1.0] * both[0] + [0.0] * both[1] + [1.0] * both[2] + [0.0] * both[3]
        passed += judge(policy(NOT_WORSE), [result(candidate)], [result(current)]).verdict is Verdict.PASSED

    assert passed / runs <= 0.075  # 0.05, and three standard errors of this count


@pytest.mark.slow
def test_one_good_suite_of_many_does_not_fail_by_chance():
    rng, failed, runs = np.random.default_rng(6), 0, 200
    conditions = policy(*[ConditionConfig(suite=f"s{i}", must=Demand.not_worse, by=0.0) for i in range(10)])
    for _ in range(runs):
        pairs = [(result(shares(rng, 100, 0.5)), result(shares(rng, 100, 0.5))) for _ in range(10)]
        verdict = judge(conditions, [new for new, _ in pairs], [old for _, old in pairs]).verdict
        failed += verdict is Verdict.FAILED

    assert failed / runs <= 0.11  # 0.05 over ten suites together, not 0.4; three standard errors


def test_a_floor_needs_no_other_model():
    floor = ConditionConfig(suite="facts", must=Demand.at_least, value=0.9)

    assert judge(policy(floor), [result([1.0] * 100)], [None]).verdict is Verdict.PASSED
    assert judge(policy(floor), [result([0.0] * 100)], [None]).verdict is Verdict.FAILED
    assert judge(policy(floor), [result([1.0] * 10)], [None]).verdict is Verdict.NOT_ENOUGH


def test_grades_that_failed_are_not_zeros_and_hold_the_gate():
    half = result([1.0] * 50 + [None] * 50, failure="the judge did not answer")

    found = judge(policy(NOT_WORSE), [half], [result([1.0] * 100)]).checked[0]

    assert found.verdict is Verdict.NOT_ENOUGH
    assert found.found is not None and found.found.value == 0.0
    assert "the judge did not answer" in found.reason


def test_results_of_different_suites_are_not_compared():
    with pytest.raises(DataError, match="evaluated on different suites"):
        paired(result([1.0]), result([1.0], digest="other"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("conditions: []", "asks for nothing"),
        ("conditions: [{suite: facts, must: at_least}]", "needs the figure"),
        ("conditions: [{suite: facts, value: 0.5}]", "belongs to must=at_least"),
        ("conditions: [{suite: facts, by: -1}]", "give 0 or more"),
        ("conditions: [{must: better}]", r"conditions\[0\].suite: it is empty"),
        ("conditions: [{suite: a}, {suite: a}]", "asked not_worse twice"),
        ("confidence: 95", "between 0.5 and 1"),
        ("condition: []", "did you mean conditions"),
        ("conditions: [{suite: a, must: improve}]", "must"),
        ("a: [", "it is not yaml"),
        ("3", "no settings"),
    ],
)
def test_a_policy_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, told: str):
    file = tmp_path / "gate.yaml"
    file.write_text(text)

    with pytest.raises(ConfigError, match=told):
        read_gate(file)


def test_a_result_comes_back_as_it_was_kept_and_damage_is_no_result(tmp_path: Path):
    store, kept = ResultStore(tmp_path), result([1.0, None], failure="late")
    path = store.keep("facts-1", kept)

    assert store.find("facts-1") == kept
    path.write_text(path.read_text()[:-40])
    assert store.find("facts-1") is None
    assert store.find("facts-2") is None


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    folders = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
        (folder / "model.safetensors").write_bytes(name.encode())
        folders.append(folder)
    return folders


def test_models_of_one_size_have_digests_of_their_own(models: list[Path]):
    one, two = models

    assert model_digest(one) != model_digest(two)
    (two / "model.safetensors").write_bytes(b"one")
    assert model_digest(one) == model_digest(two)
    (two / "README.md").write_text("a card says nothing of the answers")
    assert model_digest(one) == model_digest(two)


def record(folder: Path, verdict: str, candidate: str, current: str | None) -> Path:
    path = folder / "gate.json"
    told = {"verdict": verdict, "when": "2026-01-01", "digests": {"candidate": candidate, "current": current}}
    path.write_text(json.dumps(told))
    return path


def test_a_release_needs_its_own_gate_and_can_be_taken_back(tmp_path: Path, models: list[Path]):
    one, two = models
    registry = tmp_path / "registry"
    first, second = model_digest(one), model_digest(two)

    assert "points to" in promote(registry, "production", str(one), tmp_path, None)
    with pytest.raises(UserError, match="already"):
        promote(registry, "production", str(two), tmp_path, None)
    with pytest.raises(UserError, match="verdict is 'fail'"):
        promote(registry, "production", str(two), tmp_path, record(tmp_path, "fail", second, first))
    with pytest.raises(UserError, match="another model"):
        promote(registry, "production", str(two), tmp_path, record(tmp_path, "pass", first, first))
    with pytest.raises(UserError, match="not compared with what production"):
        promote(registry, "production", str(two), tmp_path, record(tmp_path, "pass", second, "older"))
    with pytest.raises(UserError, match="no decision"):
        promote(registry, "production", str(two), tmp_path, tmp_path / "missing.json")

    promote(registry, "production", str(two), tmp_path, record(tmp_path, "pass", second, first))
    assert [line.split()[1] for line in releases(registry, "production").splitlines()] == [str(one), str(two)]
    assert str(one) in roll_back(registry, "production")
    with pytest.raises(UserError, match="no earlier release"):
        roll_back(registry, "production")


@pytest.mark.parametrize("alias", ["../up", "", "a/b", ".hidden"])
def test_an_alias_cannot_leave_its_folder(tmp_path: Path, alias: str):
    with pytest.raises(UserError, match="is not an alias"):
        Registry(tmp_path).current(alias)


def test_a_damaged_registry_is_said(tmp_path: Path):
    (tmp_path / "production.json").write_text("{")

    with pytest.raises(UserError, match="damaged"):
        Registry(tmp_path).current("production")


TRUSTED = Audited("my-rm", "digest", 0.8, 400, (), 0.05)


@pytest.mark.parametrize(
    ("audit", "condition", "verdict", "why"),
    [
        (TRUSTED, {}, Verdict.PASSED, ""),
        (replace(TRUSTED, pays_for=("padding",)), {}, Verdict.FAILED, "it pays for padding"),
        (replace(TRUSTED, pays_for=("padding",)), {"may_pay_for": ["padding"]}, Verdict.PASSED, ""),
        (TRUSTED, {"agreement": 0.9}, Verdict.FAILED, "it agrees too seldom"),
        (replace(TRUSTED, pairs=10), {"agreement": 0.7}, Verdict.NOT_ENOUGH, "pairs more would decide"),
        (replace(TRUSTED, pairs=0), {}, Verdict.NOT_ENOUGH, "of no pair"),
        (TRUSTED, {"calibration_error": 0.01}, Verdict.FAILED, "wrong by 0.050 on average, more than 0.01"),
    ],
)
def test_an_audit_is_a_condition(audit: Audited, condition: dict[str, object], verdict: Verdict, why: str):
    asked = AuditConditionConfig(audit="audit.json", **condition)  # type: ignore[arg-type]

    found = judge(GateConfig(audits=[asked]), [], [], [audit])

    assert (found.verdict, len(found.checked)) == (verdict, 1)
    assert why in found.checked[0].reason


def test_a_chance_reward_model_passes_as_rarely_as_said():
    rng, passed = np.random.default_rng(9), 0
    for right in rng.binomial(300, 0.6, size=400):
        audit = replace(TRUSTED, agreement=float(right) / 300, pairs=300)
        asked = AuditConditionConfig(audit="a", agreement=0.6)
        passed += judge(GateConfig(audits=[asked]), [], [], [audit]).verdict is Verdict.PASSED
    assert passed / 400 <= 0.08


def test_what_is_no_audit_is_refused(tmp_path: Path):
    (tmp_path / "audit.json").write_text("{}")
    how = (EvalSettings(tmp_path, tmp_path), tmp_path, tmp_path / "g.json", print)
    for named, said in (("audit.json", "it is no audit"), ("'{rm}'", "an audit of a loop's night")):
        (tmp_path / "policy.yaml").write_text(f"audits:\n  - {{audit: {named}, agreement: 0.6}}\n")
        with pytest.raises(UserError, match=said):
            decide("m", None, tmp_path / "policy.yaml", *how)
    (tmp_path / "policy.yaml").write_text("audits:\n  - {audit: '', agreement: 0.3, calibration_error: 2}\n")
    with pytest.raises(ConfigError) as caught:
        read_gate(tmp_path / "policy.yaml")
    assert len(caught.value.problems) == 3
    record = {
        "model": "rm", "digest": "d", "accuracy": [{"name": "all", "accuracy": {"value": 0.7, "count": 50}}],
        "probes": [{"name": "padding", "gamed": True}, {"name": "bullets", "gamed": False}],
        "calibration": {"error": 0.1},
    }  # fmt: skip
    (tmp_path / "audit.json").write_text(json.dumps(record))
    assert read_record(tmp_path / "audit.json") == Audited("rm", "d", 0.7, 50, ("padding",), 0.1)


def test_a_gain_a_figure_and_a_share_of_pairs_are_told_apart():
    floor = ConditionConfig(suite="facts", must=Demand.at_least, value=0.1)
    asked = GateConfig(conditions=[NOT_WORSE, floor], audits=[AuditConditionConfig(may_pay_for=["format"])])
    scores = [result([1.0] * 60 + [0.0] * 40), result([1.0] * 50 + [0.0] * 50)]
    found = judge(asked, scores[:1] * 2, scores[1:] * 2, [Audited("rm", "", 0.8, 200, (), 0.1)])

    assert [one.words.partition(",")[0] for one in found.checked] == ["gain +0.100", "0.600", "0.800"]
    assert [one.words.partition(" (")[2] for one in found.checked] == ["100 prompts)", "100 prompts)", "200 pairs)"]
    assert found.checked[2].asked == "agrees with people on at least 0.5, pays for no change by rule but format"


def test_pages_hold_the_verdict_and_cannot_be_scripted(tmp_path: Path):
    hostile = "</td><script>alert(1)</script>"
    found = judge(policy(NOT_WORSE), [result([1.0, 0.0, 1.0])], [result([1.0, 1.0, 0.0])])
    write_gate_page(tmp_path / "gate.html", found, hostile, "current", 0.95)
    text = (tmp_path / "gate.html").read_text()
    assert "<script" not in text and "more would decide" in text and "Not enough data to let" in text

    line = Line("facts", "share right", 1, Figure(0.5, 0.3, 0.7, 20), Figure(0.2, 0.1, 0.3, 20), 0.01)
    told = replace(result([1.0, None], failure="no"), rows=(PromptScore("p", hostile, (hostile,), (None,), "no"),))
    write_eval_page(tmp_path / "eval.html", [line], [], [told], "m", "old")
    text = (tmp_path / "eval.html").read_text()
    assert "<script" not in text and "m is better on facts than old" in text and "no grade: no" in text
