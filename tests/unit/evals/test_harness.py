"""Tasks of lm-evaluation-harness: its log of samples as scores, and where it is installed, its own library on our face.

`harness_samples.json` is what lm_eval 0.4.13 logged of three tasks, with planted answers and log-probs.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from raylign.conf.errors import ConfigError, DataError, UserError
from raylign.data.tokenize import load_tokenizer
from raylign.data.types import Completion, FinishReason, RolloutGroup, VersionSpan
from raylign.evals import suites
from raylign.evals.harness import Metric, chosen_metric, scored
from raylign.evals.suites import open_suite
from raylign.rollout.interfaces import GenerationRequest

SAMPLES = json.loads(Path(__file__).with_name("harness_samples.json").read_text())
ACC = Metric("acc", "", True)
CHOICE = """
task: colours
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
doc_to_target: {target}
{more}
"""


def of(task: str) -> dict[str, list[dict]]:
    return {task: SAMPLES[task]}


def test_choices_are_right_or_wrong_and_the_likeliest_is_the_answer():
    rows = scored(of("local_facts"), ACC)

    logged = SAMPLES["local_facts"]
    assert [row.value for row in rows] == [one["acc"] for one in logged] and {row.value for row in rows} == {0.0, 1.0}
    assert [row.prompt_id for row in rows] == [f"local_facts:{one['doc_id']}" for one in logged]
    for row, one in zip(rows, logged, strict=True):
        (answer,) = row.answers
        assert (answer.strip() == one["doc"]["choices"][one["doc"]["gold"]]) == (row.value == 1.0)
        assert row.prompt.startswith("Question: ") and row.slices == ("subset: local_facts",)


def test_generated_answers_are_kept_beside_their_grade():
    rows = scored(of("local_sums"), Metric("exact_match", "first-number", True))

    assert [row.value for row in rows] == [one["exact_match"] for one in SAMPLES["local_sums"]]
    assert all(row.answers == (one["resps"][0][0],) for row, one in zip(rows, SAMPLES["local_sums"], strict=True))


def test_a_text_is_scored_by_its_log_prob_in_bits_a_byte():
    metric = Metric("bits_per_byte", "", False)
    rows = scored(of("local_texts"), metric)

    for row, one in zip(rows, SAMPLES["local_texts"], strict=True):
        logprob, size = one["bits_per_byte"]
        assert size == len(one["doc"]["text"].encode())
        assert row.value == pytest.approx(logprob / size / math.log(2)) and row.value < 0 and row.answers == ()
    assert (metric.unit, metric.possible) == ("bits a byte, negative", None)
    assert (ACC.unit, ACC.possible and ACC.possible.high) == ("share right", 1.0)


def test_less_is_better_where_the_task_says_so():
    sample = {**SAMPLES["local_facts"][0], "error": 0.25}

    assert [row.value for row in scored({"t": [sample]}, Metric("error", "", False))] == [-0.25]


def test_what_has_no_score_of_a_sample_is_refused_by_name():
    with pytest.raises(DataError, match="metric bleu has no number for a single sample"):
        scored({"t": [{**SAMPLES["local_facts"][0], "bleu": ["a", "b"]}]}, Metric("bleu", "", True))
    with pytest.raises(DataError, match="has no filter strict; it has first-number"):
        scored(of("local_sums"), Metric("exact_match", "strict", True))


def test_the_metric_is_the_tasks_first_or_the_one_named():
    both = {"a": {"acc": True, "acc_norm": True}, "b": {"exact_match": True, "acc_norm": True}}

    assert chosen_metric("", {"a": both["a"]}) == ACC
    assert chosen_metric("acc_norm", both) == Metric("acc_norm", "", True)
    assert chosen_metric("exact_match,strict", {"b": both["b"]}) == Metric("exact_match", "strict", True)
    with pytest.raises(DataError, match="acc of a, exact_match of b"):
        chosen_metric("", both)
    with pytest.raises(DataError, match="task b does not have it; it has exact_match"):
        chosen_metric("acc", both)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("harness: {limit: 5}", "harness.tasks: there are none"),
        ("harness: {tasks: [a], limit: -1}", "harness.limit=-1"),
        ("harness: {tasks: [a], num_fewshot: -1}", "harness.num_fewshot=-1"),
        ("harness: {tasks: [a]}\nright_at: 1\nprompts: rows.jsonl", "prompts, right_at: tasks of the harness bring"),
        ("harness: {task: [a]}", "task"),
    ],
)
def test_a_suite_of_tasks_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, told: str):
    (tmp_path / "h.yaml").write_text(text)

    with pytest.raises(ConfigError, match=told):
        open_suite(str(tmp_path / "h.yaml"))


def test_without_the_harness_a_sentence_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "h.yaml").write_text("harness: {tasks: [arc_easy]}")
    monkeypatch.setattr(suites, "find_spec", lambda name: None)

    with pytest.raises(UserError) as caught:
        open_suite(str(tmp_path / "h.yaml"))

    assert caught.value.problems == (suites.NO_HARNESS.format(suite="h"),) and caught.value.exit_code == 2


class Reader:
    """Finds every token that is even likely, and writes `blue`."""

    def generate(self, requests: list[GenerationRequest]) -> list[RolloutGroup]:
        span = (VersionSpan(0, 0, 1),)
        return [
            RolloutGroup(
                one.prompt,
                one.sampling,
                (Completion(one.keys[0], (1,), (0.0,), FinishReason.STOP, span, "blue\n\nand more"),),
            )
            for one in requests
        ]

    def ranked(self, token_ids: list[list[int]]) -> list[list[tuple[float, int]]]:
        return [[(-1.0, 1) if token % 2 == 0 else (-2.0, 2) for token in ids[1:]] for ids in token_ids]


needs_harness = pytest.mark.skipif(
    find_spec("lm_eval") is None, reason="lm-evaluation-harness is not installed: its own library was not tried"
)


@needs_harness
def test_tasks_of_ones_own_are_asked_of_our_engine(tmp_path: Path, tiny_model_dir: Path):
    from raylign.evals.harness_tasks import HarnessTasks

    tokenizer = load_tokenizer(str(tiny_model_dir))
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"question": f"Colour {i}?", "answer": "blue" if i % 2 else "red"}) + "\n" for i in range(6))
    )
    kinds = {
        "generate_until": ("answer", 'generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 8}\nmetric_list: '
                           "[{metric: exact_match, aggregation: mean, higher_is_better: true}]"),
        "multiple_choice": ("0", "doc_to_choice: ['red', 'blue']"),
        "loglikelihood_rolling": ("answer", "metric_list: [{metric: bits_per_byte, aggregation: bits_per_byte, "
                                  "higher_is_better: false}]"),
    }  # fmt: skip
    found = {}
    for kind, (target, more) in kinds.items():
        folder = tmp_path / kind
        folder.mkdir()
        (folder / "colours.yaml").write_text(
            CHOICE.format(rows=tmp_path / "rows.jsonl", kind=kind, target=target, more=more)
        )
        (tmp_path / f"{kind}.yaml").write_text(f"harness: {{tasks: [colours], limit: 4, include_path: {kind}}}\n")
        tasks = HarnessTasks.of(open_suite(str(tmp_path / f"{kind}.yaml")))
        found[kind] = (tasks, tasks.answered(tokenizer, 64, Reader()))
        assert len(tasks) == 4

    generated = found["generate_until"][1]
    assert [(row.answers, row.value) for row in generated] == [(("blue",), float(i % 2)) for i in range(4)]
    for number, row in enumerate(found["multiple_choice"][1]):
        text = f"Colour {number}?"
        logprobs = []
        for choice in (" red", " blue"):
            rest = tokenizer.encode(text + choice)[len(tokenizer.encode(text)) :]
            logprobs.append(sum(-1.0 if token % 2 == 0 else -2.0 for token in rest))
        assert row.value == float(logprobs[0] >= logprobs[1])
    for number, row in enumerate(found["loglikelihood_rolling"][1]):
        answer = "blue" if number % 2 else "red"
        logprob = sum(-1.0 if token % 2 == 0 else -2.0 for token in tokenizer.encode(answer))
        assert row.value == pytest.approx(logprob / len(answer) / math.log(2))

    tasks = found["generate_until"][0]
    fewer = replace(
        tasks.suite, config=replace(tasks.suite.config, harness=replace(tasks.suite.config.harness, limit=3))
    )
    before = tasks.digest
    assert before == HarnessTasks.of(tasks.suite).digest != replace(tasks, suite=fewer).digest
    (tmp_path / "generate_until" / "utils.py").write_text("def graded(answer):\n    return 1.0\n")
    assert tasks.digest != before, "a function of a task may call it"


@needs_harness
def test_what_is_not_here_is_not_fetched(tmp_path: Path):
    (tmp_path / "h.yaml").write_text("harness: {tasks: [hellaswag]}\n")
    code = (
        "from raylign.evals.harness_tasks import HarnessTasks\nfrom raylign.evals.suites import open_suite\n"
        f"try: HarnessTasks.of(open_suite({str(tmp_path / 'h.yaml')!r}))\n"
        "except Exception as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )

    assert "task hellaswag cannot be loaded" in done.stdout and "lm_eval run --model dummy" in done.stdout
