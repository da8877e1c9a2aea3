"""The self-contained page about one run: `write_report(run_dir)`."""

from __future__ import annotations

from raylign.records.report.build import write_report
from raylign.records.report.compare import write_comparison

__all__ = ["write_comparison", "write_report"]
