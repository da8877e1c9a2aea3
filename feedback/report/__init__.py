"""The self-contained page about a feedback log and what was built from it."""

from __future__ import annotations

from raylign.feedback.report.build import render, write_report

__all__ = ["render", "write_report"]
