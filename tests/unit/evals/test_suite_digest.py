"""When two results are of the same suite."""

from __future__ import annotations

import json
import os
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from pathlib import Path

import pytest
from raylign.conf.schema import (
    CodeRewardConfig,
    JudgeRewardConfig,
    RemoteRewardConfig,
    RewardConfig,
    RewardFunctionConfig,
    RuleRewardConfig,
)
from raylign.conf.suites import HarnessConfig, SuiteConfig
from raylign.data.tokenize import load_tokenizer
from raylign.evals.suite_digest import chosen, code_digests, default_of, suite_digest
from raylign.evals.suites import open_suite, prompts_of
from raylign.reward import rules

OWN = "prompts: rows.jsonl\nreward:\n  rules: [{rule: exact_match}]\nright_at: 1\n"
ROWS = '{"prompt": "Say a.", "ground_truth": "a", "id": "a"}\n{"prompt": "Say b.", "ground_truth": "b", "id": "b"}\n'
DEFAULTS = Path(__file__).parents[2] / "golden" / "suite_defaults.json"
OF_SUITES = (
    SuiteConfig, RewardConfig, RuleRewardConfig, RewardFunctionConfig, RemoteRewardConfig, JudgeRewardConfig,
    CodeRewardConfig, HarnessConfig,
)  # fmt: skip


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text(ROWS)
    (tmp_path / "mine.yaml").write_text(OWN)
    return tmp_path / "mine.yaml"


def test_what_decides_a_score_is_in_the_digest_and_nothing_else(own: Path, tiny_model_dir: Path):
    tokenizer = load_tokenizer(str(tiny_model_dir))

    def digest(settings: str, rows: str = ROWS, files: dict[str, str] | None = None) -> str:
        own.write_text(settings)
        (own.parent / "rows.jsonl").write_text(rows)
        suite = open_suite(str(own))
        return suite_digest(suite, prompts_of(suite, tokenizer), files or {})

    first = digest(OWN)
    assert digest("about: other words\n" + OWN) == first
    others = [
        digest(OWN + "max_new_tokens: 5\n"),
        digest(OWN + "temperature: 1\n"),
        digest(OWN.replace("right_at: 1", "right_at: 0.5")),
        digest(OWN, ROWS.replace("Say b", "Say bb")),
        digest(OWN, ROWS.replace('"ground_truth": "b"', '"ground_truth": "c"')),
        digest(OWN, files={"f.py": "sha256:1"}),
    ]
    assert len({first, *others}) == len(others) + 1


def test_answers_that_a_rule_graded_otherwise_before_are_of_another_suite(
    own: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    own.write_text("prompts: rows.jsonl\nreward:\n  rules: [{rule: 'length_target:8'}, {rule: exact_match}]\n")
    suite = open_suite(str(own))
    asked = prompts_of(suite, load_tokenizer(str(tiny_model_dir)))
    first = suite_digest(suite, asked, {})
    for name, other in (("length_target", True), ("number_match", False)):
        with monkeypatch.context() as now:
            now.setattr(rules, "RULES", {**rules.RULES, name: replace(rules.RULES[name], version=9)})
            assert (suite_digest(suite, asked, {}) != first) == other


def test_code_that_tasks_call_is_known_by_its_content(tmp_path: Path):
    (tmp_path / "colours").mkdir()
    code = tmp_path / "colours" / "utils.py"
    found = []
    for text in ("def helper(): return 1\n", "def helper(): return 2\n", "def helper(): return 1\n"):
        code.write_text(text)
        (tmp_path / "notes.txt").write_text(f"{len(found)}")
        found.append(code_digests(tmp_path))
    assert found[0] == found[2] != found[1] and list(found[0]) == ["colours/utils.py"]


def test_a_setting_that_a_later_version_adds_leaves_results_what_they_were():
    @dataclass(kw_only=True)
    class Now(RewardConfig):
        sandbox: str = "bubblewrap"

    @dataclass(kw_only=True)
    class Suite(SuiteConfig):
        reward: Now

    rules = [RuleRewardConfig(rule="finished", weight=2.0)]
    now = Suite(prompts="a", right_at=1.0, reward=Now(rules=rules))
    before = SuiteConfig(prompts="a", right_at=1.0, reward=RewardConfig(rules=rules))

    assert chosen(now) == chosen(before)
    assert chosen(before)["reward"] == {"rules": [{"rule": "finished", "weight": 2.0}]}  # type: ignore[index]
    assert chosen(Suite(prompts="a", reward=Now(sandbox="none")))["reward"] == {"sandbox": "none"}  # type: ignore[index]


def test_no_default_changes_below_results_that_are_kept():
    """Refresh after a wanted change: RAYLIGN_REFRESH_GOLDEN=1 pytest tests/unit/evals; then read the diff."""
    now = {kind.__name__: {one.name: plain(default_of(one)) for one in fields(kind)} for kind in OF_SUITES}
    if os.environ.get("RAYLIGN_REFRESH_GOLDEN"):
        DEFAULTS.write_text(json.dumps(now, indent=1) + "\n")
    before = json.loads(DEFAULTS.read_text())

    assert now == before, "refresh it; where a default changed that was there, raise suite_digest.DEFAULTS, too"
    nested = {type(part) for kind in OF_SUITES for part in map(default_of, fields(kind)) if is_dataclass(part)}
    assert nested <= set(OF_SUITES)


def plain(default: object) -> object:
    return "must be given" if default is MISSING else chosen(default)


def test_a_suite_that_has_moved_is_the_same_suite(tmp_path: Path, tiny_model_dir: Path):
    tokenizer = load_tokenizer(str(tiny_model_dir))
    judge = "{url: http://127.0.0.1:1/v1, model: m, rubric: r.md}"
    grading = f"reward: {{functions: [{{path: 'mine.py:score'}}], judges: [{judge}]}}\n"
    digests = []
    for name in ("here", "there"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "mine.py").write_text("def score(completions, **columns):\n    return [0.0 for _ in completions]\n")
        (folder / "r.md").write_text("Give a number.\n")
        (folder / "rows.jsonl").write_text(ROWS)
        (folder / "mine.yaml").write_text("prompts: rows.jsonl\n" + grading)
        suite = open_suite(str(folder / "mine.yaml"))
        assert suite.config.reward.functions[0].path.startswith(str(folder))
        digests.append(suite_digest(suite, prompts_of(suite, tokenizer), {"f": "sha256:1"}))

    assert digests[0] == digests[1]
