"""What a role's log says of its end."""

from __future__ import annotations

from pathlib import Path

import pytest
from raylign.cluster.rank import last_error

CORE = "(EngineCore pid=7) ERROR [core.py:1301] "


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            [f"{CORE}Traceback (most recent call last):",
             f"{CORE}ValueError: No available memory for the cache blocks.",
             "RuntimeError: Engine core initialization failed. See root cause above."],
            "ValueError: No available memory for the cache blocks.",
        ),
        ([f"{CORE}torch.OutOfMemoryError: CUDA out of memory", "INFO done"], "OutOfMemoryError: CUDA out of memory"),
        (["INFO nothing went wrong", "Error"], ""),
        ([], ""),
    ],
)  # fmt: skip
def test_the_last_named_error_is_the_reason(lines: list[str], expected: str, tmp_path: Path) -> None:
    log = tmp_path / "rollout-0.log"
    log.write_text("\n".join(["KeyError: long before", *["INFO a line"] * 9000, *lines]))
    assert last_error(log) == expected
    assert last_error(tmp_path / "none.log") == ""
