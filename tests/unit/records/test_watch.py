"""`raylign watch`: what files say of a run while it starts, trains, dies and ends; a look disturbs nothing."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from raylign.app.commands.watch import awaited, watch
from raylign.conf.errors import UserError
from raylign.data.types import (
    Completion,
    FinishReason,
    Message,
    Prompt,
    Reward,
    RolloutGroup,
    SampleKey,
    SamplingParams,
    VersionSpan,
)
from raylign.records.run_folder import RunFolder
from raylign.records.samples import sample_rows, write_samples
from raylign.records.summary import RunSummary, write_summary
from raylign.records.watch import RunState, look, screen
from rich.console import Console

RESOLVED = "num_steps: 10\nalgorithm: {name: grpo}\nevaluation: {gold: concise}\n"


def line(step: int, seconds: float = 4.0, **more: float | None) -> str:
    return json.dumps({"step": step, "reward/mean": step / 10, "policy/kl": 0.5, "time/step": seconds, **more}) + "\n"


def append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def test_a_run_that_is_not_there_yet_is_waited_for_and_watched_until_a_step(tmp_path: Path) -> None:
    tries = iter([UserError("no such run"), UserError("no such run"), tmp_path / "mine"])

    def find() -> Path:
        found = next(tries)
        if isinstance(found, UserError):
            raise found
        return found

    folder = awaited(find, 60.0, wait=lambda _: None)
    with pytest.raises(UserError, match="no such run"):
        awaited(lambda: (_ for _ in ()).throw(UserError("no such run")), 0.0)
    with RunFolder.open(tmp_path, "mine", resume=False) as live:
        live.resolved.write_text(RESOLVED)
        append(live.metrics, line(1))
        out = io.StringIO()
        steps = iter([2, 3, 4])
        watch(
            folder,
            Console(file=out),
            once=False,
            every_s=0.1,
            until=3,
            wait=lambda _: append(live.metrics, line(next(steps))),
        )
    shown = [text.split()[1] for text in out.getvalue().splitlines() if text.startswith("step")]
    assert shown == ["1/10", "2/10", "3/10"]


def test_a_run_from_its_start_to_its_end(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, "mine", resume=False) as folder:
        assert look(folder.path).state is RunState.STARTING  # nothing but the lock is there yet
        folder.resolved.write_text(RESOLVED)
        append(folder.metrics, '{"step": 0, "eval/held_out/reward": 1.0}\n')
        assert look(folder.path).state is RunState.STARTING
        append(folder.metrics, line(1, 90.0) + line(2) + line(3, **{"rollout/workers": 2.0, "time/sync": 1.5}))
        append(folder.metrics, '{"step": 4, "rew')  # being written
        view = look(folder.path)
        assert (view.state, view.step, view.total_steps, view.algorithm) == (RunState.TRAINING, 3, 10, "grpo")
        assert view.remaining_s() == 7 * 4.0  # the slow first step, and start-up, do not count
        shown = screen(view)
        assert shown[0] == "mine  grpo  training"
        assert shown[1] == "step 3/10  reward 0.300  kl 0.500  4.0 s  28 s left"
        assert "  2 workers" in shown and "  sync 1.5 s" in shown
        write_summary(folder.summary, RunSummary(algorithm="grpo", policy_start="m", steps=3, seconds_total=9.0))
        assert look(folder.path).state is RunState.TRAINING  # a resumed run has its last ending still
    assert look(folder.path).state is RunState.DONE and look(folder.path).remaining_s() is None


def test_a_killed_run_is_told_from_one_that_goes_on_and_the_lock_is_not_touched(tmp_path: Path) -> None:
    code = (
        "import sys; from raylign.records.run_folder import RunFolder\n"
        f"with RunFolder.open({str(tmp_path)!r}, 'r', resume=True): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        (tmp_path / "r" / "metrics.jsonl").write_text(line(1))
        assert look(tmp_path / "r").state is RunState.TRAINING
        with pytest.raises(UserError, match=f"process {holder.pid}"):
            RunFolder.open(tmp_path, "r", resume=True)
        holder.kill()
        holder.wait()
    assert look(tmp_path / "r").state is RunState.ENDED


def test_a_lock_of_another_machine_is_not_guessed_about(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    assert look(tmp_path).state is RunState.UNKNOWN
    (tmp_path / ".lock").write_text("")  # being written
    assert look(tmp_path).state is RunState.UNKNOWN


def test_answers_and_alerts_are_plain_text(tmp_path: Path) -> None:
    key = SampleKey(0, "p", 0)
    answer = Completion(key, (5,), (-1.0,), FinishReason.STOP, (VersionSpan(1, 0, 1),), "red\x1b[31m\nand [bold]")
    group = RolloutGroup(Prompt("p", (Message("user", "why?"),), (1,)), SamplingParams(1.0, 8), (answer,))
    (tmp_path / "samples").mkdir()
    rows = sample_rows([group], [Reward(key, 0.25, {})], {key: 0.0})
    write_samples(tmp_path / "samples" / "step-000001.parquet", rows)
    (tmp_path / "alerts.jsonl").write_text('{"text": "KL runs away"}\n{"text": "half')
    shown = screen(look(tmp_path))
    assert "alert: KL runs away" in shown
    assert any(s.startswith("[0.250] ") and s.endswith("red [31m and [bold]") for s in shown), shown


def test_piped_it_is_one_line_a_step_and_ends_with_the_run(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path, "mine", resume=False)
    folder.resolved.write_text(RESOLVED)
    folder.metrics.write_text(line(1) + line(2))
    events = [
        lambda: append(folder.metrics, line(3) + line(4)),
        lambda: folder.alerts.write_text('{"text": "rewards fail"}\n'),
        lambda: (write_summary(folder.summary, RunSummary(algorithm="g", policy_start="m", steps=4, seconds_total=1.0)),
                 folder.close()),
    ]  # fmt: skip
    stream = io.StringIO()
    console = Console(file=stream, width=40, force_terminal=False)
    watch(folder.path, console, once=False, every_s=1.0, wait=lambda seconds: events.pop(0)())  # type: ignore[func-returns-value]
    assert stream.getvalue().splitlines() == [
        "mine: training",
        "step 2/10  reward 0.200  kl 0.500  4.0 s",
        "step 3/10  reward 0.300  kl 0.500  4.0 s",
        "step 4/10  reward 0.400  kl 0.500  4.0 s",
        "alert: rewards fail",
        "mine: finished",
    ]
    assert not events


def test_on_a_terminal_the_view_is_redrawn_until_the_run_is_over(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path, "mine", resume=False)
    folder.metrics.write_text(line(1))
    stream = io.StringIO()
    console = Console(file=stream, width=100, force_terminal=True, color_system=None)
    watch(folder.path, console, once=False, every_s=1.0, wait=lambda seconds: folder.close())
    assert "mine  ?  training" in stream.getvalue() and "not running" in stream.getvalue()
