"""What others can reach while a cluster of ours runs, and what is left when its driver is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from raylign.cluster.leftovers import marked_processes, sweep_abandoned
from raylign.cluster.listeners import listeners

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

DRIVER = """
import sys, time, ray
from pathlib import Path
from raylign.cluster.preloading import preloading
from raylign.cluster.runtime_env import RoleEnv
from raylign.cluster.session import prepared_folder, session
from raylign.conf.schema import ClusterConfig, Device

KEYS = RoleEnv(Device.cpu, threads=1, preload=("colorsys",)).variables()
SMALL = ClusterConfig(object_store_gb=0.1)

@ray.remote
class Role:
    def forked_by(self):
        import os
        return Path(f"/proc/{os.getppid()}/cmdline").read_text().split("\\0")[1]

with prepared_folder() as folder, preloading(folder, [KEYS]), session(SMALL, num_cpus=2, prepared=folder) as opened:
    role = Role.options(runtime_env={"env_vars": KEYS}).remote()
    assert ray.get(role.forked_by.remote(), timeout=120).endswith("fork_server.py")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def driver() -> subprocess.Popen[str]:
    """A driver with a cluster and one role; the folder's path is its first line."""
    return subprocess.Popen([sys.executable, "-c", DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def folder(driver: subprocess.Popen[str]) -> Path:
    assert driver.stdout is not None
    return Path(driver.stdout.readline().strip())


def test_no_server_is_reachable_from_another_machine(driver: subprocess.Popen[str], folder: Path) -> None:
    found = listeners({driver.pid, *marked_processes(folder)})
    assert {"gcs_server", "raylet"} <= {one.process for one in found}, "the test does not see Ray's own servers"
    assert len(found) >= 5
    assert [one for one in found if not one.on_loopback] == []


def test_ray_starts_nothing_that_a_run_does_not_use(driver: subprocess.Popen[str], folder: Path) -> None:
    """Only the dashboard's server, the autoscaler and the log monitor: each of them is named by its own file."""
    commands = [Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8") for pid in marked_processes(folder)]
    assert any("raylet" in command for command in commands), "the test does not see Ray's own processes"
    unused = ("dashboard/dashboard.py", "autoscaler/_private/monitor.py", "log_monitor.py")
    assert [command for command in commands if any(name in command for name in unused)] == []


def test_no_other_user_gets_at_the_token_or_the_shipped_code(folder: Path) -> None:
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "token").stat().st_mode & 0o777 == 0o600
    if os.getuid() == 0:  # then another user can be played
        tried = subprocess.run(
            ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "ls", f"{folder}/r"], capture_output=True
        )
        assert tried.returncode != 0 and b"ermission denied" in tried.stderr


def test_nothing_outlives_a_killed_driver_for_a_minute(driver: subprocess.Popen[str], folder: Path) -> None:
    names = {Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip() for pid in marked_processes(folder)}
    assert {"gcs_server", "raylet"} <= names, f"the test does not see the cluster's processes, only {names}"
    driver.send_signal(signal.SIGKILL)
    driver.wait(10)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (folder.exists() or marked_processes(folder)):
        time.sleep(0.2)
    assert not marked_processes(folder) and not folder.exists()


def test_the_next_start_removes_what_a_dead_driver_left_and_nothing_else(tmp_path: Path) -> None:
    dead, alive = tmp_path / "raylign-ray-dead", tmp_path / "raylign-ray-alive"
    nobodys = tmp_path / "raylign-ray-nobodys"
    nobodys.mkdir()
    for path, owner in ((dead, "999999999 1"), (alive, None)):
        path.mkdir()
        stat = Path(f"/proc/{os.getpid()}/stat").read_text().rpartition(")")[2].split()[19]
        (path / "owner").write_text(owner or f"{os.getpid()} {stat}")
    sleeper = subprocess.Popen(
        ["sleep", "600"], env={"RAY_AUTH_TOKEN_PATH": f"{dead}/token", "PATH": os.environ["PATH"]}
    )
    try:
        assert sweep_abandoned(tmp_path) == [dead]
        assert sleeper.wait(10) == -signal.SIGKILL
        assert alive.is_dir() and nobodys.is_dir() and not dead.exists()
    finally:
        sleeper.kill()
