"""The data card: what was built from what, for people (card.md) and for machines (card.json)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from raylign.feedback.build_result import BuildResult
from raylign.feedback.examples import SCHEMAS

_FIELDS = (
    "code_version", "settings_hash", "log_format", "inputs", "settings", "rows_in", "quarantined", "events_dropped",
    "events_used", "waterfall", "signals", "produced", "made_by", "redactions", "warnings", "forgotten",
    "noise", "scores", "not_covered",
)  # fmt: skip
_NOISE_CASES = {
    "between": "pairs that two people judged",
    "within": "pairs that one person judged twice",
    "circles": "triangles of answers to one prompt",
}


def write_card(folder: Path, result: BuildResult) -> None:
    """card.json and card.md; no texts of anybody's are in them."""
    content = dataclasses.asdict(result)
    card = {name: content[name] for name in _FIELDS}
    card["columns"] = {kind: {name: str(of) for name, of in schema.items()} for kind, schema in SCHEMAS.items()}
    (folder / "card.json").write_text(json.dumps(card, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    (folder / "card.md").write_text("\n".join(_lines(result)) + "\n", encoding="utf-8")


def _lines(result: BuildResult) -> Iterable[str]:
    yield "# Data card"
    yield ""
    yield (
        f"Built by {result.code_version} from {result.rows_in:,} judgements ({result.log_format}). "
        f"{result.events_used:,} are used, {result.events_dropped:,} dropped, {result.quarantined:,} quarantined."
    )
    yield from _warned(result)
    yield from _noise(result)
    yield from _table(
        "Scores",
        ("name", "values", "seen", "scale", "good", "read as", "why"),
        [(s.name, f"{s.count:,}", ", ".join(s.values), s.scale, s.good, s.read_as, s.why) for s in result.scores],
    )
    yield from _table(
        "Produced",
        ("file", "rows", "desirable", "weight", "users", "sha256", "ledger"),
        [
            (f.path, f"{f.rows:,}", f"{f.desirable:,}" if f.kind == "kto" else "", f"{f.weight_sum:,.1f}",
             f"{f.users:,}", f.sha256[:16], f.ledger)
            for f in result.produced
        ],
    )  # fmt: skip
    yield from _table(
        "From judgements to use",
        ("step", "lost", "left", "why"),
        [(s.name, f"{s.lost:,}", f"{s.after:,}", s.why) for s in result.waterfall],
    )
    yield from _table(
        "By signal",
        ("signal", "read", "used", "in SFT", "in pairs", "in KTO", "for a teacher"),
        [
            (s.signal, *(f"{n:,}" for n in (s.read, s.used, s.in_sft, s.in_pairs, s.in_kto, s.in_teacher)))
            for s in result.signals
        ],
    )
    yield from _table(
        "Rows lost after they were made",
        ("kind", "rule", "rows", "why"),
        [(d.kind, d.rule, f"{d.rows:,}", d.why) for d in result.row_drops],
    )
    yield from _table(
        "Rows by the rule that made them",
        ("kind", "rule", "rows", "why"),
        [(m.kind, m.rule, f"{m.rows:,}", m.why) for m in result.made_by],
    )
    yield from _table("Redacted", ("what", "how many"), [(c.name, f"{c.count:,}") for c in result.redactions])
    yield from ("", result.not_covered)
    yield from _table(
        "Inputs", ("file", "bytes", "sha256"), [(i.name, f"{i.bytes:,}", i.sha256) for i in result.inputs]
    )
    yield from _table(
        f"Settings ({result.settings_hash})",
        ("setting", "value", "default", "meaning"),
        [(s.key, s.value, s.default if s.default != s.value else "", s.why) for s in result.settings],
    )


def _noise(result: BuildResult) -> Iterable[str]:
    found = result.noise
    if found is None:
        return
    yield ""
    yield "## Noise"
    yield ""
    yield (
        f"{found.rate:.0%} of the choices name the worse answer ({found.low:.0%} to {found.high:.0%}), found from "
        f"{found.cases:,} {_NOISE_CASES[found.method]}."
    )
    if found.label_smoothing > 0:
        yield (
            f"Train a reward model with `algorithm.label_smoothing={found.label_smoothing:.2f}`, DPO with "
            f"`algorithm.loss=robust algorithm.label_smoothing={found.label_smoothing:.2f}`; less where rows were "
            "decided by several people."
        )


def _warned(result: BuildResult) -> Iterable[str]:
    if result.warnings:
        yield ""
        yield "## Before training"
        yield ""
        yield from (f"- {warning}" for warning in result.warnings)


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterable[str]:
    if not rows:
        return
    yield ""
    yield f"## {title}"
    yield ""
    for row in (head, ["---"] * len(head), *rows):
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
