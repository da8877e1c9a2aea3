"""Models by their name on a hub, against a small hub on loopback, as a person's process meets it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from raylign.conf.model_folder import is_hub_name
from raylign.data.sample_model import tiny_model

from tests.unit.app.hub_server import Hub, hub

FIRST, SECOND = "1" * 40, "2" * 40

SCRIPT = """
import json, sys
from pathlib import Path
from raylign.app.configuration import compose
from raylign.app.launch.chain import hub_models, with_model_folders
from raylign.app.main import settled
from raylign.conf.errors import ConfigError

for given in json.loads(sys.argv[1]):
    told = []
    try:
        config = compose(["algorithm=sft", "data.train=rows.jsonl", *given["settings"]]).config
        found = with_model_folders(config) if given.get("plan") else settled(config, fetch=told.append)
        say = {"folder": found.policy.model, "told": told, "pins": hub_models(config, found)}
    except ConfigError as error:
        say = {"error": list(error.problems), "told": told}
    print(json.dumps(say))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("model")
    tiny_model(folder, tie=True)
    found = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    return found | {"modeling_lab.py": b"raise SystemExit", "pytorch_model.bin": b"\x80", "LICENSE": b"MIT"}


def played(folder: Path, url: str, *runs: dict[str, object], offline: bool = False) -> list[dict[str, object]]:
    (folder / "rows.jsonl").write_text("{}\n")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGINGFACE", "TRANSFORMERS_"))}
    env |= {"HF_ENDPOINT": url, "HF_HOME": str(folder / "hf"), **({"HF_HUB_OFFLINE": "1"} if offline else {})}
    command = [sys.executable, "-c", SCRIPT, json.dumps(runs)]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def downloads(served: Hub) -> set[str]:
    return {path.rsplit("/", 1)[-1] for path in served.asked if "/resolve/" in path}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_it_is_downloaded_once_pinned_and_found_again_without_a_network(
    tmp_path: Path, files: dict[str, bytes]
) -> None:
    named = {"settings": ["policy.model=lab/tiny"]}
    with hub({"lab/tiny": {FIRST: files}}) as served:
        planned, first, again = played(tmp_path, served.url, {**named, "plan": True}, named, named)
        assert planned["error"] == [
            "policy.model=lab/tiny: there is no such folder here, and the hub's model of this name is not on this "
            "machine yet; correct the path if a folder is meant, else `raylign train` downloads it, or `hf download "
            "lab/tiny --exclude '*.bin'`."
        ]
        folder = Path(str(first["folder"]))
        assert folder.is_relative_to(tmp_path / "hf") and folder.name == FIRST
        assert first["pins"] == {"policy": f"lab/tiny@{FIRST}"}
        (told,) = first["told"]  # type: ignore[misc]
        assert told.startswith(
            f"policy.model=lab/tiny: no such folder here; downloading revision {FIRST} from {served.url} (0.00 GB"
        )
        assert again["folder"] == first["folder"] and again["told"] == []
        assert {"model.safetensors", "config.json", "LICENSE"} <= downloads(served)
        assert not {"modeling_lab.py", "pytorch_model.bin"} & downloads(served)
        assert (folder / "model.safetensors").read_bytes() == files["model.safetensors"]
        # the hub moves on; a run that goes on does not
        served.models["lab/tiny"][SECOND] = {**files, "config.json": files["config.json"] + b"\n"}
        run = tmp_path / "runs" / "mine"
        run.mkdir(parents=True)
        start = {
            "generation": 0, "started_at": "", "argv": [], "host": "", "pid": 1, "platform": "", "python": "",
            "packages": {}, "git_sha": None, "git_dirty": None, "inputs": {}, "hub_models": first["pins"],
        }  # fmt: skip
        (run / "manifest.json").write_text(json.dumps({"name": "mine", "starts": [start]}))
        newer = {"settings": [f"policy.model=lab/tiny@{SECOND}"]}
        moved, resumed = played(tmp_path, served.url, newer, {"settings": ["policy.model=lab/tiny", "name=mine"]})
        assert Path(str(moved["folder"])).name == SECOND and moved["told"]
        assert resumed["folder"] == first["folder"] and resumed["told"] == []
    away, pinned = played(tmp_path, "http://127.0.0.1:9", named, newer)
    assert away["folder"] == first["folder"] and pinned["folder"] == moved["folder"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_cannot_be_had_is_a_sentence_with_what_to_do(tmp_path: Path, files: dict[str, bytes]) -> None:
    pickled = {name: content for name, content in files.items() if not name.endswith(".safetensors")}
    with hub({"lab/tiny": {FIRST: files}, "lab/old": {FIRST: pickled}}) as served:
        gone, revision, old = played(
            tmp_path, served.url, {"settings": ["policy.model=lab/tinny"]},
            {"settings": ["policy.model=lab/tiny@v9"]}, {"settings": ["policy.model=lab/old"]},
        )  # fmt: skip
    assert gone["error"] == [
        f"policy.model=lab/tinny: there is no such folder here, and {served.url} has no model of this name (or it is "
        "private: `hf auth login`)."
    ]
    assert f"{served.url}/lab/tiny has no revision 'v9'" in str(revision["error"])
    assert "has no safetensors weights, and pickled ones are not loaded" in str(old["error"])
    assert "pytorch_model.bin" not in downloads(served)
    for offline in (False, True):
        (away,) = played(tmp_path, "http://127.0.0.1:9", {"settings": ["policy.model=lab/tiny@v2"]}, offline=offline)
        (told,) = away["error"]  # type: ignore[misc]
        assert told.startswith(
            "policy.model=lab/tiny@v2: there is no such folder here, no copy of a hub's model of this name, and "
            "http://127.0.0.1:9 cannot be reached"
        )
        assert "correct the path if a folder is meant" in told
        assert "`hf download lab/tiny --revision v2 --exclude '*.bin'`" in told


def test_a_path_that_is_misspelt_is_no_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    assert [
        is_hub_name(n)
        for n in (
            "lab/tiny",
            "lab/tiny@main",
            "models/tiny",
            "./lab/tiny",
            "/lab/tiny",
            "tiny",
            "a/b/c",
            "~/tiny",
            "lab/",
        )
    ] == [True, True, False, False, False, False, False, False, False]
