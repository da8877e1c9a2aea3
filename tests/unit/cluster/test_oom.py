"""A death is put down to memory when the kernel's count has moved, once."""

from __future__ import annotations

from pathlib import Path

from raylign.cluster.oom import MemoryKills


def test_a_kill_is_told_once_with_the_setting_to_lower(tmp_path: Path) -> None:
    counts = tmp_path / "vmstat"
    counts.write_text("nr_free_pages 12\noom_kill 3\n")
    kills = MemoryKills(counts)
    assert kills.note("policy") == ""
    counts.write_text("nr_free_pages 12\noom_kill 4\n")
    said = kills.note("critic")
    assert "has killed 1 of this machine's processes for lack of memory: lower critic.micro_batch_tokens" in said
    assert kills.note("critic") == ""


def test_a_system_without_the_count_says_nothing(tmp_path: Path) -> None:
    assert MemoryKills(tmp_path / "none").note("rollout") == ""
    (tmp_path / "old").write_text("nr_free_pages 12\n")
    assert MemoryKills(tmp_path / "old").note("rollout") == ""
