"""Roles as forks of a server that has their libraries: as if started anew, and so they are where there is no server."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from raylign.cluster import fork_client, preloads
from raylign.cluster.preloading import preloading

ROLE = """
import json, os, random, sys, time
print(json.dumps({
    "pid": os.getpid(), "parent": os.getppid(), "group": os.getpgid(0), "arguments": sys.argv, "place": sys.path[0],
    "folder": os.getcwd(), "mine": os.environ.get("MINE"), "counted": "counted" in sys.modules, "name": __name__,
    "threads": os.environ.get("OMP_NUM_THREADS"), "drawn": random.random(),
}), flush=True)
sys.exit(int(os.environ.get("CODE", "0")))
"""


class Cluster:
    """What a role's start needs of one: the private folder, and a raylet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "role.py").write_text(ROLE)
        (folder / "counted.py").write_text("open('imports', 'a').write('x')\n")
        (folder / "ends.py").write_text("import os; os._exit(3)\n")
        self.raylet = subprocess.Popen(["sleep", "600"])

    def begin(self, preload: str = "counted", **more: str) -> subprocess.Popen[str]:
        """As the raylet starts a role."""
        named = {fork_client.PRELOAD: preload} if preload else {}
        mark = {fork_client.MARK: str(self.folder / "token"), "RAY_RAYLET_PID": str(self.raylet.pid)}
        return subprocess.Popen(
            [sys.executable, "-I", "-S", fork_client.__file__, str(self.folder / "role.py"), "--token=7", "last"],
            cwd=self.folder, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONPATH": str(self.folder)} | named | mark | more,
        )  # fmt: skip

    def role(self, preload: str = "counted", **more: str) -> dict[str, object]:
        """What a role says of itself."""
        with self.begin(preload, **more) as client:
            assert client.stdout is not None
            said = json.loads(client.stdout.readline())
        return said | {"client": client.pid}

    def imports(self) -> int:
        """How often the library was imported anew."""
        return len((self.folder / "imports").read_text())

    def sockets(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("fork-*") if path.is_socket())


def lives(pid: object) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("c"))
    yield made
    made.raylet.kill()
    made.raylet.wait(10)


def test_roles_are_forks_that_look_as_if_they_had_been_started(cluster: Cluster):
    first, second = cluster.role(MINE="yes"), cluster.role(MINE="yes")

    assert cluster.imports() == 1 and first["counted"] and second["counted"]
    assert first["parent"] == second["parent"] != os.getpid() and first["pid"] != second["pid"]
    assert first["drawn"] != second["drawn"]
    for said in (first, second):
        assert said["group"] == said["pid"], "the raylet ends a role with its group"
        assert said["arguments"] == [str(cluster.folder / "role.py"), "--token=7", "last"]
        assert said["place"] == said["folder"] == str(cluster.folder)
        assert (said["mine"], said["name"]) == ("yes", "__main__")


def test_another_environment_is_another_server(cluster: Cluster):
    one, other = cluster.role(GOMP_SPINCOUNT="0"), cluster.role(GOMP_SPINCOUNT="2000")

    assert one["parent"] != other["parent"] and cluster.imports() == 2 and len(cluster.sockets()) == 2


@pytest.mark.parametrize("later", ["SPT_NOENV", "TORCHINDUCTOR_CACHE_DIR"])
def test_a_server_serves_any_number_of_threads_and_what_is_set_later_in_workers_or_their_driver(
    cluster: Cluster, later: str
):
    one = cluster.role(OMP_NUM_THREADS="1")
    other = cluster.role(**{"OMP_NUM_THREADS": "2", later: "1"})

    assert one["parent"] == other["parent"] and cluster.imports() == 1
    assert (one["threads"], other["threads"]) == ("1", "2")


def test_servers_started_before_the_cluster_are_the_roles_and_end_with_what_started_them(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(cluster.folder)
    monkeypatch.setenv("PYTHONPATH", str(cluster.folder))
    monkeypatch.setenv(fork_client.MARK, str(cluster.folder / "token"))
    same = {fork_client.PRELOAD: "counted", "OMP_NUM_THREADS": "1"}
    with preloading(cluster.folder, [same, same | {"OMP_NUM_THREADS": "2"}, {"MINE": "no preload"}]):
        assert len(cluster.sockets()) == 1
        said = cluster.role(OMP_NUM_THREADS="2", RAY_JOB_ID="01000000")
        assert said["parent"] != said["client"] and said["counted"] and cluster.imports() == 1
        assert said["arguments"] == [str(cluster.folder / "role.py"), "--token=7", "last"]
        assert said["place"] == str(cluster.folder)
        assert lives(said["parent"])
    assert not lives(said["parent"])


def test_a_borrower_takes_the_server_of_another_kind_with_its_own_environment(cluster: Cluster):
    owner = cluster.role(MINE="owner")
    borrower = cluster.role("", MINE="borrower", **{fork_client.BORROW: "counted"})

    assert borrower["parent"] == owner["parent"] and cluster.imports() == 1
    assert borrower["mine"] == "borrower"


def test_who_finds_no_server_starts_by_itself(cluster: Cluster):
    plain = cluster.role("")
    broken = cluster.role("ends")
    missing = cluster.role("there_is_no_such_module,counted")

    for said in (plain, broken):
        assert said["pid"] == said["client"] and not said["counted"] and said["mine"] is None
    assert missing["pid"] != missing["client"] and missing["counted"], "a missing module costs time alone"


def test_a_borrower_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fork_client, "BORROW_S", 0.1)
    for name, value in ((fork_client.BORROW, "nobody"), (fork_client.MARK, str(tmp_path / "token"))):
        monkeypatch.setenv(name, value)

    assert not fork_client.forked(["role.py"])


def test_the_server_ends_with_the_raylet(cluster: Cluster):
    server = cluster.role()["parent"]
    cluster.raylet.send_signal(signal.SIGKILL)
    cluster.raylet.wait(10)

    deadline = time.monotonic() + 20
    while lives(server) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not lives(server)


def test_roles_that_ask_at_once_share_one_server_that_outlives_them(cluster: Cluster):
    clients = [cluster.begin() for _ in range(8)]
    said = []
    for client in clients:
        with client:
            assert client.stdout is not None
            said.append(json.loads(client.stdout.readline()))

    assert len({one["parent"] for one in said}) == 1 and cluster.imports() == 1
    assert len({one["pid"] for one in said}) == 8
    assert cluster.role()["parent"] == said[0]["parent"]


@pytest.mark.parametrize("name", [*preloads.LEARNER, *preloads.ENGINE])
def test_what_is_named_for_import_is_there(name: str):
    """By its file: importing it would take seconds."""
    top, _, rest = name.partition(".")
    found = importlib.util.find_spec(top)
    assert found is not None and found.submodule_search_locations is not None
    if top == "raylign":
        folder = importlib.util.find_spec(name.rpartition(".")[0])
        assert folder is not None
        places, rest = folder.submodule_search_locations or [], name.rpartition(".")[2]
    else:
        places = found.submodule_search_locations
    path = Path(next(iter(places))).joinpath(*rest.split("."))
    assert not rest or path.is_dir() or path.with_suffix(".py").is_file()
