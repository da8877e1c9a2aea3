"""The fused language-model head against the products it cannot do without, for vocabularies of 4k to 150k.

    python benchmarks/fused_head.py [--tokens 2048] [--hidden 576] [--json out.json]

Ideal is the time of the bare products on the same shapes: one for the forward pass, three for forward and backward.
"known" is the head of a loss whose gradient is known beforehand (next-token training), which makes the logits once.
Extra memory is what the process needed beyond inputs, gradients and those of the plain head's inputs. Each case runs in
its own process, with the memory settings of a learner; cases alternate between ideal and ours.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raylign.cluster.runtime_env import RoleEnv
from raylign.conf.schema import Device
from rich.console import Console
from rich.table import Table

VOCABULARIES = (4_096, 32_000, 49_152, 151_936)
PRECISIONS = ("float32", "bfloat16")
PAIRS = 5


@dataclass(frozen=True, slots=True)
class Case:
    """One size of head."""

    tokens: int
    hidden: int
    vocabulary: int
    precision: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """Medians over PAIRS alternating runs."""

    case: Case
    forward_s: float
    forward_ideal_s: float
    both_s: float
    known_s: float
    both_ideal_s: float
    extra_mb: float
    known_extra_mb: float

    @property
    def forward_ratio(self) -> float:
        """1 would be nothing but the product."""
        return self.forward_s / self.forward_ideal_s

    @property
    def both_ratio(self) -> float:
        """Forward and backward over three products."""
        return self.both_s / self.both_ideal_s

    @property
    def known_ratio(self) -> float:
        """The same of a loss whose gradient is known beforehand."""
        return self.known_s / self.both_ideal_s


class Heads:
    """Our two heads and the bare products, on the same inputs."""

    def __init__(self, case: Case) -> None:
        import torch  # not in the parent: a process reads its thread settings when torch comes in

        dtype = getattr(torch, case.precision)
        torch.manual_seed(0)
        self.hidden = torch.empty(case.tokens, case.hidden, dtype=dtype).normal_().requires_grad_()
        self.weight = torch.empty(case.vocabulary, case.hidden, dtype=dtype).normal_(std=0.05).requires_grad_()
        self.targets = torch.randint(0, case.vocabulary, (case.tokens,))
        self.share = torch.full((case.tokens,), 1 / case.tokens)

    def forward(self) -> None:
        """Log-probs only."""
        import torch
        from raylign.trainer.functional.logprobs import fused_linear_logprobs

        with torch.no_grad():
            fused_linear_logprobs(self.hidden, self.weight, self.targets, temperature=1.0)

    def both(self) -> None:
        """Forward and backward of any loss."""
        from raylign.trainer.functional.logprobs import fused_linear_logprobs

        self._backward(fused_linear_logprobs(self.hidden, self.weight, self.targets, temperature=1.0)[0])

    def known(self) -> None:
        """Forward and backward of a loss that is a weighted sum of log-probs."""
        from raylign.trainer.functional.known_gradient import logprobs_of_known_gradient

        self._backward(
            logprobs_of_known_gradient(self.hidden, self.weight, self.targets, self.share, temperature=1.0)[0]
        )

    def _backward(self, logprobs: Any) -> None:
        import torch

        torch.autograd.grad(logprobs.mean(), (self.hidden, self.weight))

    def products(self) -> tuple[Callable[[], None], Callable[[], None]]:
        """The one product of a forward pass, and the three of forward and backward, into memory that is there."""
        import torch

        h, w = self.hidden.detach(), self.weight.detach()
        logits = torch.zeros(h.shape[0], w.shape[0], dtype=h.dtype)
        out_h, out_w = torch.empty_like(h), torch.empty_like(w)

        def one() -> None:
            torch.mm(h, w.T, out=logits)

        def three() -> None:
            one()
            torch.mm(logits, w, out=out_h)
            torch.mm(logits.T, h, out=out_w)

        return one, three


def measure_time(case: Case) -> tuple[float, float, float, float, float]:
    """Seconds of forward, its product, both, known, their products. In a fresh process."""
    heads = Heads(case)
    one, three = heads.products()
    forward, product = _alternate(heads.forward, one)
    both, known, products = _alternate(heads.both, heads.known, three)
    return forward, product, both, known, products


def measure_memory(case: Case, head: str) -> float:
    """MB at the peak beyond inputs and the two gradients, which every head must make. In a fresh process."""
    heads = Heads(case)
    warm = Heads(Case(8, case.hidden, 64, case.precision))
    getattr(warm, head)()  # libraries and threads are there
    gradients = (heads.hidden.numel() + heads.weight.numel()) * heads.hidden.element_size() / 1e6
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins at what is resident now
    before = _peak_mb()
    getattr(heads, head)()
    return max(0.0, _peak_mb() - before - gradients)


def _alternate(*runs: Callable[[], None]) -> list[float]:
    """Median seconds of each."""
    for run in runs:
        run()
    times = [[_seconds(run) for run in runs] for _ in range(PAIRS)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def _seconds(run: Callable[[], None]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _peak_mb() -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(float(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1e3


def main() -> int:
    """Measure every case, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=VOCABULARIES)
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ.update(RoleEnv(Device.cpu, os.cpu_count() or 1, keeps_pages=True, own_cores=True).variables())
    table = Table(
        "precision",
        "vocabulary",
        "forward s",
        "x ideal",
        "both s",
        "x ideal",
        "extra MB",
        "known s",
        "x ideal",
        "extra MB",
    )
    outcomes = []
    context = multiprocessing.get_context("spawn")
    for precision in options.precisions:
        for vocabulary in options.vocabularies:
            case = Case(options.tokens, options.hidden, vocabulary, precision)
            with context.Pool(1, maxtasksperchild=1) as pool:
                seconds = pool.apply(measure_time, (case,))
                memory = [pool.apply(measure_memory, (case, head)) for head in ("both", "known")]
            outcome = Outcome(case, *seconds, *memory)
            outcomes.append(outcome)
            table.add_row(
                precision, str(vocabulary), f"{outcome.forward_s:.2f}", f"{outcome.forward_ratio:.2f}",
                f"{outcome.both_s:.2f}", f"{outcome.both_ratio:.2f}", f"{outcome.extra_mb:.0f}",
                f"{outcome.known_s:.2f}", f"{outcome.known_ratio:.2f}", f"{outcome.known_extra_mb:.0f}",
            )  # fmt: skip
    Console().print(table)
    if options.json:
        rows = [
            asdict(o) | {"forward_ratio": o.forward_ratio, "both_ratio": o.both_ratio, "known_ratio": o.known_ratio}
            for o in outcomes
        ]
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
