"""Orders to a live run: taken only by one that lives, read whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from raylign.conf.errors import UserError
from raylign.records.run_folder import RunFolder
from raylign.records.scale_order import FILE, Order, clear_order, give_order, parse_order, read_order


def test_an_order_reaches_a_live_run_and_no_other(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, "live", resume=True) as folder:
        assert read_order(folder.path) == Order()
        give_order(folder.path, Order(rollout=8))
        give_order(folder.path, Order(reward=2))
        assert read_order(folder.path) == Order(8, 2), "an order for one role forgets the other"
        give_order(folder.path, Order(rollout=1))
        assert read_order(folder.path) == Order(1, 2)
        clear_order(folder.path)
        assert read_order(folder.path) == Order()
    with pytest.raises(
        UserError, match=r"live is not running; start it with rollout\.num_workers=8 reward\.num_replicas=2"
    ):
        give_order(folder.path, Order(8, 2))
    with RunFolder.open(tmp_path, "live", resume=True):
        pass  # looking for the lock did not take it


def test_words_are_orders_or_named() -> None:
    assert parse_order(["rollout=8", "reward=2"]) == Order(8, 2)
    for word in ("rollout=0", "reward=many", "rollout=", "rollout=5000", "rollout=-1"):
        with pytest.raises(UserError, match=f"{word}: give a number from 1 to 4096"):
            parse_order([word])
    with pytest.raises(UserError, match="policy=2: only rollout and reward workers come and go"):
        parse_order(["policy=2"])
    with pytest.raises(UserError, match="nothing to change"):
        parse_order([])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"rollout": true}', '{"rollout": "9"}', '{"rollout": 0}', "null"])
def test_what_is_no_order_changes_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    assert read_order(tmp_path) == Order()
