"""Built rows out: TRL's columns (what our trainers read), OpenAI's and Bedrock's files."""

from feedback.exporters.bedrock import write_bedrock
from feedback.exporters.openai import write_openai_preference, write_openai_sft
from feedback.exporters.outcome import REJECTED_SCHEMA, ExportResult
from feedback.exporters.trl import write_trl

__all__ = [
    "REJECTED_SCHEMA",
    "ExportResult",
    "write_bedrock",
    "write_openai_preference",
    "write_openai_sft",
    "write_trl",
]
