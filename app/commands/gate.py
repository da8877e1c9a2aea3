"""`raylign gate` and `raylign promote`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from raylign.app.commands.audit import read_record
from raylign.app.commands.evaluate import EvalSettings, evaluate
from raylign.app.commands.serve import causal_export
from raylign.app.configuration import from_resolved, needs
from raylign.conf.errors import UserError
from raylign.conf.model_folder import is_run, model_folder
from raylign.conf.suites import Demand, named_audit, read_gate
from raylign.evals.gate import Audited, Checked, GateResult, Verdict, judge
from raylign.evals.registry import Registry, Release
from raylign.evals.result_pages import write_gate_page
from raylign.evals.results import model_digest
from raylign.evals.suites import open_suite
from raylign.records.atomic import write_atomic
from raylign.records.model_names import short_model


def decide(
    candidate: str,
    against: str | None,
    policy_file: Path,
    settings: EvalSettings,
    registry: Path,
    record: Path,
    tell: Callable[[str], None],
    audits_by_name: Mapping[str, Path] | None = None,
) -> int:
    """Evaluate both models, print what holds, write the record; the exit code. Raises UserError.

    `audits_by_name`: records that the policy names in braces, as a loop's does.
    """
    policy = read_gate(policy_file)
    suites = [str(open_suite(one.suite, policy_file.parent).path) for one in policy.conditions]
    named = audits_by_name or {}
    audits = [read_record(_named(one.audit, named) or _beside(one.audit, policy_file.parent)) for one in policy.audits]
    _refuse_other_audits(audits, candidate, settings.run_root)
    compares = any(one.must is not Demand.at_least for one in policy.conditions)
    if compares and against is None:
        raise UserError("--against: the policy compares with the current model; name it, or an alias.")
    if not record.parent.is_dir():
        raise UserError(f"--record {record}: there is no folder {record.parent}.")
    current = _current(against, registry) if against else None
    found = evaluate(candidate, suites, settings, tell) if suites else []
    others = evaluate(current, suites, settings, tell) if current and suites else [None] * len(suites)
    result = judge(policy, found, others, audits)
    tell(verdict_text(result, candidate, against))
    digests = {
        "candidate": model_digest(causal_export(candidate, settings.run_root)),
        "current": model_digest(causal_export(current, settings.run_root)) if current else None,
    }
    write_atomic(record, json.dumps(_record(result, candidate, against, digests), ensure_ascii=False, indent=1) + "\n")
    page = record.with_suffix(".html")
    write_gate_page(page, result, short_model(candidate), short_model(against) if against else None, policy.confidence)
    tell(f"written to {record} and {page}")
    return result.verdict.value


def _named(audit: str, audits: Mapping[str, Path]) -> Path | None:
    name = named_audit(audit)
    if name is None:
        return None
    if name not in audits:
        raise UserError(
            f"audits: {audit} is an audit of a loop's night; name the audit.json that `raylign audit` wrote."
        )
    return audits[name]


def _beside(named: str, folder: Path) -> Path:
    given = Path(named).expanduser()
    return given if given.is_file() else folder / given


def _refuse_other_audits(audits: Sequence[Audited], candidate: str, run_root: Path) -> None:
    """Where the candidate is a run that learned from a reward model, an audit must be about that one."""
    for folder in (Path(candidate).expanduser(), run_root.expanduser() / candidate):
        if audits and is_run(folder) and (folder / "resolved.yaml").is_file():
            config = from_resolved((folder / "resolved.yaml").read_text(encoding="utf-8")).config
            if not needs(config).reward or not config.reward.model:
                return
            learned = model_digest(Path(model_folder(config.reward.model).path))
            if all(audit.digest != learned for audit in audits):
                raise UserError(
                    f"audits: {candidate} learned from the reward model {config.reward.model}, and no audit of the "
                    "policy is about it; audit that one."
                )
            return


def verdict_text(result: GateResult, candidate: str, against: str | None) -> str:
    """The decision in lines."""
    lines = [f"{one.verdict.words:>15}  {one.suite}: {one.asked}; {_found(one)}" for one in result.checked]
    lines.append(f"{candidate}{f' against {against}' if against else ''}: {result.verdict.words}")
    return "\n".join(lines)


def promote(registry: Path, alias: str, candidate: str, run_root: Path, record: Path | None) -> str:
    """What was done. `record`: None for the first release of an alias.

    Raises UserError without a passed gate of exactly this model against exactly what the alias points to.
    """
    folder = causal_export(candidate, run_root)
    digest = model_digest(folder)
    aliases = Registry(registry)
    current = aliases.current(alias)
    gate: Mapping[str, object] = {}
    if record is None:
        if current is not None:
            raise UserError(f"{alias} points to {current.model} already; leave out --first.")
    else:
        gate = _passed(record, digest, current, alias)
    aliases.promote(alias, folder, digest, gate)
    return f"{alias} points to {folder} now" + (f"; before: {current.model}" if current else "")


def roll_back(registry: Path, alias: str) -> str:
    """What was done. Raises UserError when there is nothing to go back to."""
    return f"{alias} points to {Registry(registry).roll_back(alias).model} again"


def releases(registry: Path, alias: str) -> str:
    """One line a release, the present one last. Raises UserError for an alias without one."""
    found = Registry(registry).history(alias)
    if not found:
        raise UserError(f"{alias}: there is no release of that name in {registry}/.")
    return "\n".join(f"{one.when}  {one.model}  {_how(one)}" for one in found)


def _how(release: Release) -> str:
    return f"gate of {release.gate['when']}" if release.gate else "without a gate"


def _current(against: str, registry: Path) -> str:
    """The model that an alias points to, else `against` itself."""
    if Path(against).exists() or not (registry / f"{against}.json").is_file():
        return against
    release = Registry(registry).current(against)
    return release.model if release else against


def _passed(record: Path, digest: str, current: Release | None, alias: str) -> Mapping[str, object]:
    try:
        gate = json.loads(record.read_text(encoding="utf-8"))
        verdict, candidate, against = gate["verdict"], gate["digests"]["candidate"], gate["digests"]["current"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--record {record}: there is no decision of `raylign gate`; run it first, or give --first for an alias "
            "that has no release yet."
        ) from error
    if verdict != Verdict.PASSED.words:
        raise UserError(
            f"--record {record}: the gate's verdict is {verdict!r}; a model that has not passed is not promoted."
        )
    if candidate != digest:
        raise UserError(f"--record {record}: it is about another model; run the gate for this one.")
    if current is not None and against != current.digest:
        raise UserError(
            f"--record {record}: the model was not compared with what {alias} points to ({current.model}); run the "
            f"gate with --against {alias}."
        )
    assert isinstance(gate, dict)
    return gate


def _found(one: Checked) -> str:
    return "; ".join(part for part in (one.words, one.reason) if part)


def _record(
    result: GateResult, candidate: str, against: str | None, digests: Mapping[str, str | None]
) -> dict[str, object]:
    return {
        "verdict": result.verdict.words,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "candidate": candidate,
        "against": against,
        "digests": dict(digests),
        "conditions": [{**asdict(one), "verdict": one.verdict.words} for one in result.checked],
    }
