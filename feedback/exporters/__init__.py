"""Built rows out: TRL's columns (what our trainers read), OpenAI's and Bedrock's files."""

from raylign.feedback.exporters.bedrock import write_bedrock
from raylign.feedback.exporters.openai import write_openai_preference, write_openai_sft
from raylign.feedback.exporters.outcome import REJECTED_SCHEMA, ExportResult
from raylign.feedback.exporters.trl import write_trl

__all__ = [
    "REJECTED_SCHEMA",
    "ExportResult",
    "write_bedrock",
    "write_openai_preference",
    "write_openai_sft",
    "write_trl",
]
