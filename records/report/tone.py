"""How a sentence or a figure of the page is to be taken."""

from __future__ import annotations

from enum import Enum


class Tone(Enum):
    """Also the name of the style class."""

    GOOD = "good"
    WARNING = "warning"
    PLAIN = "plain"
