"""A file nobody knows: the mapping that is suggested reads it, after at most one edit, and guesses no meaning."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from raylign.conf.errors import DataError
from raylign.feedback.importers import ImportResult, read_log

Rows = Sequence[Mapping[str, object]]


def suggested(folder: Path, rows: Rows, name: str = "log.jsonl", before: str = "") -> tuple[Path, str]:
    """The file, and the mapping it is refused with."""
    log = folder / name
    if name.endswith(".csv"):
        with log.open("w", newline="") as file:
            file.write(before)
            writer = csv.DictWriter(file, list(rows[0]), delimiter=";" if before.startswith("sep=") else ",")
            writer.writeheader()
            writer.writerows(rows)
    else:
        log.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with pytest.raises(DataError) as refused:
        read_log([log], user_salt="salt")
    said = str(refused.value)
    return log, said[re.search("^source:", said, re.MULTILINE).start() :]  # type: ignore[union-attr]


def read(log: Path, mapping: str) -> ImportResult:
    file = log.with_name("mapping.yaml")
    file.write_text(mapping)
    return read_log([log], mapping=file, user_salt="salt")


def good_and_bad(number: int) -> tuple[str, str]:
    return f"GOOD answer {number}: hold the button.", f"BAD answer {number}: throw it away."


def google_form(number: int) -> dict[str, object]:
    good, bad = good_and_bad(number)
    first = number % 2 == 0
    return {"Timestamp": f"{number + 11}/03/2026 14:01:00", "Email Address": f"rater{number}@example.org",
            "Prompt": f"How do I reset pump {number}?", "Response A": good if first else bad,
            "Response B": bad if first else good, "Which response is better?": "Response A" if first else "Response B",
            "How confident are you? (1-5)": 1 + number % 5, "Any comments?": "fine; ok"}  # fmt: skip


def mechanical_turk(number: int) -> dict[str, object]:
    good, bad = good_and_bad(number)
    first = number % 2 == 0
    return {"HITId": f"H{number // 2}", "HITTypeId": "T", "AssignmentId": f"A{number}", "WorkerId": f"W{number}",
            "AssignmentStatus": "Approved", "AcceptTime": "Mon Mar 02 09:00:00 PST 2026",
            "SubmitTime": "Mon Mar 02 09:01:00 PST 2026", "WorkTimeInSeconds": "60",
            "Input.prompt": f"How do I reset pump {number}?", "Input.response_a": good if first else bad,
            "Input.response_b": bad if first else good, "Answer.choice.label": "A" if first else "B"}  # fmt: skip


def ground_truth(number: int) -> dict[str, object]:
    good, bad = good_and_bad(number)
    first = number % 2 == 0
    source = {"prompt": f"How do I reset pump {number}?", "response_a": good if first else bad,
              "response_b": bad if first else good}  # fmt: skip
    about = {"class-name": "response_a" if first else "response_b", "confidence": 0.0, "human-annotated": "yes",
             "type": "groundtruth/text-classification", "creation-date": "2026-03-18T22:18:13.527256"}  # fmt: skip
    return {"source": json.dumps(source), "pref": 0 if first else 1, "pref-metadata": about}


@pytest.mark.parametrize(
    ("row", "name", "before"),
    [
        (google_form, "form.csv", ""),
        (google_form, "form.csv", "\ufeff"),
        (google_form, "form.csv", "sep=;\n"),
        (mechanical_turk, "batch.csv", ""),
        (ground_truth, "output.manifest", ""),
    ],
)
def test_the_mapping_reads_the_file_as_it_is(
    tmp_path: Path, row: Callable[[int], dict[str, object]], name: str, before: str
):
    log, mapping = suggested(tmp_path, [row(number) for number in range(6)], name, before)
    found = read(log, mapping)
    assert found.quarantined.height == 0 and found.events.height == 6
    for event in found.events.iter_rows(named=True):
        preferred, other = ("response_a", "response_b") if event["choice"] == "a" else ("response_b", "response_a")
        assert event[preferred].startswith("GOOD") and event[other].startswith("BAD")
        assert event["prompt"][0]["content"].startswith("How do I reset")
    assert not any(person in found.events.write_json() for person in ("@example.org", "W0", "rater0"))


def test_a_person_is_never_the_id_of_an_event(tmp_path: Path):
    log, mapping = suggested(tmp_path, [mechanical_turk(number) for number in range(4)], "batch.csv")
    assert "event_id: AssignmentId" in mapping and "annotator_id: WorkerId" in mapping
    assert read(log, mapping).events["event_id"].to_list() == [f"my-app:A{n}" for n in range(4)]
    rows = [{k: v for k, v in mechanical_turk(n).items() if k != "AssignmentId"} for n in range(4)]
    assert "event_id" not in suggested(tmp_path, rows, "batch.csv")[1]


def test_a_time_that_is_not_read_is_left_out_and_said(tmp_path: Path):
    _, mapping = suggested(tmp_path, [google_form(number) for number in range(4)], "form.csv")
    (line,) = [line for line in mapping.splitlines() if "time:" in line]
    assert line.strip().startswith("# time: Timestamp is left out") and "2026-03-11T14:01:00Z" in line


@pytest.mark.parametrize(
    ("seen", "scale"),
    [((0, 0.4, 1), "[0, 1]"), ((1, 3, 5), "[1, 5]"), ((2, 7), "[1, 7]"), ((0, 9), "[0, 10]"), ((12, 88), "[1, 100]")],
)
def test_a_scale_is_taken_from_the_values_seen(tmp_path: Path, seen: Sequence[float], scale: str):
    rows = [
        {"question": f"Q {n}, please?", "answer": f"It is {n} indeed.", "stars": value} for n, value in enumerate(seen)
    ]
    _, mapping = suggested(tmp_path, rows)
    assert f"rating: {{column: stars, scale: {scale}}}" in mapping


def test_ids_and_numbers_are_neither_question_nor_answer(tmp_path: Path):
    rows = [
        {"model_id": "m1", "conversation_hash": f"h{n}", "num_params": 7, "domain": "cooking", "ask": f"How long, {n}?",
         "said": f"Nine minutes, {n}.", "vote": "up"}
        for n in range(3)
    ]  # fmt: skip
    _, mapping = suggested(tmp_path, rows)
    assert "prompt: ask" in mapping and "response_a: said" in mapping


@pytest.mark.parametrize("values", [(0, 1), ("x", "y"), ("first thing", "second thing")])
def test_a_side_that_is_not_named_is_not_guessed(tmp_path: Path, values: tuple[object, object]):
    rows = [
        {"prompt": f"Which is it, {n}?", "response_a": f"One of {n}.", "response_b": f"Two of {n}.",
         "preferred": values[n % 2]}
        for n in range(4)
    ]  # fmt: skip
    log, mapping = suggested(tmp_path, rows)
    assert mapping.count("SAY_WHICH") == 2
    found = read(log, mapping)
    assert found.events.height == 0 and "SAY_WHICH" in found.quarantined["reason"][0]
    edited = mapping.replace("SAY_WHICH", "b", 1).replace("SAY_WHICH", "a", 1)
    assert read(log, edited).events["choice"].to_list() == ["b", "a", "b", "a"]


@pytest.mark.parametrize(
    ("names", "judgement", "values"),
    [
        (("response_gpt", "response_llama"), "winner", ("gpt", "llama")),
        (("Answer 1", "Answer 2"), "Better answer", ("Answer 1", "Answer 2")),
    ],
)
def test_a_word_that_names_a_column_means_the_answer_in_it(
    tmp_path: Path, names: tuple[str, str], judgement: str, values: tuple[str, str]
):
    rows = []
    for number in range(6):
        good, bad = good_and_bad(number)
        first = number % 2 == 0
        answers = {names[0]: good if first else bad, names[1]: bad if first else good}
        rows.append({"task": number, "question": f"How so, {number}?", **answers, judgement: values[0 if first else 1]})
    log, mapping = suggested(tmp_path, rows)
    found = read(log, mapping)
    assert found.quarantined.height == 0 and found.events["choice"].to_list() == ["a", "b"] * 3


@pytest.mark.parametrize(
    ("column", "values"), [("rating", (-3, 3)), ("loser", ("a", "b")), ("a_is_better", ("true", "false"))]
)
def test_a_judgement_of_two_answers_is_never_taken_for_one_of_the_first(
    tmp_path: Path, column: str, values: tuple[object, object]
):
    rows = [
        {"id": number, "instruction": f"Do it {number}", "output_1": f"One of {number} things.",
         "output_2": f"Two of {number} things.", column: values[number % 2]}
        for number in range(6)
    ]  # fmt: skip
    log, mapping = suggested(tmp_path, rows)
    assert mapping.count("SAY_WHICH") == 2 and f"column: {column}" in mapping
    assert read(log, mapping).events.height == 0


def test_a_users_message_is_no_user(tmp_path: Path):
    rows = [
        {"user_email": f"u{n}@x.org", "user_message": f"How so, {n}, please?", "assistant_message": f"Like this, {n}.",
         "feedback": "up" if n % 2 else "down"}
        for n in range(4)
    ]  # fmt: skip
    _, mapping = suggested(tmp_path, rows)
    assert "prompt: user_message" in mapping and "response_a: assistant_message" in mapping
    assert "user_id: user_email" in mapping
