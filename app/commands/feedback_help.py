"""The text of `raylign feedback build --help`. Imports nothing heavy."""

from __future__ import annotations

from raylign.feedback.overrides import keys
from raylign.feedback.settings import BuildSettings

_USAGE = """\
Usage: raylign feedback build LOG... --out DIR [--format NAME] [--mapping FILE] [--companion FILE] [key=value ...]

Turns feedback logs into data sets with TRL's columns: DIR/sft, DIR/pairs and DIR/kto, each train, eval and
test.jsonl. What is dropped is in DIR/dropped.jsonl and what is broken in DIR/quarantine.jsonl, with reasons; card.md
and report.html say what was done. The same input and settings give the same bytes.

Examples:
  raylign feedback build logs/*.jsonl --out data/feedback
  raylign feedback build battles.json --out data/arena split.by=prompt clean.rows_per_prompt=4
  raylign feedback build langfuse.jsonl --companion traces.jsonl --out data/lf pairs.from_thumbs=true

Settings (name, default, meaning):
"""


def build_help() -> str:
    """Usage and every setting."""
    lines = [f"  {key.name:<30} {key.shown:<8} {key.doc}".rstrip() for key in keys(BuildSettings())]
    return _USAGE + "\n".join(lines)
