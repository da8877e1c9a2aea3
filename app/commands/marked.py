"""A row with its trained tokens marked: in colour on a terminal, in brackets elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO

from raylign.data.mask_view import Run
from rich.console import Console
from rich.text import Text

_TRAINED, _READ = "bold black on green", "dim"


def marked(runs: Sequence[Run], *, colour: bool) -> str:
    """The text with white space shown as it is written in code, trained parts marked, and the counts."""
    trained = sum(run.num_tokens for run in runs if run.trained)
    counts = f"  ({trained} of {sum(run.num_tokens for run in runs)} tokens trained)"
    if not colour:
        return "".join(f"[[{_plain(run.text)}]]" if run.trained else _plain(run.text) for run in runs) + counts
    text = Text()
    for run in runs:
        text.append(_plain(run.text), _TRAINED if run.trained else _READ)
    out = StringIO()
    Console(file=out, force_terminal=True, color_system="standard", width=10**6, no_color=False).print(
        text.append(counts), soft_wrap=True
    )
    return out.getvalue().rstrip("\n")


def _plain(text: str) -> str:
    """One line: a line break is shown as its escape, and so is what a terminal would act on."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
