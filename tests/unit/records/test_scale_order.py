"""Orders to a live run: taken only by one that lives, read whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from raylign.conf.errors import UserError
from raylign.records.run_folder import RunFolder
from raylign.records.scale_order import FILE, clear_order, give_order, read_order


def test_an_order_reaches_a_live_run_and_no_other(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, "live", resume=True) as folder:
        assert read_order(folder.path, otherwise=3) == 3
        give_order(folder.path, rollout=8)
        assert read_order(folder.path, otherwise=3) == 8
        with pytest.raises(UserError, match="--rollout 0: give a number from 1"):
            give_order(folder.path, rollout=0)
        clear_order(folder.path)
        assert read_order(folder.path, otherwise=3) == 3
    with pytest.raises(UserError, match=r"live is not running; start it with rollout\.num_workers=8"):
        give_order(folder.path, rollout=8)
    with RunFolder.open(tmp_path, "live", resume=True):
        pass  # looking for the lock did not take it


@pytest.mark.parametrize("text", ["", "{", "[]", '{"rollout": true}', '{"rollout": "9"}', '{"rollout": 0}', "null"])
def test_what_is_no_order_changes_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    assert read_order(tmp_path, otherwise=2) == 2
