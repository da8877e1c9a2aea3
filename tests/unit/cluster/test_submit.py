from __future__ import annotations

from pathlib import Path

import pytest
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


def test_no_cluster_is_said_with_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"127\.0\.0\.1:1 does not answer.*ray start --head"):
        submit.submit([], address="http://127.0.0.1:1", working_dir=tmp_path, wait=False)


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
