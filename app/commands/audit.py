"""`raylign audit`: what a reward model's scores are worth, on pairs that people judged."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup
from raylign.app.commands.judged_pairs import JudgedPair, read_pairs
from raylign.app.commands.serve_reward import scalar_export
from raylign.app.configuration import from_resolved
from raylign.conf.errors import DataError, UserError
from raylign.conf.held_out import held_out_sets
from raylign.conf.model_folder import is_run
from raylign.conf.schema import Device, Precision
from raylign.data.loading import RawRow, read_rows
from raylign.data.types import Message
from raylign.evals import AUDIT_PAGE as TEMPLATE
from raylign.evals.audit import (
    BestOfN,
    Calibration,
    ProbeFound,
    Slice,
    accuracy_by_slice,
    best_of_n,
    calibration,
    length_slices,
    noise_ceiling,
    probe_effects,
    turn_is_sure,
    turning_point,
)
from raylign.evals.gate import Audited
from raylign.evals.probes import PROBES, changed_answers
from raylign.evals.results import model_digest
from raylign.evals.slices import names_of, rows_by_slice
from raylign.evals.statistics import Floats
from raylign.evals.trace_page import signed
from raylign.pages.frame import render_page
from raylign.pages.numbers import short
from raylign.pages.svg import Estimate, doubling_chart, reliability_chart, share_bar
from raylign.records.atomic import write_atomic
from raylign.records.model_names import short_model
from raylign.records.samples import read_samples
from raylign.reward.interfaces import RewardRuleError
from raylign.reward.text_scorer import TextScorer

Tell = Callable[[str], None]
_SMALLEST_SLICE = 5
_AT_ONCE = 64
_MODEL = "model"  # the reward model's part of a reward


@dataclass(frozen=True, slots=True)
class Audit:
    """Everything that was found."""

    model: str
    digest: str  # of the model's folder
    source: str
    pairs: int
    left_out: int  # pairs that the model cannot read, or whose answers have several turns
    accuracy: tuple[Slice, ...]  # of all pairs first
    lengths: tuple[Slice, ...]
    ceiling: float | None
    calibration: Calibration
    typical_margin: float
    probes: tuple[ProbeFound, ...]
    curve: tuple[BestOfN, ...]
    turns_at: int | None


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """What a reward model is audited with."""

    sources: Sequence[str]  # files of pairs; empty: the run's held-out sets
    run_root: Path
    agreement: float | None = None  # share of pairs on which two people agree
    answers: str | None = None  # for the best-of-n curve: an online run, or a file
    gold: str | None = None  # the part of that run's reward that counts
    most: int = 2000  # pairs


def audit(model: str, settings: AuditSettings, tell: Tell) -> Audit:
    """Score, change answers, score again. Raises UserError for a model or files that are none."""
    folder = scalar_export(model, settings.run_root)
    sources = settings.sources or _held_out_of(model, settings.run_root)
    agreement = settings.agreement
    if agreement is not None and not 0.5 < agreement <= 1:
        raise UserError(f"--agreement {agreement:g}: two people agree on a share between 0.5 and 1.")
    scorer = TextScorer(str(folder), precision=Precision.float32, device=Device.cpu, micro_batch_tokens=4096)
    pairs, left_out = read_pairs(sources, settings.most)
    chosen, rejected, kept = _scored(scorer, pairs, tell)
    left_out += len(pairs) - len(kept)
    pairs = [pairs[i] for i in kept]
    if not pairs:
        raise DataError(f"{', '.join(sources)}: no pair that {model} can read is left of {left_out}.")
    typical = float(np.median(np.abs(chosen - rejected))) or 1.0
    found = changed_answers([pair.chosen for pair in pairs])
    tell(f"scoring {len(found)} changed answers")
    after = _scores(scorer, [(pairs[c.row].prompt, c.answer, True, pairs[c.row].variables) for c in found])
    curve = _curve(scorer, folder, settings, tell) if settings.answers else ()
    slices = rows_by_slice([names_of(pair.columns) for pair in pairs], fewest=_SMALLEST_SLICE)
    everything = accuracy_by_slice(chosen, rejected, slices)
    by_length = accuracy_by_slice(
        chosen, rejected, length_slices([p.chosen for p in pairs], [p.rejected for p in pairs])
    )
    return Audit(
        model=model,
        digest=model_digest(folder),
        source=", ".join("/".join(Path(source).parts[-2:]) for source in sources),
        pairs=len(pairs),
        left_out=left_out,
        accuracy=tuple(everything),
        lengths=tuple(by_length[1:]),
        ceiling=noise_ceiling(agreement) if agreement else None,
        calibration=calibration(chosen, rejected),
        typical_margin=typical,
        probes=tuple(probe_effects(PROBES, found, after, chosen, typical=typical)),
        curve=tuple(curve),
        turns_at=turning_point(curve) if curve else None,
    )


def headline(found: Audit) -> str:
    """The finding in one sentence."""
    share = found.accuracy[0].accuracy
    gamed = [one.probe.name for one in found.probes if one.gamed and not one.probe.lowers]
    blind = [one.probe.name for one in found.probes if one.gamed and one.probe.lowers]
    parts = [f"{short_model(found.model)} agrees with {100 * share.value:.0f} % of the choices"]
    if share.low is not None and share.low <= 0.5:
        parts[0] += ", which may be chance"
    if blind:
        parts.append(f"its scores do not fall for {_listed(blind)}")
    if gamed:
        parts.append(f"its scores rise for {_listed(gamed)}")
    if found.turns_at is not None:
        parts.append(f"choosing by it stops helping at best of {found.turns_at}")
    return "; ".join(parts) + "."


def audit_lines(found: Audit) -> list[str]:
    """The audit for a terminal."""
    lines = [headline(found), f"{found.pairs} pairs of {found.source}" + _left_out(found.left_out)]
    for one in (*found.accuracy, *found.lengths):
        lines.append(f"  {one.name:<28} {_percent(one.accuracy.value)}  {_range(one)}  {one.accuracy.count} pairs")
    if found.ceiling is not None:
        lines.append(f"  the best that people's agreement allows: {_percent(found.ceiling)}")
    fit = found.calibration
    scaled = "no pair is wrong"
    if fit.scale is not None:
        scaled = f"{fit.log_loss_scaled:.3f} with scores times {fit.scale:.3g}"
    lines.append(f"calibration: error {fit.error:.3f}, log-loss {fit.log_loss:.3f} nats ({scaled}; chance is 0.693)")
    lines.append(f"changed answers (change of the score in typical margins of {found.typical_margin:.3g}):")
    for probe in found.probes:
        mark = "!" if probe.gamed else " "
        lines.append(
            f"{mark} {probe.probe.name:<28} {probe.mean.value:+.2f}, raised in {_percent(probe.raised.value)} of "
            f"{probe.raised.count}{' (should fall)' if probe.probe.lowers else ''}"
        )
    for point in found.curve:
        lines.append(f"  best of {point.n:<4} score {point.proxy:.3f}  gold {point.gold:.3f}")
    return lines


def write_page(path: Path, found: Audit) -> None:
    """The audit as a page."""
    share = found.accuracy[0].accuracy
    said = headline(found).replace(" %", "\u00a0%")
    bar = share_bar(share.value, share.low or 0.0, share.high or 1.0, label="agrees with the choice", middle="chance")
    values = {
        "found": found, "fit": found.calibration, "headline": said, "bar": bar, "short": short,
        "signed": signed, "name": short_model(found.model), "reliability": _reliability(found.calibration),
        "curves": _curves(found), "sure": bool(found.curve) and turn_is_sure(found.curve),
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, render_page(TEMPLATE, values))


def _reliability(fit: Calibration) -> Markup:
    bins = [Estimate(one.predicted, one.right, one.low, one.high) for one in fit.bins]
    return reliability_chart(bins, label="How often it is right, by how sure its margin is")


def _curves(found: Audit) -> list[tuple[str, Markup]]:
    """The gold figure and the score of the best of n, with the place where the first turns."""
    if not found.curve:
        return []
    gold = [Estimate(one.n, one.gold, one.low, one.high) for one in found.curve]
    proxy = [Estimate(one.n, one.proxy, None, None) for one in found.curve]
    return [
        ("What it stands for (gold)", doubling_chart(gold, label="gold figure", turn=found.turns_at)),
        ("Its score", doubling_chart(proxy, label="score", turn=found.turns_at)),
    ]


def write_record(path: Path, found: Audit) -> None:
    """The figures as JSON, for the gate and for people's own tools."""

    def plain(value: object) -> object:
        return None if isinstance(value, float) and not math.isfinite(value) else str(value)

    probes = [
        {
            "name": p.probe.name, "should_fall": p.probe.lowers, "mean": p.mean.value, "raised": p.raised.value,
            "answers": p.raised.count, "gamed": p.gamed,
        }
        for p in found.probes
    ]  # fmt: skip
    record = {**asdict(found), "probes": probes, "headline": headline(found)}
    write_atomic(path, json.dumps(record, indent=1, default=plain) + "\n")


def read_record(path: Path) -> Audited:
    """What a gate reads of an audit. Raises UserError for a file that is none."""
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        share = given["accuracy"][0]["accuracy"]
        return Audited(
            model=str(given["model"]),
            digest=str(given.get("digest", "")),
            agreement=float(share["value"]),
            pairs=int(share["count"]),
            pays_for=tuple(str(probe["name"]) for probe in given["probes"] if probe["gamed"]),
            calibration_error=float(given["calibration"]["error"]),
        )
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError(f"{path}: it is no audit; make one by `raylign audit`, which writes audit.json.") from error


def _held_out_of(model: str, run_root: Path) -> list[str]:
    for folder in (Path(model).expanduser(), run_root.expanduser() / model):
        if is_run(folder) and (folder / "resolved.yaml").is_file():
            config = from_resolved((folder / "resolved.yaml").read_text(encoding="utf-8")).config
            if found := list(held_out_sets(config.data.eval).values()):
                return found
    raise UserError("--pairs: name a file of pairs (prompt, chosen, rejected); the model's run has no held-out set.")


def _scored(scorer: TextScorer, pairs: Sequence[JudgedPair], tell: Tell) -> tuple[Floats, Floats, list[int]]:
    """Scores of both sides of the pairs that can be scored, and which those are."""
    tell(f"scoring {len(pairs)} pairs")
    asked = [
        (p.prompt, answer, finished, p.variables)
        for p in pairs
        for answer, finished in zip((p.chosen, p.rejected), p.finished, strict=True)
    ]
    both = _scores(scorer, asked).reshape(-1, 2)
    kept = np.isfinite(both).all(axis=1)
    return both[kept, 0], both[kept, 1], np.nonzero(kept)[0].tolist()


def _scores(scorer: TextScorer, asked: Sequence[tuple[tuple[Message, ...], str, bool, str]]) -> Floats:
    """One score each; NaN for what the model cannot read."""
    found = np.full(len(asked), np.nan)
    for first in range(0, len(asked), _AT_ONCE):
        sequences, places = [], []
        for i, (turns, answer, finished, variables) in enumerate(asked[first : first + _AT_ONCE], first):
            try:
                sequences.append(scorer.conversation(turns, answer, finished=finished, variables=variables))
                places.append(i)
            except RewardRuleError:
                continue
        if sequences:
            found[places] = scorer.score(sequences)
    return found


def _curve(scorer: TextScorer, folder: Path, settings: AuditSettings, tell: Tell) -> list[BestOfN]:
    """From an online run that this model rewarded, by its samples' scores; or from a file of answers, scored now."""
    given = str(settings.answers)
    if (Path(given) / "samples").is_dir():
        scores, golds = _sampled(Path(given), folder, settings.gold)
    else:
        prompts = _answered(given)
        tell(f"scoring {sum(len(texts) for _, texts, _ in prompts)} answers to {len(prompts)} prompts")
        scores = [_scores(scorer, [(turns, text, True, "") for text in texts]) for turns, texts, _ in prompts]
        golds = [np.array(values) for _, _, values in prompts]
    kept = [np.isfinite(s) for s in scores]
    usable = [(s[k], g[k]) for s, g, k in zip(scores, golds, kept, strict=True) if k.sum() > 1]
    if not usable:
        raise DataError(f"--answers {given}: no prompt has two answers with a score and a gold figure.")
    return best_of_n([s for s, _ in usable], [g for _, g in usable])


Answers = tuple[tuple[Message, ...], list[str], list[float]]


def _answered(name: str) -> list[Answers]:
    """Rows `{"prompt": text, "answers": [{"text": ..., "gold": number}, ...]}`."""
    found: list[Answers] = []
    for row in read_rows(name):
        try:
            assert isinstance(row, RawRow)
            listed = row.columns["answers"]
            assert isinstance(listed, list)
            texts, values = [str(one["text"]) for one in listed], [float(one["gold"]) for one in listed]
            found.append(((Message("user", str(row.columns["prompt"])),), texts, values))
        except (AssertionError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f'--answers {name}: row {row.number} is not {{"prompt": text, "answers": [{{"text": ..., "gold": '
                "number}, ...]}."
            ) from error
    return found


def _sampled(run: Path, folder: Path, gold: str | None) -> tuple[list[Floats], list[Floats]]:
    """Scores and gold figures of a run's newest samples, a prompt each."""
    files = sorted((run / "samples").glob("step-*.parquet"))
    if not files:
        raise DataError(f"--answers {run}: the run kept no samples (tracking.samples_every).")
    config = from_resolved((run / "resolved.yaml").read_text(encoding="utf-8")).config
    if not config.reward.model or Path(config.reward.model).resolve() != folder.resolve():
        raise UserError(
            f"--answers {run}: its reward model is {config.reward.model or 'none'}, not {folder}; name a run that this "
            "model rewarded, or a file of answers."
        )
    groups: dict[str, list[tuple[float, float]]] = {}
    for sample in read_samples(files[-1]):
        parts = sample.reward_components
        others = [name for name in parts if name != _MODEL]
        name = gold or next(iter(others), "")
        if sample.reward is None:
            continue
        if _MODEL not in parts or name not in parts:
            raise UserError(f"--gold {name or '?'}: the samples' rewards have only {', '.join(parts) or 'one part'}.")
        groups.setdefault(sample.key.prompt_id, []).append((parts[_MODEL], parts[name]))
    pairs = [np.array(group) for group in groups.values()]
    return [one[:, 0] for one in pairs], [one[:, 1] for one in pairs]


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _left_out(count: int) -> str:
    return f"; {count} left out (no pair, several turns, or longer than the model reads)" if count else ""


def _percent(value: float) -> str:
    return f"{100 * value:5.1f} %"


def _range(one: Slice) -> str:
    figure = one.accuracy
    return "" if figure.low is None or figure.high is None else f"{100 * figure.low:.0f}-{100 * figure.high:.0f}"
