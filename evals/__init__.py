"""What a model is worth: suites, gates, traces of feedback, audits of reward models."""

from pathlib import Path

AUDIT_PAGE = Path(__file__).parent / "audit.html"
