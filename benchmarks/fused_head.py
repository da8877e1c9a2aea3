"""The fused language-model head against the products it cannot do without, for vocabularies of 4k to 150k.

    python benchmarks/fused_head.py [--tokens 2048] [--hidden 576] [--json out.json]

Ideal is the time of the bare products on the same shapes: one for the forward pass, three for forward and backward.
Extra memory is what the process needed beyond inputs, gradients and those of the plain head's inputs. Each case runs in
its own process, with the memory settings of a learner; cases alternate between ideal and ours.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cluster.runtime_env import RoleEnv
from conf.schema import Device

VOCABULARIES = (4_096, 32_000, 49_152, 151_936)
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
    both_ideal_s: float
    extra_mb: float

    @property
    def forward_ratio(self) -> float:
        """1 would be nothing but the product."""
        return self.forward_s / self.forward_ideal_s

    @property
    def both_ratio(self) -> float:
        """Forward and backward over three products."""
        return self.both_s / self.both_ideal_s


def measure(case: Case) -> Outcome:
    """In a fresh process."""
    import torch

    from trainer.functional.logprobs import fused_linear_logprobs

    dtype = getattr(torch, case.precision)
    torch.manual_seed(0)
    hidden = torch.randn(case.tokens, case.hidden).to(dtype).requires_grad_()
    weight = (torch.randn(case.vocabulary, case.hidden) * 0.05).to(dtype).requires_grad_()
    targets = torch.randint(0, case.vocabulary, (case.tokens,))
    hidden.grad, weight.grad = torch.zeros_like(hidden), torch.zeros_like(weight)

    def forward() -> None:
        with torch.no_grad():
            fused_linear_logprobs(hidden, weight, targets, temperature=1.0)

    def both() -> None:
        logprobs, _ = fused_linear_logprobs(hidden, weight, targets, temperature=1.0)
        torch.autograd.grad(logprobs.mean(), (hidden, weight), materialize_grads=True)

    before = _peak_mb()
    both()
    # the two gradients `both` returns are not extra: every head must make them
    extra = _peak_mb() - before - (hidden.numel() + weight.numel()) * hidden.element_size() / 1e6
    h, w = hidden.detach(), weight.detach()
    logits = torch.zeros(case.tokens, case.vocabulary, dtype=dtype)
    out_h, out_w = torch.empty_like(h), torch.empty_like(w)

    def one_product() -> None:
        torch.mm(h, w.T, out=logits)

    def three_products() -> None:
        one_product()
        torch.mm(logits, w, out=out_h)
        torch.mm(logits.T, h, out=out_w)

    forward_s, forward_ideal = _alternate(forward, one_product)
    both_s, both_ideal = _alternate(both, three_products)
    return Outcome(case, forward_s, forward_ideal, both_s, both_ideal, max(0.0, extra))


def _alternate(ours: Callable[[], None], ideal: Callable[[], None]) -> tuple[float, float]:
    ours()
    ideal()
    times = [(_seconds(ours), _seconds(ideal)) for _ in range(PAIRS)]
    return statistics.median(t for t, _ in times), statistics.median(t for _, t in times)


def _seconds(run: Callable[[], None]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> int:
    """Measure every case, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ.update(RoleEnv(Device.cpu, os.cpu_count() or 1).variables())
    table = Table("precision", "vocabulary", "forward s", "x ideal", "both s", "x ideal", "extra MB")
    outcomes = []
    context = multiprocessing.get_context("spawn")
    for precision in ("float32", "bfloat16"):
        for vocabulary in VOCABULARIES:
            with context.Pool(1) as pool:
                outcome = pool.apply(measure, (Case(options.tokens, options.hidden, vocabulary, precision),))
            outcomes.append(outcome)
            figures = (outcome.forward_s, outcome.forward_ratio, outcome.both_s, outcome.both_ratio)
            table.add_row(precision, str(vocabulary), *(f"{x:.2f}" for x in figures), f"{outcome.extra_mb:.0f}")
    Console().print(table)
    if options.json:
        rows = [{**asdict(o), "forward_ratio": o.forward_ratio, "both_ratio": o.both_ratio} for o in outcomes]
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
