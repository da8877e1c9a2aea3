"""What a named score means: its scale and its polarity, by name over the whole log.

Answers that begin with GOOD are right ones, with BAD wrong ones.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from raylign.conf.errors import ConfigError, DataError
from raylign.feedback.importers import ImportResult, read_log
from raylign.feedback.importers.score_names import Named, named
from raylign.feedback.overrides import parse_settings
from raylign.feedback.scores import parse_scores

Answer = tuple[object, str]  # a value, and GOOD or BAD


def lines(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def table(path: Path, rows: Sequence[dict[str, object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def asked(n: int) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": f"Question {n}?"}]}


def langfuse(folder: Path, name: str, given: Sequence[Answer], kind: str = "NUMERIC", scores: str = "") -> ImportResult:
    rows = [
        {"id": f"s{n}", "traceId": f"t{n}", "name": name, "value": value, "dataType": kind}
        | ({"stringValue": value, "value": 0} if kind == "CATEGORICAL" else {})
        for n, (value, _) in enumerate(given)
    ]
    traces = [{"id": f"t{n}", "input": asked(n), "output": f"{text} {n}"} for n, (_, text) in enumerate(given)]
    return read_log(
        [lines(folder / "scores.jsonl", rows)],
        companion=lines(folder / "traces.jsonl", traces),
        user_salt="s",
        scores=parse_scores(scores),
    )


def langsmith(folder: Path, name: str, given: Sequence[Answer], scores: str = "") -> ImportResult:
    rows = [{"id": f"f{n}", "run_id": f"r{n}", "key": name, "score": value} for n, (value, _) in enumerate(given)]
    runs = [
        {"id": f"r{n}", "inputs": asked(n), "outputs": {"output": f"{text} {n}"}} for n, (_, text) in enumerate(given)
    ]
    return read_log(
        [lines(folder / "feedback.jsonl", rows)],
        companion=lines(folder / "runs.jsonl", runs),
        user_salt="s",
        scores=parse_scores(scores),
    )


def argilla(
    folder: Path, name: str, given: Sequence[Answer], scores: str = "", scale: Sequence[int] = ()
) -> ImportResult:
    rows = [
        {
            "id": f"{n}",
            "fields": {"instruction": f"Question {n}?", "response": f"{text} {n}"},
            "responses": {name: [{"value": value, "user_id": "u"}]},
        }
        for n, (value, text) in enumerate(given)
    ]
    settings = {"questions": [{"name": name, "settings": {"type": "rating", "options": [{"value": v} for v in scale]}}]}
    companion = lines(folder / "settings.json", [settings]) if scale else None
    return read_log(
        [lines(folder / "records.jsonl", rows)], companion=companion, user_salt="s", scores=parse_scores(scores)
    )


def requests(folder: Path, name: str, given: Sequence[Answer], scores: str = "") -> ImportResult:
    """The feedback as CSV: every value is text."""
    rows = [{"request_id": f"q{n}", name: value} for n, (value, _) in enumerate(given)]
    log = [
        {"request_id": f"q{n}", **asked(n), "choices": [{"message": {"role": "assistant", "content": f"{text} {n}"}}]}
        for n, (_, text) in enumerate(given)
    ]
    return read_log(
        [table(folder / "feedback.csv", rows)],
        companion=lines(folder / "log.jsonl", log),
        user_salt="s",
        scores=parse_scores(scores),
    )


def mapped(folder: Path, spec: str, rows: Sequence[dict[str, object]], name: str = "log.csv") -> ImportResult:
    (folder / "map.yaml").write_text(f"source: x\nfields:\n  prompt: q\n  response_a: a\n{spec}")
    path = table(folder / name, rows) if name.endswith("csv") else lines(folder / name, rows)
    return read_log([path], mapping=folder / "map.yaml", user_salt="s")


STARS = [(value, "GOOD" if value > 3 else "BAD") for value in (1, 2, 3, 4, 5) * 3]
OTHER_SCALES = {
    "stars": STARS,
    "only ones and twos": [(1, "BAD"), (2, "GOOD"), (1, "BAD")],
    "one star only, by the name": [(1, "BAD")] * 4,
    "percent": [(0, "BAD"), (1, "BAD"), (100, "GOOD")],
    "0 to 10": [(0, "BAD"), (1, "BAD"), (10, "GOOD")],
    "halves above 1": [(0.5, "BAD"), (1, "BAD"), (1.5, "GOOD")],
    "-2 to 2": [(-2, "BAD"), (1, "GOOD"), (0, "BAD"), (2, "GOOD")],
}


TOOLS = (langfuse, langsmith, argilla, requests)
UNKNOWN_SCALES = [(tool, which) for tool in TOOLS for which in OTHER_SCALES]
UNKNOWN_SCALES.remove((requests, "one star only, by the name"))  # its columns have fixed names, and none says stars


@pytest.mark.parametrize(("tool", "which"), UNKNOWN_SCALES)
def test_a_name_with_a_value_off_the_scale_is_put_aside_as_a_whole(tmp_path: Path, tool, which: str):
    given = OTHER_SCALES[which]
    result = tool(tmp_path, "rating" if tool is requests else "user-stars", given)
    assert (result.events.height, result.quarantined.height) == (0, len(given))
    assert result.quarantined["reason"].n_unique() == 1
    assert "a scale not known here" in result.quarantined["reason"][0]
    (line,) = result.scores
    assert (line.count, line.scale, line.good, line.read_as) == (len(given), "?", "?", "quarantined")


@pytest.mark.parametrize("tool", TOOLS)
def test_the_scale_of_stars_can_be_told(tmp_path: Path, tool):
    name = "rating" if tool is requests else "stars"
    result = tool(tmp_path, name, STARS, scores=f"{{{name}: {{scale: [1, 5], good: high}}}}")
    assert result.events["rating"].to_list() == [0.0, 0.25, 0.5, 0.75, 1.0] * 3
    assert result.quarantined.height == 0
    low = tool(tmp_path, name, STARS, scores=f"{{{name}: {{scale: [1, 5], good: low}}}}")
    assert low.events["rating"].to_list() == [1.0, 0.75, 0.5, 0.25, 0.0] * 3


FAULTS = [
    "hallucination",
    "toxicity",
    "is_harmful",
    "isHarmful",
    "bias-score",
    "thumbs-down",
    "has_error",
    "offensive content",
    "negative_feedback",
    "unsafe",
    "incorrect",
    "user_reported_problem",
]


@pytest.mark.parametrize("name", FAULTS)
def test_yes_to_a_fault_is_bad_and_no_is_not_yet_good(tmp_path: Path, name: str):
    fault = [(True, "BAD"), (False, "GOOD"), (True, "BAD")]
    numbers = [(1, "BAD"), (0, "GOOD"), (1, "BAD")]
    words = [("yes", "BAD"), ("no", "GOOD"), ("yes", "BAD")]
    for result in (
        langfuse(tmp_path, name, fault, "BOOLEAN"),
        langfuse(tmp_path, name, numbers),
        langsmith(tmp_path, name, numbers),
        argilla(tmp_path, name, words),
    ):
        assert result.events["thumb"].to_list() == [-1, -1]
        assert "an answer without it need not be good" in result.quarantined["reason"][0]
        assert result.scores[0].read_as == "thumb down"
    told = langsmith(tmp_path, name, numbers, scores=f'{{"{name}": {{good: low}}}}')
    assert told.events["thumb"].to_list() == [-1, 1, -1]


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        *((name, Named.FAULT) for name in FAULTS),
        *(
            (name, Named.APPROVAL)
            for name in ("harmlessness", "user_score", "helpful", "isCorrect", "user-feedback", "csat")
        ),
        *(
            (name, Named.MIXED)
            for name in ("no_hallucination", "not harmful", "error-free", "nontoxic", "good_or_bad", "factual-error")
        ),
        *((name, Named.ORDER) for name in ("rank", "position", "final_ranking")),
        *((name, Named.UNKNOWN) for name in ("verbosity", "latency", "Bewertung", "x", "", "length", "temperature")),
    ],
)
def test_what_names_say(name: str, meaning: Named):
    assert named(name) is meaning


@pytest.mark.parametrize(
    "name", ["verbosity", "no_hallucination", "rank", "length_ok_or_bad", "Halluzination", "confidence"]
)
@pytest.mark.parametrize("values", [(1, 0), (0.9, 0.1), (True, False), (1, 2)])
def test_what_a_name_does_not_say_is_never_guessed(tmp_path: Path, name: str, values: tuple[object, object]):
    for result in (
        langfuse(tmp_path, name, [(value, "x") for value in values]),
        langsmith(tmp_path, name, [(value, "x") for value in values]),
    ):
        assert result.events.height == 0
        assert all(f"reading.scores={{{name}: " in reason for reason in result.quarantined["reason"])


@pytest.mark.parametrize("word", ["👍", "thumbs-up", "Good", "positive", "liked"])
def test_words_for_good_and_bad_say_it_themselves(tmp_path: Path, word: str):
    result = langfuse(tmp_path, "mood", [(word, "GOOD"), ("bad", "BAD"), ("so so", "x")], "CATEGORICAL")
    assert result.events["thumb"].to_list() == [1, -1]
    assert "`so so`, which is no word for good or bad" in result.quarantined["reason"][0]
    told = langfuse(tmp_path, "mood", [("so so", "BAD")], "CATEGORICAL", "{mood: {words: {so so: bad}}}")
    assert told.events["thumb"].to_list() == [-1]


def test_zero_beside_plus_and_minus_one_is_neither(tmp_path: Path):
    result = langsmith(tmp_path, "user_score", [(1, "GOOD"), (0, "BAD"), (-1, "BAD")])
    assert result.events.select("thumb", "rating").rows() == [(1, None), (None, 0.5), (-1, None)]
    assert langsmith(tmp_path, "user_score", [(1, "GOOD"), (0, "BAD")]).events["thumb"].to_list() == [1, -1]


NUMBERS_AS_TEXT = [("1.0", "GOOD"), ("0.0", "BAD"), ("0.9", "GOOD"), (" 0.1 ", "BAD"), ("1e0", "GOOD"), (".75", "GOOD")]


def test_numbers_as_text_are_numbers(tmp_path: Path):
    for result in (
        langfuse(tmp_path, "user-feedback", NUMBERS_AS_TEXT),
        langsmith(tmp_path, "quality", NUMBERS_AS_TEXT),
        requests(tmp_path, "rating", NUMBERS_AS_TEXT),
    ):
        assert result.events["rating"].to_list() == [1.0, 0.0, 0.9, 0.1, 1.0, 0.75], result.quarantined
    strange = langsmith(tmp_path, "quality", [("nan", "x"), ("inf", "x"), ("1_0", "x"), ("0x1", "x"), ("1,5", "x")])
    assert strange.events.height == 0


def test_langsmith_as_csv_is_what_it_is_as_json(tmp_path: Path):
    source = {"type": "api", "metadata": {}, "user_id": "j1"}
    rows = [
        {
            "id": f"f{n}",
            "run_id": "r0",
            "key": "user_score",
            "score": 1.0 * (n % 2),
            "value": None,
            "comment": None,
            "correction": {"output": "GOOD"} if n == 3 else None,
            "feedback_source": source,
        }
        for n in range(4)
    ]
    runs = lines(tmp_path / "runs.jsonl", [{"id": "r0", "inputs": asked(1), "outputs": {"output": "BAD"}}])
    cells = [
        {key: json.dumps(cell) if isinstance(cell, dict) else "" if cell is None else cell for key, cell in row.items()}
        for row in rows
    ]
    json_log, csv_log = lines(tmp_path / "f.jsonl", rows), table(tmp_path / "f.csv", cells)
    first, second = (read_log([path], companion=runs, user_salt="s").events for path in (json_log, csv_log))
    assert first.drop("source_row").equals(second.drop("source_row")) and first.height == 4


SIDES = {
    "0 and 1": ("01", None),
    "1 and 2": ("12", "ab"),
    "1 alone": ("11", None),
    "0 alone": ("00", None),
    "three numbers": ("123", None),
    "letters": ("ab", "ab"),
    "-1 and 1": (["-1", "1"], None),
}


@pytest.mark.parametrize(("values", "choices"), SIDES.values(), ids=SIDES)
def test_sides_by_number_are_read_when_they_are_1_and_2_alone(tmp_path: Path, values, choices):
    rows = [{"q": f"Question {n}?", "a": "x", "b": "y", "preferred": value} for n, value in enumerate(values)]
    for name in ("log.csv", "log.jsonl"):
        rows = rows if name == "log.csv" else [row | {"preferred": _number(str(row["preferred"]))} for row in rows]
        result = mapped(tmp_path, "  response_b: b\n  choice: preferred\n", rows, name)
        assert result.events["choice"].to_list() == list(choices or [])
        if choices is None:
            assert result.quarantined.height == len(rows)
            assert all("under `values`" in reason for reason in result.quarantined["reason"])


def _number(text: str) -> object:
    return int(text) if text.lstrip("-").isdigit() else text


@pytest.mark.parametrize("column", ["worse", "rejected_side", "most_harmful"])
def test_a_side_named_by_a_fault_is_the_worse_one(tmp_path: Path, column: str):
    rows = [{"q": "Question?", "a": "BAD", "b": "GOOD", column: "a"}]
    result = mapped(tmp_path, f"  response_b: b\n  choice: {column}\n", rows)
    assert result.events.height == 0 and "may be the worse" in result.quarantined["reason"][0]
    task = {
        "id": 1,
        "data": {"prompt": "q", "answer1": "BAD", "answer2": "GOOD"},
        "annotations": [
            {"id": 1, "result": [{"type": "pairwise", "from_name": column, "value": {"selected": "left"}}]}
        ],
    }
    path = lines(tmp_path / "tasks.jsonl", [task])
    assert read_log([path], user_salt="s").events.height == 0
    told = read_log([path], user_salt="s", scores=parse_scores(f"{{{column}: {{good: low}}}}"))
    assert told.events["choice"].to_list() == ["b"]


@pytest.mark.parametrize(
    ("spec", "values", "ratings"),
    [
        ("{column: v, scale: [1, 5]}", ["1", "5"], [0.0, 1.0]),
        ("{column: v, scale: [1, 5], good: low}", ["1", "5"], [1.0, 0.0]),
        ("v", ["0.25", "1"], [0.25, 1.0]),
        ("v", ["1", "0"], [1.0, 0.0]),
        ("v", ["1", "5"], None),
        ("v", ["1", "1", "2"], None),
    ],
)
def test_a_mapped_rating_has_a_scale_or_is_put_aside(tmp_path: Path, spec: str, values, ratings):
    rows = [{"q": f"Question {n}?", "a": "x", "v": value} for n, value in enumerate(values)]
    result = mapped(tmp_path, f"  rating: {spec}\n", rows)
    assert result.events["rating"].to_list() == (ratings or [])
    assert ratings is not None or result.quarantined.height == len(values)


def test_a_mapped_fault_is_no_approval(tmp_path: Path):
    rows = [{"q": "Question?", "a": "BAD", "toxicity": "5"}, {"q": "Question 2?", "a": "GOOD", "toxicity": "1"}]
    assert mapped(tmp_path, "  rating: {column: toxicity, scale: [1, 5]}\n", rows).events.height == 0
    told = mapped(tmp_path, "  rating: {column: toxicity, scale: [1, 5], good: low}\n", rows)
    assert told.events["rating"].to_list() == [0.0, 1.0]
    stars = [{"q": f"Question {n}?", "a": "x", "stars": n} for n in range(1, 6)]
    assert mapped(tmp_path, "  thumb: stars\n", stars).events.height == 0


def test_ultrafeedback_counts_aspects_of_which_high_is_good(tmp_path: Path):
    def row(**aspects: str) -> dict[str, object]:
        annotations = {name: {"Rating": value} for name, value in aspects.items()}
        completion = {"model": "m", "response": "x", "annotations": annotations}
        return {"instruction": f"Question {aspects}?", "completions": [completion]}

    rows = [row(helpfulness="5", honesty="3"), row(helpfulness="5", toxicity="5"), row(verbosity="5")]
    result = read_log([lines(tmp_path / "log.jsonl", rows)], user_salt="s")
    assert result.events["rating"].to_list() == [0.75, 1.0]
    assert {line.name: line.read_as for line in result.scores} == {
        "helpfulness": "rating",
        "honesty": "rating",
        "toxicity": "quarantined",
        "verbosity": "quarantined",
    }


def test_argilla_ratings_of_known_scale_want_a_known_polarity(tmp_path: Path):
    given = [(1, "BAD"), (7, "GOOD")]
    assert argilla(tmp_path, "quality", given, scale=range(1, 8)).events["rating"].to_list() == [0.0, 1.0]
    assert argilla(tmp_path, "verbosity", given, scale=range(1, 8)).events.height == 0
    assert argilla(tmp_path, "toxicity", given, scale=range(1, 8)).events.height == 0


def label(folder: Path, name: str, values: Sequence[object], **fields: object) -> ImportResult:
    rows = [
        {
            "id": f"{n}",
            "fields": {"prompt": f"Question {n}?", "answer_a": "x", "answer_b": "y", **fields},
            "responses": {name: [{"value": value, "user_id": "u"}]},
            "metadata": {"model_a": "m1", "model_b": "m2"},
        }
        for n, value in enumerate(values)
    ]
    return read_log([lines(folder / "records.jsonl", rows)], user_salt="s")


def test_labels_for_none_and_both_and_neither(tmp_path: Path):
    values = ["answer_a", "Answer_B", "both", "none", "neither", "None of them", "both_good", "tie", "same"]
    result = label(tmp_path, "better-answer", values)
    assert result.events["choice"].to_list() == [
        "a",
        "b",
        "both_good",
        "both_bad",
        "both_bad",
        "both_bad",
        "both_good",
        "skipped",
        "skipped",
    ]
    assert result.events["reasons"].to_list()[-2:] == [["tie"], ["tie"]]
    assert set(result.events["model_a"]) == {"m1"} and set(result.events["model_b"]) == {"m2"}
    rows = [{"q": "Question?", "a": "x", "b": "y", "winner": "none"}]
    elsewhere = mapped(tmp_path, "  response_b: b\n  choice: winner\n", rows)
    assert elsewhere.events.height == 0  # where it may as well mean that nobody chose


@pytest.mark.parametrize(
    "name", ["user-feedback", "feedback", "overall-feedback", "correctness", "is-correct", "credit-ok"]
)
def test_a_label_is_a_judgement_whatever_word_its_name_contains(tmp_path: Path, name: str):
    result = argilla(tmp_path, name, [("good", "GOOD"), ("bad", "BAD"), ("partially correct", "x")])
    assert result.events["thumb"].to_list() == [1, -1]
    assert result.events["kind"].unique().to_list() == ["thumb"]  # and none of them a correction


def test_ranks_beside_the_names_go_before_the_order_of_the_list(tmp_path: Path):
    def ranked(*entries: object) -> list[tuple[str, str, str]]:
        fields = {f"response-{n}": f"answer {n}" for n in (1, 2, 3)}
        row = {
            "id": "1",
            "fields": {"prompt": "q", **fields},
            "responses": {"my-ranking": [{"value": list(entries), "user_id": "u"}]},
        }
        result = read_log([lines(tmp_path / "records.jsonl", [row])], user_salt="s")
        return result.events.select("response_a", "response_b", "choice").rows()

    def entry(n: int, rank: int | None) -> dict[str, object]:
        return {"value": f"response-{n}", "rank": rank}

    best_last = [("answer 3", "answer 2", "a"), ("answer 2", "answer 1", "a")]
    assert ranked(entry(1, 3), entry(2, 2), entry(3, 1)) == best_last
    assert ranked("response-3", "response-2", "response-1") == best_last
    tied = ranked(entry(1, 2), entry(2, 1), entry(3, 1))
    assert tied == [("answer 3", "answer 1", "a")]
    assert ranked(entry(1, 1), entry(2, None), entry(3, 2)) == []


def test_ticked_labels_are_no_ranking(tmp_path: Path):
    result = label(tmp_path, "good-answers", [["answer_a", "answer_b"]])
    assert result.events.height == 0 and "ranking or several labels" in result.quarantined["reason"][0]


def test_settings_of_scores_are_checked(tmp_path: Path):
    for wrong in (
        "{stars",
        "[1, 5]",
        "{stars: 5}",
        "{stars: {scale: [5, 1]}}",
        "{stars: {good: yes}}",
        "{s: {words: {a: b}}}",
    ):
        with pytest.raises(ConfigError, match=r"reading\.scores: "):
            parse_settings([f"reading.scores={wrong}"])
    with pytest.raises(DataError, match="`star` is no score of this log; its scores are stars"):
        langsmith(tmp_path, "stars", STARS, scores="{star: {scale: [1, 5]}}")
