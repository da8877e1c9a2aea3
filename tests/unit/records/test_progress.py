"""The progress line: live on a terminal, plain elsewhere, and never fooled by what it shows."""

from __future__ import annotations

import io

import pytest
from raylign.records.progress import FigureRow, RunProgress, duration, figures_of, show_ending, step_line
from raylign.records.summary import RunSummary
from rich.console import Console


def plain_console() -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, width=80, force_terminal=False), stream


def test_one_plain_line_a_step_without_escape_codes_or_wrapping() -> None:
    console, stream = plain_console()
    metrics = {"reward/mean": 0.51234, "policy/kl": 1.25, "policy/entropy": 2.0, "rollout/response_length": 51.7}
    with RunProgress(console, total_steps=3) as progress:
        progress.phase("generation")
        for n in (1, 2, 3):
            progress.step(n, {**metrics, "policy/grad_norm": 0.5, "reward/failed": 0.0, "time/step": 4.21})
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3 and "\x1b" not in stream.getvalue() and "\r" not in stream.getvalue()
    assert lines[0].startswith("step 1/3  reward 0.512  kl 1.250  entropy 2.00  length 52  grad 0.50  failed 0  4.2 s")
    assert lines[0].endswith("left") and not lines[2].endswith("left")


def test_terminal_gets_one_line_that_is_taken_down() -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=100, force_terminal=True, color_system=None)
    with RunProgress(console, total_steps=50) as progress:
        for n in range(1, 51):
            progress.step(n, {"reward/mean": float(n)})
        progress.notice("saved [bold]checkpoint[/bold]")
    text = stream.getvalue()
    assert "step 50/50" in text
    assert "saved [bold]checkpoint[/bold]" in text, "a notice is text, never markup"
    assert text.count("\n") < 20, "the live line overwrites itself"


def test_closing_table_and_paths() -> None:
    console, stream = plain_console()
    rows = [FigureRow("gold score", -1.26, 0.6912345, "score"), FigureRow("kl", None, float("nan"), "nats")]
    show_ending(console, "[red]demo", rows, {"report": "runs/[x]/report.html", "export": "runs/x/export/step-1"})
    text = stream.getvalue()
    assert "[red]demo" in text and "-1.26" in text and "0.6912" in text and "nan" not in text
    assert "report  runs/[x]/report.html" in text and "export  runs/x/export/step-1" in text


def test_figures_of_a_summary_are_those_it_has() -> None:
    summary = RunSummary(
        algorithm="ppo", policy_start="m", steps=3, seconds_total=9.0, gold_score_before=-1.0, extra={"eval_loss": 0.5}
    )
    rows = {row.name: row for row in figures_of(summary)}
    assert list(rows) == ["gold score", "eval loss", "steps", "time"]
    assert rows["gold score"].before == -1.0 and rows["gold score"].after is None


def test_a_run_whose_length_is_not_known_shows_no_total() -> None:
    console, stream = plain_console()
    with RunProgress(console, total_steps=0) as progress:
        progress.step(3, {"train/loss": 0.5})
    assert stream.getvalue() == "step 3  loss 0.5000\n"


def test_line_of_an_offline_step() -> None:
    line = step_line({"train/loss": 0.69314, "train/accuracy": 0.5, "train/grad_norm": 1.0, "time/step": 0.5})
    assert line == "loss 0.6931  accuracy 0.500  grad 1.00  0.5 s"


def test_durations_are_for_people() -> None:
    assert [duration(s) for s in (0.4, 59.4, 59.6, 725, 3600, 12_000)] == [
        "0 s", "59 s", "1 min 00 s", "12 min 05 s", "1 h 00 min", "3 h 20 min",
    ]  # fmt: skip


def test_gold_is_the_held_out_figure_else_the_rule_of_that_name():
    assert "gold 0.250" in step_line({"reward/concise": 0.25, "reward/mean": 1.0}, "concise")
    assert "gold 0.500" in step_line({"reward/concise": 0.25, "eval/held_out/concise": 0.5}, "concise")
    assert "gold" not in step_line({"reward/concise": 0.25}, "math")


def test_a_number_of_steps_that_is_known_late_is_shown():
    console, stream = plain_console()
    with RunProgress(console, total_steps=0) as progress:
        progress.expect(7)
        progress.step(2, {"train/loss": 0.5})
    assert "step 2/7 " in stream.getvalue()


def test_remaining_time_does_not_count_start_up_nor_what_an_earlier_start_did(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([1000.0, 1004.0, 1010.0])  # minutes of start-up before the first step are in none of these
    monkeypatch.setattr("raylign.records.progress.time.monotonic", lambda: next(clock))
    console, stream = plain_console()
    with RunProgress(console, total_steps=60, first_step=44) as progress:
        progress.step(45, {"time/step": 2.0})
        progress.step(46, {"time/step": 2.0})
        progress.step(47, {"time/step": 2.0})
    ends = [line.partition("2.0 s  ")[2] for line in stream.getvalue().splitlines()]
    assert ends == ["30 s left", "56 s left", "1 min 05 s left"]
