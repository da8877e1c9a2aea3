"""All that a build does about personal data in texts, as its settings say: patterns, and a model where one is named."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from raylign.feedback.clean.entities import FindSpans
from raylign.feedback.clean.entity_labels import KINDS, label_names, labels_in, parse_labels
from raylign.feedback.clean.names import groups_without_names, texts_without_names, without_names
from raylign.feedback.clean.personal_data import NOT_COVERED, Redacted, redact_frame, redact_together
from raylign.feedback.settings import PrivacySettings


@dataclass(frozen=True, slots=True)
class Redactor:
    """Replaces personal data in frames and texts."""

    on: bool
    regions: Sequence[str]
    find: FindSpans | None  # names and addresses, by a model
    not_covered: str  # for whoever reads what was built

    def frame(self, work: pl.DataFrame) -> Redacted:
        """A working frame with placeholders."""
        if not self.on:
            return Redacted(work, {})
        redacted = redact_frame(work, self.regions)
        if self.find is None:
            return redacted
        frame, counts = without_names(redacted.frame, self.find)
        return Redacted(frame, dict(sorted((Counter(redacted.counts) + Counter(counts)).items())))

    def names_in(self, texts: pl.Series) -> pl.Series:
        """Texts beside the answers without the names a model finds. Patterns are applied where they are shown."""
        return texts if self.find is None else texts_without_names(texts, self.find)

    def shown(self, groups: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
        """Groups of texts as a model is shown them, whatever `on` says: they may leave this machine.

        The same thing has one placeholder in all texts of a group.
        """
        told = [redact_together(group, self.regions) for group in groups]
        return told if self.find is None else groups_without_names(told, self.find)


def redactor_of(private: PrivacySettings) -> Redactor:
    """With the model loaded, where one is named. Raises UserError for one that cannot be."""
    find: FindSpans | None = None
    if private.redact and private.names_model:
        from raylign.feedback.clean.entity_model import load_entity_model

        find = load_entity_model(_folder(private), parse_labels(private.names_labels)).find
    return Redactor(private.redact, private.regions, find, not_covered(private))


def not_covered(private: PrivacySettings) -> str:
    """What is not looked for, in a sentence or two; a model by its name and hash, never by its path."""
    if not private.redact:
        return "Personal data and secrets are left as they are: privacy.redact is off."
    if not private.names_model:
        return NOT_COVERED
    folder = _folder(private)
    labels = zip(label_names(folder), labels_in(folder, parse_labels(private.names_labels)), strict=True)
    kinds = {
        kind: [name for name, label in labels_of if label.kind == kind]
        for labels_of in [list(labels)]
        for kind in KINDS
    }
    said = "; ".join(f"{', '.join(names)} as {kind}" for kind, names in kinds.items() if names)
    missing = "" if kinds["ADDRESS"] else " It has no label for postal addresses, so they are not looked for."
    return (
        f"Names and addresses that nobody introduces are found by the model {folder.name} ({_digest(folder)}), labels "
        f"{said}. What it misses stays.{missing}"
    )


def _folder(private: PrivacySettings) -> Path:
    return Path(private.names_model).expanduser().resolve()


def _digest(folder: Path) -> str:
    """12 hex digits over the files that decide what a model finds."""
    digest = hashlib.blake2b(digest_size=6)
    for file in sorted((*folder.glob("*.safetensors"), *folder.glob("*.json"), *folder.glob("*.txt"))):
        digest.update(file.name.encode() + b"\x00")
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "blake2b").digest())
    return digest.hexdigest()
