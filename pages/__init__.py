"""What the pages that we write share: their look, their charts and how they print numbers."""

from pathlib import Path

STYLE = Path(__file__).with_name("page.css")
"""Colours, type and tables of every page, light and dark."""
