"""The figures of a build, from its frames."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import polars as pl
from raylign.feedback.build_result import (
    KINDS,
    BuildResult,
    Count,
    EventDrop,
    InputFile,
    NoiseFound,
    Produced,
    RuleCount,
    Setting,
    ShownPair,
    SignalFate,
)
from raylign.feedback.clean.personal_data import redact_text
from raylign.feedback.events import EventKind
from raylign.feedback.ledger import Ledger, excerpt, whole
from raylign.feedback.overrides import keys
from raylign.feedback.rules import MAKING_RULES
from raylign.feedback.scores import ScoreRead
from raylign.feedback.settings import BuildSettings
from raylign.feedback.trust.noise import Noise
from raylign.feedback.turns import last_user

SIGNALS = ("side_by_side", "thumb_up", "thumb_down", "rating", "correction")
_LOPSIDED = 4 / 3  # KTO: desirable to undesirable beyond this wants class weights (its authors' advice)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What `make_result` counts."""

    settings: BuildSettings
    log_format: str
    log_rows: int
    inputs: tuple[InputFile, ...]
    num_events: int  # read, before anything was dropped
    quarantined: pl.DataFrame
    everything: pl.DataFrame  # event_id, kind, thumb of all events but the forgotten
    work: pl.DataFrame  # events that rows could be made of
    rows: dict[str, pl.DataFrame]  # finished rows by kind
    used: pl.Series  # ids of events that rows name
    ledger: Ledger
    produced: tuple[Produced, ...]
    redactions: dict[str, int]
    passed_over: tuple[str, ...]  # files of the folders given that were not read
    scores: tuple[ScoreRead, ...]
    forgotten: int
    noise: Noise
    not_covered: str  # personal data that was not looked for
    reviews_unknown: int = 0  # events that reviews name and the logs do not hold


def make_result(parts: Parts) -> BuildResult:
    """Raises RunFailed when the counts do not add up."""
    settings = _settings(parts.settings)
    quarantined = parts.quarantined.height
    read = parts.num_events + quarantined
    return BuildResult(
        code_version=code_version(),
        settings_hash=_hash("\n".join(f"{key.name}={key.value!r}" for key in keys(parts.settings))),
        log_format=parts.log_format,
        inputs=parts.inputs,
        settings=settings,
        rows_in=read,
        quarantined=quarantined,
        quarantine_reasons=_reasons(parts.quarantined, hide=parts.forgotten > 0),
        events_dropped=parts.ledger.dropped,
        events_used=len(parts.used),
        waterfall=parts.ledger.waterfall(read=read, quarantined=quarantined, used=len(parts.used)),
        event_drops=parts.ledger.event_drops(),
        row_drops=parts.ledger.row_drops(),
        signals=tuple(_fates(parts)),
        produced=parts.produced,
        made_by=tuple(_made_by(parts.rows)),
        redactions=tuple(Count(name, count) for name, count in parts.redactions.items()),
        pairs_to_look_at=_pairs(parts.rows["pairs"]),
        warnings=tuple(_warnings(parts)),
        forgotten=parts.forgotten,
        log_rows=parts.log_rows,
        noise=_noise(parts.noise),
        scores=tuple(shown_score(score) for score in parts.scores),
        not_covered=parts.not_covered,
    )


def shown_score(score: ScoreRead) -> ScoreRead:
    """A line of the table of scores with what may be personal in names and values redacted."""
    return replace(score, name=redact_text(score.name), values=tuple(redact_text(value) for value in score.values))


def _noise(found: Noise) -> NoiseFound | None:
    if not found.estimates or found.label_smoothing is None:
        return None
    best = found.estimates[0]
    rate, low, high = (round(value, 4) for value in (best.rate.value, best.rate.low, best.rate.high))
    return NoiseFound(best.method.value, rate, low, high, best.rate.count, found.label_smoothing)


@cache
def code_version() -> str:
    """The distribution's version and a hash of this package's sources."""
    root = Path(__file__).parent
    digest = hashlib.blake2b(digest_size=6)
    for file in sorted(root.rglob("*.py")):
        digest.update(file.relative_to(root).as_posix().encode() + b"\x00" + file.read_bytes() + b"\x00")
    return f"raylign {importlib.metadata.version('raylign')}, feedback {digest.hexdigest()}"


def signal() -> pl.Expr:
    """Which of SIGNALS an event is; up and down are two."""
    thumb = pl.when(pl.col("thumb") > 0).then(pl.lit("thumb_up")).otherwise(pl.lit("thumb_down"))
    return pl.when(pl.col("kind") == EventKind.THUMB.value).then(thumb).otherwise(pl.col("kind"))


def _settings(settings: BuildSettings) -> tuple[Setting, ...]:
    """As used and as by default. A salt is a secret and paths are this machine's: neither is shown."""
    shown = []
    for key, default in zip(keys(settings), keys(BuildSettings()), strict=True):
        value = key.shown
        if key.name.endswith("salt") and key.value != default.value:
            value = f"(own, fingerprint {_hash(f'{key.name}={key.value}')[:8]})"
        elif key.name == "clean.benchmarks":
            value = f"[{','.join(Path(name).name for name in settings.clean.benchmarks)}]"
        elif key.name == "privacy.forgotten" and key.value:
            value = Path(settings.privacy.forgotten).name
        elif key.name == "privacy.names_model" and key.value:
            value = Path(settings.privacy.names_model).expanduser().resolve().name
        shown.append(Setting(key.name, value, default.shown, key.doc))
    return tuple(shown)


def _reasons(quarantined: pl.DataFrame, *, hide: bool) -> tuple[Count, ...]:
    """Reasons without the values that make each one unlike the next.

    Whole are what is to be set for a score, and a reason that several rows share word for word, unless `hide`: then
    values of a row may be somebody's who is forgotten.
    """
    as_it_is = pl.col("reason").str.contains("reading.scores={", literal=True) & ~pl.col("reason").str.contains(
        "says `"
    )
    plain = pl.col("reason").str.replace_all(r"`[^`]*`", "`...`").str.replace_all(r"\d+", "N")
    kept = quarantined.select("reason", plain=pl.when(as_it_is).then(pl.col("reason")).otherwise(plain))
    alike = (pl.col("reason").n_unique() == 1) & (pl.len() > 1) & (not hide)
    told = pl.when(alike).then(pl.col("reason").first()).otherwise(pl.col("plain").first())
    counted = kept.group_by("plain").agg(pl.len(), told=told).sort("len", "told", descending=[True, False])
    return tuple(Count(redact_text(told), count) for told, count in counted.select("told", "len").head(20).iter_rows())


def _fates(parts: Parts) -> Iterator[SignalFate]:
    named = {kind: parts.rows[kind]["events"].explode().drop_nulls().unique() for kind in KINDS}
    flags = [pl.col("event_id").is_in(ids.implode()).alias(kind) for kind, ids in named.items()]
    marked = parts.everything.with_columns(*flags, used=pl.col("event_id").is_in(parts.used.implode()), signal=signal())
    table = marked.group_by("signal").agg(pl.len(), pl.col("used", *KINDS).sum())
    counts = {row[0]: row[1:] for row in table.iter_rows()}
    for name in SIGNALS:
        if name in counts:
            yield SignalFate(name, *counts[name])


def _made_by(rows: dict[str, pl.DataFrame]) -> Iterator[RuleCount]:
    for kind in KINDS:
        table = rows[kind].select(pl.col("rules").explode()).drop_nulls().group_by("rules").len()
        counts = dict(table.iter_rows())
        for rule, why in MAKING_RULES.items():
            if rule in counts:
                yield RuleCount(kind, rule, why, counts[rule])


def _pairs(pairs: pl.DataFrame) -> tuple[ShownPair, ...]:
    """Five of them, spread evenly over the ids: neither the best nor the worst."""
    step = max(1, pairs.height // 5)
    shown = pairs.gather_every(step).head(5).with_columns(question=last_user(pl.col("prompt")))
    return tuple(
        ShownPair(
            row_id=row["id"],
            prompt=excerpt(row["question"]),
            chosen=excerpt(row["answer"]),
            rejected=excerpt(row["other"]),
            margin=row["margin"],
            weight=row["weight"],
            rules=tuple(row["rules"]),
            event_ids=tuple(row["events"]),
            chosen_cut=row["answer_cut"],
            rejected_cut=row["other_cut"],
            whole=whole(row["prompt"], ("chosen", row["answer"]), ("rejected", row["other"])),
        )
        for row in shown.iter_rows(named=True)
    )


def nothing_used(read: int, reasons: Sequence[Count], drops: Sequence[EventDrop], quarantined: int) -> str:
    """Why there is no row, with the counts of the reasons."""
    if not read:
        return "No row could be made: the logs hold no judgement."
    parts = []
    if quarantined:
        most = "; ".join(f"{count.name} ({count.count:,})" for count in reasons[:3])
        parts.append(f"{quarantined:,} of {read:,} quarantined: {most}")
    parts += [f"{drop.events:,} dropped by {drop.rule}: {drop.why.rstrip('.')}" for drop in drops]
    return f"No row could be made: {'; '.join(parts)}."


def _warnings(parts: Parts) -> Iterator[str]:
    quarantined = parts.quarantined.height
    if not len(parts.used):
        read, drops = parts.num_events + quarantined, parts.ledger.event_drops()
        reasons = _reasons(parts.quarantined, hide=parts.forgotten > 0)
        yield nothing_used(read, reasons, drops, quarantined)
    made = {(file.kind, file.split): file for file in parts.produced}
    if parts.passed_over:
        yield f"Files that were passed over: {', '.join(parts.passed_over)}."
    if parts.reviews_unknown:
        yield f"{parts.reviews_unknown:,} of the events that reviews mark as wrong are not in these logs."
    unmeasured = [kind for kind in KINDS if made[kind, "train"].rows and not made[kind, "eval"].rows]
    if unmeasured and parts.settings.split.eval > 0:
        yield f"No rows of {', '.join(unmeasured)} to evaluate on; raise split.eval or collect more."
    good, all_kto = made["kto", "train"].desirable, made["kto", "train"].rows
    bad = all_kto - good
    if all_kto and (good == 0 or bad == 0):
        verdict = "good" if good else "bad"
        yield f"Judged answers: all {all_kto:,} to train on are {verdict}; KTO cannot learn from that."
    elif all_kto and not 1 / _LOPSIDED <= good / bad <= _LOPSIDED:
        yield (
            f"Judged answers: {good:,} good and {bad:,} bad to train on; give KTO class weights that balance them "
            "(algorithm.desirable_weight, algorithm.undesirable_weight)."
        )
    dropped = {drop.rule: drop.events for drop in parts.ledger.event_drops()}
    overlap = dropped.get("split_overlap", 0)
    if overlap * 5 > parts.num_events:
        yield (
            f"{overlap:,} of {parts.num_events:,} events ask what somebody of another split asked; where many people "
            "judge the same questions, split.by=prompt keeps those rows."
        )
    nobody = parts.work["user_hash"].null_count()
    if nobody and parts.settings.split.by.value == "user":
        yield f"{nobody:,} of {parts.work.height:,} events name no user; they were split by conversation or question."


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
