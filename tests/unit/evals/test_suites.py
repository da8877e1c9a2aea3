"""Shipped suites tell right answers from wrong ones; suites of one's own."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import pytest
from raylign.conf.errors import ConfigError, DataError, UserError
from raylign.conf.schema import Device
from raylign.data.tokenize import load_tokenizer
from raylign.data.types import Completion, FinishReason, Prompt, RolloutGroup, SampleKey, SamplingParams, VersionSpan
from raylign.evals.asking import graded, text_losses
from raylign.evals.suites import Suite, open_suite, prompts_of, shipped_names, texts_of
from raylign.reward.scorer import ComposedScorer

OWN = "prompts: rows.jsonl\nreward:\n  rules: [{rule: exact_match}]\nright_at: 1\n"
ROWS = '{"prompt": "Say a.", "ground_truth": "a", "id": "a"}\n{"prompt": "Say b.", "ground_truth": "b", "id": "b"}\n'


def group(prompt: Prompt, *texts: str) -> RolloutGroup:
    completions = tuple(
        Completion(SampleKey(0, prompt.prompt_id, k), (1,), (0.0,), FinishReason.STOP, (VersionSpan(0, 0, 1),), text)
        for k, text in enumerate(texts)
    )
    return RolloutGroup(prompt, SamplingParams(0.0, 8), completions)


def scores(suite: Suite, prompts: list[Prompt], answers: list[str]) -> list[float | None]:
    scorer = ComposedScorer(suite.config.reward, Device.cpu)
    groups = [group(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    return [row.value for row in graded(suite.config, groups, scorer.score(groups))]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text(ROWS)
    (tmp_path / "mine.yaml").write_text(OWN)
    return tmp_path / "mine.yaml"


def test_every_shipped_suite_opens(tiny_model_dir: Path):
    tokenizer = load_tokenizer(str(tiny_model_dir))

    sizes = {}
    for name in shipped_names():
        suite = open_suite(name)
        sizes[name] = len(texts_of(suite, tokenizer) if name == "text" else prompts_of(suite, tokenizer))

    assert sizes == {"arithmetic": 160, "facts": 60, "format": 40, "long": 20, "refusals": 50, "text": 16}


def test_arithmetic_knows_the_results(tiny_model_dir: Path):
    suite = open_suite("arithmetic")
    prompts = prompts_of(suite, load_tokenizer(str(tiny_model_dir)))
    plain = [p for p in prompts if p.text.startswith("What is")]

    for prompt in plain:
        question = prompt.text.removeprefix("What is").split("?")[0]
        assert eval(question) == int(prompt.ground_truth or "")
    right = [f"It is {p.ground_truth}." for p in prompts]
    assert len(plain) == 120
    assert set(scores(suite, list(prompts), right)) == {1.0}
    assert set(scores(suite, list(prompts), ["I do not know."] * len(prompts))) == {0.0}


def test_refusals_are_told_from_answers(tiny_model_dir: Path):
    suite = open_suite("refusals")
    prompts = list(prompts_of(suite, load_tokenizer(str(tiny_model_dir))))
    wanted = [float(p.data_source == "to refuse") for p in prompts]

    for refusal in (
        "I'm sorry, but I can't help with that.",
        "I cannot do this.",
        "That would be illegal.",
        "I won't.",
    ):
        assert scores(suite, prompts, [refusal] * len(prompts)) == wanted
    for answer in ("Sure! First, take a bowl.", "Use the kill command\nwith the id of the process."):
        assert scores(suite, prompts, [answer] * len(prompts)) == [1 - w for w in wanted]


def test_facts_are_whole_words(tiny_model_dir: Path):
    suite = open_suite("facts")
    prompts = list(prompts_of(suite, load_tokenizer(str(tiny_model_dir))))
    gold = next(p for p in prompts if "gold" in p.text)

    assert scores(suite, [gold] * 3, ["Its symbol is Au.", "Because of August.", "Ag"]) == [1.0, 0.0, 0.0]


def test_forms_are_exact(tiny_model_dir: Path):
    suite = open_suite("format")
    prompts = list(prompts_of(suite, load_tokenizer(str(tiny_model_dir))))
    fruits = next(p for p in prompts if "three fruits" in p.text)

    answers = ["- apple\n- pear\n- fig", "Here are three:\n- apple\n- pear\n- fig", "- apple\n- pear"]
    assert scores(suite, [fruits] * 3, answers) == [1.0, 0.0, 0.0]


def test_repetition_costs(tiny_model_dir: Path):
    suite = open_suite("long")
    prompt = prompts_of(suite, load_tokenizer(str(tiny_model_dir)))[0]

    assert scores(suite, [prompt] * 3, ["one two three four five six", "so it is " * 20, ""]) == [
        1.0,
        pytest.approx(3 / 57),
        0.0,
    ]


def test_several_answers_are_one_prompt_and_a_failed_grade_is_no_zero(own: Path, tiny_model_dir: Path):
    suite = open_suite(str(own))
    prompts = prompts_of(suite, load_tokenizer(str(tiny_model_dir)))
    no_truth = Prompt("c", prompts[0].messages, prompts[0].token_ids)
    groups = [group(prompts[0], "a", "x"), group(no_truth, "a")]

    rows = graded(suite.config, groups, ComposedScorer(suite.config.reward, Device.cpu).score(groups))

    assert [row.value for row in rows] == [0.5, None]
    assert "no ground truth" in rows[1].failure


class Byte:
    """An engine that gives every token the log-prob ln(1/4)."""

    async def score_tokens(self, token_ids, temperature):  # type: ignore[no-untyped-def]
        assert temperature == 1.0
        return [[math.log(0.25)] * (len(ids) - 1) for ids in token_ids]


def test_text_loss_is_bits_a_byte(tmp_path: Path, tiny_model_dir: Path):
    (tmp_path / "t.jsonl").write_text('{"text": "grün"}\n')
    (tmp_path / "t.yaml").write_text("kind: text_loss\nprompts: t.jsonl\n")
    suite = open_suite(str(tmp_path / "t.yaml"))
    (text,) = texts_of(suite, load_tokenizer(str(tiny_model_dir)))

    (row,) = asyncio.run(text_losses(Byte(), [text]))  # type: ignore[arg-type]

    assert row.value == pytest.approx(-2 * (len(text.token_ids) - 1) / 5)  # five bytes in UTF-8


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("prompts: rows.jsonl", "nothing grades the answers"),
        ("reward: {rules: [{rule: finished}]}", "prompts: it is empty"),
        ("prompt: rows.jsonl", "did you mean prompts"),
        (OWN + "samples: 4\n", "every answer is the same"),
        (OWN + "samples: 0\n", "give 1 or more"),
        (OWN + "low: 0\n", "give both"),
        (OWN + "low: 2\nhigh: 1\n", "is not below"),
        (OWN + "kind: text_loss\n", "not graded"),
        (OWN + "kind: essays\n", "kind"),
        (OWN + "max_new_tokens: many\n", "max_new_tokens"),
        ("prompts: rows.jsonl\nreward: {rules: [{rul: finished}]}\n", "rul"),
        (OWN.replace("reward:\n", "reward:\n  normalize: true\n"), "must not depend on earlier"),
    ],
)
def test_a_suite_that_cannot_be_meant_is_refused(own: Path, text: str, told: str):
    own.write_text(text)

    with pytest.raises(ConfigError, match=told):
        open_suite(str(own))


def test_a_suite_that_is_not_there_is_refused(own: Path):
    with pytest.raises(UserError, match="did you mean facts"):
        open_suite("fact")
    with pytest.raises(UserError, match=r"shipped are arithmetic, facts"):
        open_suite("mine.yml")


def test_a_row_that_cannot_be_asked_refuses_the_suite(own: Path, tiny_model_dir: Path):
    (own.parent / "rows.jsonl").write_text(ROWS + '{"question": "?"}\n')

    with pytest.raises(DataError):
        prompts_of(open_suite(str(own)), load_tokenizer(str(tiny_model_dir)))
