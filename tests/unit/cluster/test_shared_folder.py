"""The folder a rank finds under the driver's path is the driver's own, or the rank refuses by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from raylign.cluster.shared_folder import SharedFolder
from raylign.conf.errors import ClusterError


def test_the_drivers_own_folder_is_proved(tmp_path: Path) -> None:
    marked = SharedFolder.mark(tmp_path)
    before = sorted(tmp_path.iterdir())
    marked.prove("policy", 0)
    assert sorted(tmp_path.iterdir()) == before, "trying whether the folder can be written to leaves nothing"


def test_another_disk_under_the_same_path_is_refused(tmp_path: Path) -> None:
    """What a rank sees where /runs is a folder of each machine: another token, from another run, or none."""
    driver, node = tmp_path / "driver", tmp_path / "node"
    driver.mkdir()
    node.mkdir()
    marked = SharedFolder.mark(driver)
    elsewhere = replace(marked, path=str(node))
    with pytest.raises(ClusterError, match=r"policy rank 3 on .* cannot read .*/node .No such file.*same run_root"):
        elsewhere.prove("policy", 3)
    SharedFolder.mark(node)
    with pytest.raises(ClusterError, match=r"critic rank 1 on .* finds another folder than the driver's"):
        elsewhere.prove("critic", 1)
    marked.prove("policy", 3)


def test_a_relative_run_folder_travels_as_an_absolute_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    marked = SharedFolder.mark(Path("runs"))
    monkeypatch.chdir("/")  # a rank works where its node's `ray start` ran
    marked.prove("policy", 0)
    assert marked.path == str(tmp_path / "runs")
