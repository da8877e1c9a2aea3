"""`raylign serve-reward`: which model, and who may ask. The server itself is in tests/unit/reward/test_serving.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from raylign.app.commands.serve_reward import TOKEN_ENV, Listening, listening, precision_of, scalar_export
from raylign.conf.errors import UserError
from raylign.conf.schema import Precision


def test_without_a_token_nobody_is_served_unless_asked_for_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_ENV, "short")
    with pytest.raises(UserError, match="RAYLIGN_REWARD_TOKEN holds no token of 8 characters or more"):
        listening("127.0.0.1", 1, open_to_all=False)
    for host in ("0.0.0.0", "10.0.0.1", "127.evil.example", "::"):
        with pytest.raises(UserError, match="anybody on the network could send requests"):
            listening(host, 1, open_to_all=True)
    assert listening("::1", 1, open_to_all=True) == Listening("::1", 1, "")
    monkeypatch.setenv(TOKEN_ENV, "long-enough")
    assert listening("0.0.0.0", 1, open_to_all=False).token == "long-enough"


def test_a_language_model_and_a_run_without_an_export_are_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a language model, which scores nothing"):
        scalar_export(str(tiny_model_dir), tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "resolved.yaml").write_text("")
    with pytest.raises(UserError, match="is a run without an export"):
        scalar_export("run", tmp_path)
    with pytest.raises(UserError, match="nothing: there is neither a run nor an exported model"):
        scalar_export("nothing", tmp_path)


def test_precision_is_one_of_two_words() -> None:
    assert precision_of(None) is None and precision_of("float32") is Precision.float32
    with pytest.raises(UserError, match="--precision half: choose float32 or bfloat16"):
        precision_of("half")
