"""`raylign watch`: a run's view on a terminal, refreshed; one plain line a step anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from raylign.conf.errors import UserError
from raylign.records.watch import RunState, RunView, look, screen, step_text
from rich.console import Console
from rich.live import Live
from rich.text import Text

_OVER = (RunState.DONE, RunState.ENDED)
_LOOK_AGAIN_S = 1.0


def awaited(find: Callable[[], Path], wait_s: float, *, wait: Callable[[float], None] = time.sleep) -> Path:
    """The folder that `find` gives; tried again for `wait_s` seconds while there is none. Raises what `find` raises."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return find()
        except UserError:
            if time.monotonic() >= deadline:
                raise
        wait(_LOOK_AGAIN_S)


def watch(
    folder: Path,
    console: Console,
    *,
    once: bool,
    every_s: float,
    until: int = 0,
    wait: Callable[[float], None] = time.sleep,
) -> None:
    """Show the run until it is over or step `until` is done (0: until it is over), or one look with `once`.

    `wait`: how time passes between looks.
    """
    view = look(folder)
    if once:
        _print(console, "\n".join(screen(view)))
    elif console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                live.update(Text("\n".join(screen(view)), no_wrap=True, overflow="ellipsis"), refresh=True)
                if _enough(view, until):
                    return
                wait(every_s)
                view = look(folder)
    else:
        _follow(folder, console, view, every_s, until, wait)


def _enough(view: RunView, until: int) -> bool:
    return view.state in _OVER or 0 < until <= view.step


def _follow(
    folder: Path, console: Console, view: RunView, every_s: float, until: int, wait: Callable[[float], None]
) -> None:
    """The newest step there is, then each later one; a line for every change of state and every alert."""
    shown, alerts, state = view.step - 1, 0, None
    while True:
        if view.state is not state:
            state = view.state
            _print(console, f"{view.name}: {state.value}")
        for index, row in enumerate(view.history.rows):
            if row.step > shown:
                _print(console, step_text(view, index))
                shown = row.step
        for text in view.alerts[alerts:]:
            _print(console, f"alert: {text}")
        alerts = len(view.alerts)
        if _enough(view, until):
            return
        wait(every_s)
        view = look(folder, answers=0)


def _print(console: Console, text: str) -> None:
    console.print(Text(text), soft_wrap=True, highlight=False)
