"""The sample ledger: what counts after crashes, and every way in which it can be unclean is found."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from raylign.data.types import (
    Completion,
    Episode,
    FinishReason,
    Message,
    Prompt,
    Reward,
    RewardFailure,
    RolloutGroup,
    SampleKey,
    SamplingParams,
    Turn,
    VersionSpan,
)
from raylign.records.journal import Batch, JournalError, batch_file, read_batch, replayable, retire, void, write_batch
from raylign.records.ledger import CUT, EQUAL, Ledger, LedgerEntry, read_ledger
from raylign.records.ledger_check import LedgerReport, check_ledger
from raylign.records.run_folder import RunPaths
from raylign.records.samples import sample_rows, write_samples

SIZE, WIDTH = 5, 4  # prompts of an epoch, samples of a prompt


def entry(step: int) -> LedgerEntry:
    """Two prompts a step: one sample of the first failed, one of the second was cut, and a third one was filtered."""
    first = 3 * (step - 1)
    keys = [[SampleKey(i // SIZE, f"p{i % SIZE}", k) for k in range(WIDTH)] for i in range(first, first + 3)]
    return LedgerEntry(
        step=step,
        trained=(*keys[0][1:], *keys[1][:-1]),
        filtered={EQUAL: tuple(keys[2]), CUT: (keys[1][-1],)},
        failed={"503": (keys[0][0],)},
        versions=(step - 1, step - 1),
        data={"epoch": (first + 3) // SIZE, "position": (first + 3) % SIZE, "size": SIZE},
    )


def metrics(steps: int) -> str:
    rows = [
        {"step": s, "ledger/trained": 6 * s, "ledger/failed": s, "ledger/masked": s, "ledger/filtered": 4 * s}
        for s in range(1, steps + 1)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def written(folder: Path, steps: int = 4) -> Ledger:
    ledger = Ledger(folder / "ledger.jsonl")
    ledger.start(0)
    for step in range(1, steps + 1):
        ledger.commit(entry(step))
    (folder / "metrics.jsonl").write_text(metrics(steps))
    return ledger


def checked(folder: Path) -> LedgerReport:
    report = check_ledger(folder, max_staleness=0)
    assert report is not None
    return report


def test_a_clean_ledger_counts_every_sample_by_its_end(tmp_path: Path) -> None:
    written(tmp_path)
    report = checked(tmp_path)
    assert report.problems == () and (report.steps, report.samples) == (4, 4 * 3 * WIDTH)
    assert dict(report.outcomes) == {"trained": 24, f"filtered: {EQUAL}": 16, f"filtered: {CUT}": 4, "failed: 503": 4}
    assert check_ledger(tmp_path / "nowhere") is None


def test_what_is_done_again_after_a_crash_counts_once(tmp_path: Path) -> None:
    written(tmp_path)
    with (tmp_path / "ledger.jsonl").open("ab") as file:
        file.write(b'{"crc": "torn')  # killed while it wrote
    again = Ledger(tmp_path / "ledger.jsonl")
    again.start(2)
    for step in (3, 4, 5):
        again.commit(entry(step))
    (tmp_path / "metrics.jsonl").write_text(metrics(5))
    report = checked(tmp_path)
    assert report.problems == () and (report.steps, report.starts, report.done_again) == (5, 2, 2)
    assert report.other_samples == 0
    assert "2 starts; 2 steps were done again" in "\n".join(report.sentences())


def without_start(ledger: Ledger, folder: Path) -> None:
    ledger.commit(entry(4))


def twice(ledger: Ledger, folder: Path) -> None:
    ledger.commit(replace(entry(5), trained=(*entry(5).trained, entry(2).trained[0])))


def one_lost(ledger: Ledger, folder: Path) -> None:
    ledger.commit(replace(entry(5), trained=entry(5).trained[1:]))


def prompt_lost(ledger: Ledger, folder: Path) -> None:
    ledger.commit(replace(entry(5), filtered={CUT: entry(5).filtered[CUT]}))


def from_its_own_weights(ledger: Ledger, folder: Path) -> None:
    ledger.commit(replace(entry(5), versions=(4, 5)))


def too_old(ledger: Ledger, folder: Path) -> None:
    ledger.commit(replace(entry(5), versions=(2, 4)))


def step_gap(ledger: Ledger, folder: Path) -> None:
    ledger.commit(entry(6))


def one_bit(ledger: Ledger, folder: Path) -> None:
    content = (folder / "ledger.jsonl").read_text()
    (folder / "ledger.jsonl").write_text(content.replace('"p1"', '"p3"', 1))


def other_metrics(ledger: Ledger, folder: Path) -> None:
    (folder / "metrics.jsonl").write_text(metrics(4).replace('"ledger/failed": 3', '"ledger/failed": 2'))


def beyond(ledger: Ledger, folder: Path) -> None:
    (folder / "metrics.jsonl").write_text(metrics(7))


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (without_start, "are not 1 to 5"),
        (twice, "ended in step 2 already"),
        (one_lost, "not all 4 samples"),
        (prompt_lost, "15 prompts were drawn and 14 have ended"),
        (from_its_own_weights, "which it has made itself"),
        (too_old, "older than rollout.max_staleness"),
        (step_gap, "are not 1 to 5"),
        (one_bit, "is damaged"),
        (other_metrics, "ledger/failed is 2 in metrics.jsonl and 3"),
        (beyond, "in metrics.jsonl and not in the ledger"),
    ],
)  # fmt: skip
def test_every_unclean_ledger_is_found(plant: object, words: str, tmp_path: Path) -> None:
    ledger = written(tmp_path)
    plant(ledger, tmp_path)  # type: ignore[operator]
    assert any(words in problem for problem in checked(tmp_path).problems), checked(tmp_path).problems


def groups(draw: random.Random) -> tuple[RolloutGroup, ...]:
    sampling = SamplingParams(0.7, 8, seed=3, stop=("\n",), stop_token_ids=(5,))
    return tuple(
        RolloutGroup(
            Prompt(f"p{i}", (Message("user", f"é{i}?"),), (1, 2, i), ground_truth=None if i else "4", columns="{}"),
            sampling,
            tuple(
                Completion(
                    SampleKey(2, f"p{i}", k),
                    tuple(draw.randrange(9) for _ in range(n)),
                    tuple(-draw.random() / 3 for _ in range(n)),
                    FinishReason.LENGTH if k else FinishReason.STOP,
                    (VersionSpan(3, 0, 1), VersionSpan(4, 1, n)),
                    "a\nb" * k,
                    Episode(((1, 2),), ((2, draw.random()),), (Turn("tool", "é"),), "late" * i) if n > 2 else None,
                )
                for k, n in enumerate((3, 1, 5))
            ),
        )
        for i in range(4)
    )


def batch(step: int, settings: str = "s") -> Batch:
    draw = random.Random(step)
    made = groups(draw)
    keys = [c.key for group in made for c in group.completions]
    outcomes = [RewardFailure(k, "late", True) if i == 2
                else Reward(k, draw.random(), {"a": draw.random()}, ((0, draw.random()),))
                for i, k in enumerate(keys)]  # fmt: skip
    return Batch(step, settings, {"epoch": step, "position": 1}, (SampleKey(0, "x", 1),), made, tuple(outcomes))


def test_a_batch_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    write_batch(tmp_path, batch(7))
    assert read_batch(tmp_path, 7) == batch(7)


def test_only_an_unbroken_undamaged_chain_of_the_same_settings_is_done_again(tmp_path: Path) -> None:
    assert replayable(tmp_path, after=3, settings="s") == (3, None, None)
    for step in (4, 5, 6, 8):
        write_batch(tmp_path, batch(step))
    assert replayable(tmp_path, after=3, settings="s") == (6, {"epoch": 6, "position": 1}, None)
    assert replayable(tmp_path, after=3, settings="t")[::2] == (3, "step-000004.batch was made under other settings")
    content = bytearray(batch_file(tmp_path, 5).read_bytes())
    content[len(content) // 2] ^= 1
    batch_file(tmp_path, 5).write_bytes(content)
    assert replayable(tmp_path, after=3, settings="s") == (
        4,
        {"epoch": 4, "position": 1},
        "step-000005.batch is damaged",
    )
    with pytest.raises(JournalError, match="damaged"):
        read_batch(tmp_path, 5)
    void(tmp_path, after=5)
    retire(tmp_path, up_to=4)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-000005.batch"]


def test_samples_files_are_held_against_the_ledger(tmp_path: Path) -> None:
    made = batch(1)
    keys = [c.key for group in made.groups for c in group.completions]
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.start(0)
    failed = {"late": (keys[2],)}
    ended = LedgerEntry(1, tuple(k for k in keys if k != keys[2]), {}, failed, (0, 0), {})
    ledger.commit(ended)
    paths = RunPaths(tmp_path)
    paths.samples.mkdir()
    write_samples(paths.samples_file(1), sample_rows(made.groups, made.outcomes, {}))
    assert checked(tmp_path).problems == ()
    ledger.start(0)
    ledger.commit(replace(ended, trained=tuple(keys), failed={}))
    assert "step-000001.parquet holds other samples" in checked(tmp_path).problems[0]
    assert read_ledger(paths.ledger).other_samples == 1
