"""Every `raylign` command that README and docs show: its options exist, and what it sets composes to a run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from raylign.app.cli import app
from raylign.app.commands.loop_training import composed_training
from raylign.app.configuration import compose
from raylign.conf.errors import ConfigError
from raylign.conf.loop import Kind, read_loop

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])
CLI: Any = typer.main.get_command(app)
BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
SHELL = ("", "sh", "bash")
COMPOSED = ("train", "plan", "submit")


def fenced(page: Path) -> Iterator[list[str]]:
    """Words of every command in the page's blocks; the body of a shell loop too."""
    for kind, body in BLOCK.findall(page.read_text()):
        if kind in SHELL:
            for line in body.replace("\\\n", " ").splitlines():
                for shown in re.findall(r"(?:^|; do )(raylign [^;]*)", line):
                    yield shlex.split(shown.replace("$lr", "1e-6"), comments=True)


def inline(page: Path) -> Iterator[list[str]]:
    """Words of every `raylign ...` in the text."""
    for shown in re.findall(r"`(raylign [^`]+)`", re.sub(BLOCK, "", page.read_text())):
        yield shlex.split(shown.replace("\n", " "))


def settings(words: list[str]) -> list[str]:
    """The settings among the words of `train`, `plan` and `submit`, files of settings included."""
    found, files = [], iter(words)
    for word in files:
        if word in ("--config", "--config-dir"):
            found.append(f"{word}={next(files)}")
        elif word in ("--cluster", "--address"):
            next(files)
        elif "=" in word:
            found.append(word)
    return found


SHOWN = [(page, words) for page in PAGES for words in fenced(page)]
NAMED = [(page, words) for page in PAGES if page.name != "log.md" for words in inline(page)]


def name_of(value: object) -> str:
    return value.relative_to(ROOT).as_posix() if isinstance(value, Path) else " ".join(value)[:60]  # type: ignore[arg-type]


def test_the_pages_are_read() -> None:
    assert len(SHOWN) > 30 and len(NAMED) > 40
    assert {words[1] for _, words in SHOWN} >= {
        "train",
        "plan",
        "feedback",
        "report",
        "export",
        "serve-reward",
        "doctor",
    }


@pytest.mark.parametrize(("page", "words"), [*SHOWN, *NAMED], ids=name_of)
def test_the_command_and_its_options_exist(page: Path, words: list[str]) -> None:
    command, rest = CLI, words[1:]
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        assert rest[0] in command.commands, f"{rest[0]}: no such command"
        command, rest = command.commands[rest[0]], rest[1:]
    known = {option for parameter in command.params for option in parameter.opts} | {"--help", "--version"}
    given = {word.partition("=")[0] for word in rest if word.startswith("--")}
    passes_on = bool(command.context_settings.get("ignore_unknown_options"))
    assert passes_on or given <= known


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of the pages: own files as they show them, and whatever a command names."""
    monkeypatch.chdir(tmp_path)
    for example in (ROOT / "examples").glob("*.py"):
        (tmp_path / example.name).write_text(example.read_text())
    (tmp_path / "my.yaml").write_text(
        "defaults:\n  - algorithm: grpo\npolicy: {model: my-model}\ndata.train: prompts.jsonl\n"
        "reward: {rules: [{rule: finished}]}\n"
    )
    model(tmp_path / "my-model")
    (tmp_path / "prompts.jsonl").write_text("{}\n")
    return tmp_path


def model(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")


@pytest.mark.parametrize(
    ("page", "words"),
    [(p, w) for p, w in SHOWN if w[1] in COMPOSED and "..." not in w and "--loop" not in w],
    ids=name_of,
)
def test_what_it_sets_composes_to_a_run(page: Path, words: list[str], folder: Path) -> None:
    given = settings(words[2:])
    for setting in given:
        key, _, value = setting.partition("=")
        if key.endswith(".model") and value.count("/") != 1:
            model(folder / value)
        elif key.startswith("data.") and value.endswith(("l", ".csv")):
            (folder / value).parent.mkdir(parents=True, exist_ok=True)
            (folder / value).write_text("{}\n")
    for value in (s.partition("=")[2] for s in given if s.startswith("policy.model=runs/")):
        model(folder / value)
    try:
        compose(given)
    except ConfigError as error:
        pytest.fail(f"{page.name}: {shlex.join(words)}\n{error}")


def test_the_loop_of_its_page_is_read_and_its_trainings_compose(folder: Path) -> None:
    shown = next(body for kind, body in BLOCK.findall((ROOT / "docs" / "loop.md").read_text()) if kind == "yaml")
    (folder / "loop.yaml").write_text(shown)
    config = read_loop(folder / "loop.yaml")
    (folder / "rows.jsonl").write_text("{}\n")
    models = {"current": folder / "my-model", "reward-model": folder / "my-model"}
    assert [training.name for training in config.train] == ["reward-model", "policy"]
    for training in config.train:
        data = ("data.train=rows.jsonl",) if training.kind is not Kind.none else ()
        composed_training(training, models, data, "a-run", folder)
