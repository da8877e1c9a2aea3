"""The GPU checks where there is no GPU: what they compute is right, what they find is told, and they need little."""

from __future__ import annotations

import json
import os
import subprocess
import venv
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from raylign.app.gpu_check import kernels, learner, nodes, transfer
from raylign.app.gpu_check.harness import FAIL, NOT_RUN, PASS, Check, Measured, NotRun, run_checks
from raylign.app.gpu_check.run import main, table

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[3]
ON_CPU = [c for c in kernels.checks() if c.name.startswith(("attention", "digest equals", "a model", "merge"))]


@pytest.mark.slow
@pytest.mark.parametrize("check", ON_CPU, ids=lambda c: c.name)
def test_a_kernel_check_passes_where_the_kernel_is_known_to_be_right(check: Check) -> None:
    (outcome,) = run_checks("A", [check], CPU)
    assert outcome.outcome == PASS, outcome.line()


def test_what_needs_a_card_is_not_run_and_says_so() -> None:
    rest = [c for c in kernels.checks() if c not in ON_CPU and c.name.partition(",")[0] in ("head", "digest speed")]
    outcomes = list(run_checks("A", rest, CPU))
    assert outcomes and all(o.outcome == NOT_RUN and "no CUDA device" in o.why for o in outcomes)


@pytest.mark.slow
def test_a_wrong_kernel_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries aligned with the first keys instead of the last: the bug a card's kernel could have."""
    right = kernels.packed_attention

    def wrong(module, query, key, value, mask, **kwargs):
        return right(module, query, key.roll(1, 2), value, mask, **kwargs)

    monkeypatch.setattr(kernels, "packed_attention", wrong)
    assert all(o.outcome == FAIL for o in run_checks("A", ON_CPU[:6], CPU))


def test_outcomes_are_told_one_json_line_each() -> None:
    def breaks(device: torch.device) -> Measured:
        raise RuntimeError("CUDA error: misaligned address")

    def lacks(device: torch.device) -> Measured:
        raise NotRun("one card only")

    checks = [
        Check("fast enough", lambda _: Measured(10.0, "GB/s", 9.0, at_least=True)),
        Check("too far off", lambda _: Measured(0.5, "nats", 0.1)),
        Check("no number", lambda _: Measured(float("nan"), "nats", 0.1)),
        Check("recorded", lambda _: Measured(3.0, "ms")),
        Check("breaks", breaks),
        Check("lacks", lacks),
    ]
    lines = [json.loads(outcome.line()) for outcome in run_checks("A", checks, CPU)]
    assert [line["outcome"] for line in lines] == [PASS, FAIL, FAIL, PASS, FAIL, NOT_RUN]
    assert lines[4]["why"] == "RuntimeError: CUDA error: misaligned address"
    assert {"card", "driver", "torch_version", "commit", "seconds", "limit", "unit"} <= set(lines[0])
    assert "2 pass, 3 fail, 1 not run" in table(lines)


@pytest.mark.slow
def test_a_learner_check_holds_zero_to_plain_adamw_on_cpu() -> None:
    checks = [c for c in learner.checks() if c.name.startswith("ZeRO-2, adapters, recomputed")]
    assert len(checks) == 2
    for outcome in run_checks("B", checks, CPU):
        assert outcome.outcome == PASS, outcome.line()


def _bare_machine(folder: Path) -> Path:
    """The interpreter of an environment with what stages A and B ask for, what that needs, and nothing else."""
    venv.create(folder, symlinks=True, with_pip=False)
    [site] = folder.glob("lib/python*/site-packages")
    left, seen = ["torch", "transformers", "safetensors", "numpy", "xxhash", "deepspeed"], set[str]()
    while left:
        name = canonicalize_name(left.pop())
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue
        if name in seen:
            continue
        seen.add(name)
        needs = map(Requirement, found.requires or [])
        left += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
        for top in {file.parts[0] for file in found.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            if not (site / top).exists():
                (site / top).symlink_to(found.locate_file(top))
    assert "ray" not in seen and "vllm" not in seen
    return folder / "bin" / "python"


@pytest.mark.slow
def test_stages_a_and_b_start_on_a_bare_machine_from_a_checkout(tmp_path: Path) -> None:
    """scripts/gpu_check.py in the checkout's own folder, and a check of each stage, all imports of theirs included."""
    python = _bare_machine(tmp_path / "bare")
    command = [
        python,
        ROOT / "scripts" / "gpu_check.py",
        "--stage",
        "A,B",
        "--device",
        "cpu",
        "--out",
        tmp_path / "out",
    ]
    command += ["--only", "^(a model packed|merge|ZeRO-2, adapters, recomputed)"]
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    lines = [json.loads(text) for text in (tmp_path / "out").read_text().splitlines()]
    assert [(line["stage"], line["outcome"]) for line in lines] == [("A", PASS)] * 2 + [("B", PASS)] * 2, done.stderr
    assert done.returncode == 0


@pytest.mark.slow
def test_the_command_without_a_card_ends_with_one_and_names_what_is_missing(tmp_path: Path) -> None:
    out = tmp_path / "found.jsonl"
    assert main(["--stage", "A", "--minutes", "2", "--out", str(out)]) == 1
    (line,) = [json.loads(text) for text in out.read_text().splitlines()]
    assert line["outcome"] == NOT_RUN and "no CUDA device" in line["why"]


@pytest.mark.thorough
def test_the_checks_of_several_cards_run_here_over_gloo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stage D's own processes, deadlines and comparisons; what a card adds is NCCL."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setattr(transfer, "HASTY_S", 4.0)
    summed = nodes.reduced(2, "gloo", numel=1 << 16)
    assert summed.passed and summed.number > 0 and summed.note == "2 members, NIC lo"
    sent = transfer.sent(3, "cpu", rows=64)
    assert sent.passed and "equal on all" in sent.note
    ended = transfer.stopped(3, "cpu", rows=64)
    assert ended.passed and ended.unit == "s", ended


@pytest.mark.slow
def test_a_member_that_never_comes_or_receives_other_weights_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TimeoutError, match="2 members did not all-reduce within"):
        nodes.reduced(2, "gloo", numel=8, timeout_s=0.3)  # before its processes can have started
    said = [{"digests": [digest], "error": "", "seconds": 1.0} for digest in ("a", "a", "b")]
    monkeypatch.setattr(transfer, "_play", lambda *_, **__: said)
    assert not transfer.sent(3, "cpu", rows=64).passed
    said[1]["error"] = ""  # a member that did not notice that another had stopped
    assert not transfer.stopped(3, "cpu", rows=64).passed
