"""The logs a build is made from, kept beside it so that it can be made again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from raylign.conf.errors import DataError

SOURCE = "source.json"
"""What a rebuild needs: paths, salt and settings. For the build's owner only; leave it out when you share the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Logs and how they are read."""

    logs: tuple[Path, ...]
    format: str | None = None
    mapping: Path | None = None
    companion: Path | None = None
    overrides: tuple[str, ...] = ()  # key=value

    def to_json(self) -> str:
        """The text of source.json. Paths are absolute, so that a rebuild works from anywhere."""
        content = {
            "logs": [str(path.expanduser().resolve()) for path in self.logs],
            "format": self.format,
            "mapping": str(self.mapping.expanduser().resolve()) if self.mapping else None,
            "companion": str(self.companion.expanduser().resolve()) if self.companion else None,
            "overrides": list(self.overrides),
        }
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"

    @staticmethod
    def read(folder: Path) -> Source:
        """Of a build. Raises DataError when the folder is no build."""
        try:
            content = json.loads((folder / SOURCE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{folder}: not the folder of a build ({SOURCE} is missing or unreadable).") from error
        mapping, companion = content["mapping"], content["companion"]
        return Source(
            logs=tuple(Path(path) for path in content["logs"]),
            format=content["format"],
            mapping=Path(mapping) if mapping else None,
            companion=Path(companion) if companion else None,
            overrides=tuple(content["overrides"]),
        )
