from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.job_submission import JobStatus
from raylign.cluster import submit
from raylign.conf.errors import ClusterError, UserError


def write(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)


def test_what_a_machine_builds_and_a_run_writes_stays_behind(tmp_path: Path) -> None:
    for name in (
        "app/main.py",
        ".venv/lib/x.so",
        "a/__pycache__/b.pyc",
        "runs/r/model.bin",
        ".env",
        "data/x.jsonl",
    ):
        write(tmp_path / name, 10)
    shipped = {str(p.relative_to(tmp_path)) for p in submit.shipped_files(tmp_path)}
    assert shipped == {"app/main.py", "data/x.jsonl"}


def test_a_folder_too_large_is_refused_with_what_is_large(tmp_path: Path) -> None:
    write(tmp_path / "app/main.py", 1 << 20)
    write(tmp_path / ".venv/torch.so", 900 << 20)
    submit.check_working_dir(tmp_path)
    write(tmp_path / "models/smol/model.safetensors", 120 << 20)
    with pytest.raises(UserError, match=r"is 121 MiB.*at most 100 MiB.*Largest: models 120 MiB, app 1 MiB"):
        submit.check_working_dir(tmp_path)
    with pytest.raises(UserError, match="there is no such folder"):
        submit.check_working_dir(tmp_path / "nothing")


def test_no_cluster_is_said_with_how_to_start_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:2")  # Ray would take this one without a word
    with pytest.raises(ClusterError, match=r"127\.0\.0\.1:1: the job server does not answer.*ray start --head"):
        submit.submit([], address="http://127.0.0.1:1", working_dir=tmp_path, wait=False)
    assert os.environ["RAY_API_SERVER_ADDRESS"] == "http://127.0.0.1:1"


@pytest.mark.parametrize(("given", "meant"), [("10.0.0.1:6379", "http://10.0.0.1:8265"), ("auto", "http://auto:8265")])
def test_an_address_that_is_no_job_servers_is_refused(
    given: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray would wait a minute for a cluster's own port and then end in a traceback."""
    with pytest.raises(UserError, match=rf"^--address {given}: .* write it as {meant}$"):
        submit.submit([], address=given, working_dir=tmp_path, wait=False)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", given)
    with pytest.raises(UserError, match=rf"^RAY_API_SERVER_ADDRESS={given}: "):
        submit.submit([], address=None, working_dir=tmp_path, wait=False)


@pytest.mark.parametrize("status", [401, 403])
def test_a_cluster_that_refuses_the_token_is_named_with_the_variables(
    status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", address)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong" * 8)
    try:
        with pytest.raises(
            ClusterError, match=rf"{address}: the job server refused this process .*RAY_AUTH_TOKEN_PATH"
        ) as refused:
            submit.submit([], address=address, working_dir=tmp_path, wait=False)
    finally:
        server.shutdown()
        server.server_close()
    assert "wrong" not in str(refused.value) and refused.value.exit_code == 2


def test_a_broken_connection_is_made_again_and_no_line_told_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job server that drops the log after two lines, then once more, then gives all of it."""
    told: list[str] = []

    class Client:
        reads, statuses = [2, 3, 5], [JobStatus.RUNNING, JobStatus.FAILED]

        async def tail_job_logs(self, _: str) -> AsyncIterator[str]:
            count = self.reads.pop(0)
            for number in range(count):
                yield f"line {number} "
                yield "is cut in two\n"
            if count == 2:
                yield "line 2 is cut"  # as Ray sends what is there when it looks
                raise ConnectionError("gone")

        def get_job_status(self, _: str) -> JobStatus:
            return self.statuses.pop(0)

        def get_job_logs(self, _: str) -> str:
            return "".join(f"line {number} is cut in two\n" for number in range(6)) + "the last"

        def get_job_info(self, _: str) -> SimpleNamespace:
            message = "Job entrypoint command failed with exit code 2, last available logs (20,000 chars):\nx"
            return SimpleNamespace(message=message, driver_exit_code=2)

    monkeypatch.setattr(submit, "_POLL_S", 0.0)
    code = asyncio.run(submit._follow(Client(), "j", told.append))  # type: ignore[arg-type]
    assert code == 2 and told[:6] == [f"line {number} is cut in two" for number in range(6)]
    assert told[6:] == [
        "the last",
        "job j failed: Job entrypoint command failed with exit code 2",
        "job j ended with exit code 2",
    ]


def test_the_ignore_file_keeps_files_from_being_counted(tmp_path: Path) -> None:
    write(tmp_path / "my.py", 10)
    write(tmp_path / "models/a.bin", 120 << 20)
    (tmp_path / ".rayignore").write_text("models/\n")
    assert {path.name for path in submit.shipped_files(tmp_path)} == {"my.py", ".rayignore"}
    submit.check_working_dir(tmp_path)


def test_named_variables_go_along_and_a_value_on_the_command_line_is_refused() -> None:
    environ = {"WANDB_API_KEY": "k", "MY_TOKEN": "t", "OTHER": "o"}
    assert submit.forwarded(["MY_TOKEN"], environ) == {"WANDB_API_KEY": "k", "MY_TOKEN": "t"}
    with pytest.raises(UserError) as refused:
        submit.forwarded(["MY_TOKEN=secret", "NOT_SET"], environ)
    assert len(refused.value.problems) == 2 and "secret" not in str(refused.value)
