"""Feedback logs in: `read_log` reads any format named in `sniff.FORMATS` into an event frame."""

from raylign.feedback.importers.outcome import QUARANTINE_SCHEMA, ImportResult
from raylign.feedback.importers.reading import read_log

__all__ = ["QUARANTINE_SCHEMA", "ImportResult", "read_log"]
