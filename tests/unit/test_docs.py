"""The documentation against the code: links lead somewhere, settings, metrics and names exist, messages are printed."""

from __future__ import annotations

import ast
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest
from raylign.conf.schema import AlgorithmConfig, RunConfig
from raylign.records.glossary import describe, groups
from raylign.trainer.algorithms import ALGORITHMS

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])
CODE = ("app", "cluster", "conf", "data", "evals", "feedback", "pages", "records", "reward", "rollout", "trainer")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    missing = [target for target in targets if target and not (page.parent / target).exists()]
    assert not missing


def test_every_page_is_on_the_site() -> None:
    nav = (ROOT / "mkdocs.yml").read_text().partition("nav:")[2]
    shown = sorted(re.findall(r"[\w./-]+\.md", nav))
    assert shown == sorted(path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md"))


def setting_keys(kind: type, prefix: str = "") -> set[str]:
    """Every key of a configuration dataclass in dotted form, sections included."""
    keys: set[str] = set()
    for name, hint in get_type_hints(kind).items():
        keys.add(prefix + name)
        if is_dataclass(hint) and hint is not AlgorithmConfig:
            keys |= setting_keys(hint, f"{prefix}{name}.")
    return keys


ALGORITHM_KEYS = {
    f"algorithm.{field.name}" for config, _ in ALGORITHMS.values() for field in fields(config) if field.name != "name"
}
KEYS = setting_keys(RunConfig) | ALGORITHM_KEYS
OPEN = ("environment.arguments.",)
"""What follows is named by the environment."""
SECTIONS = "|".join(sorted({key.partition(".")[0] for key in KEYS if "." in key}))


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "log.md"], ids=name_of)
def test_settings_that_a_page_names_exist(page: Path) -> None:
    """Whatever is written as code and looks like a key, also with a value: `policy.lora.rank=8`."""
    text = page.read_text()
    code = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    # Third columns of the page on other trainers hold their names.
    code += re.findall(r"^```(?:sh|bash)[^\n]*\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    named = {
        key for part in code for key in re.findall(rf"(?<![\w./+-])((?:{SECTIONS})(?:\.[a-z_]+)+)(?==|`|,|\s|$)", part)
    }
    named = {key for key in named if not key.startswith(OPEN)}
    unknown = {key for key in named if key not in KEYS and not key.endswith(".py") and not _is_code(key)}
    assert not unknown - OTHERS.get(page.name, set())


OTHERS = {
    "coming-from.md": {
        "critic.model.path", "critic.optim.lr", "critic.cliprange_value", "data.train_batch_size", "data.train_files",
        "data.prompt_key", "data.max_prompt_length", "data.max_response_length", "algorithm.kl_ctrl.kl_coef",
        "algorithm.kl_ctrl.target_kl", "algorithm.use_kl_in_reward", "algorithm.norm_adv_by_std_in_grpo",
        "algorithm.lam", "rollout.n", "rollout.tensor_model_parallel_size", "algorithm.adv_estimator",
    },
    "own-algorithm.md": {"algorithm.positive_weight"},
    "ppo.md": {"algorithm.adv_estimator"},
    "grpo.md": {"algorithm.adv_estimator"},
    "rloo.md": {"algorithm.adv_estimator"},
    "reinforce_pp.md": {"algorithm.adv_estimator"},
}  # fmt: skip
"""Keys of other trainers, which some pages name beside ours, and of the algorithm in examples/."""


def _is_code(dotted: str) -> bool:
    """A module, or a name within one: `data.types`, `reward.rules`."""
    parts = dotted.split(".")
    return any((ROOT / Path(*parts[:n])).with_suffix(".py").is_file() for n in range(1, len(parts) + 1))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_has_a_page_with_its_own_settings(name: str) -> None:
    page = (ROOT / "docs" / "algorithms" / f"{name}.md").read_text()
    shared = (ROOT / "docs" / "algorithms" / "online.md").read_text()
    config, _ = ALGORITHMS[name]
    online = "sequences_per_update" in {field.name for field in fields(config)}
    text = page + (shared if online else "")
    missing = [f.name for f in fields(config) if f.name != "name" and f"`algorithm.{f.name}`" not in text]
    assert not missing


def test_metrics_that_a_page_names_exist() -> None:
    for page in (ROOT / "docs" / "algorithms").glob("*.md"):
        named = set(re.findall(rf"`((?:{'|'.join(groups())})/[a-z_/]+)`", page.read_text()))
        unknown = {name for name in named if describe(name) is None}
        assert not unknown, page.name


def test_the_walkthrough_names_what_exists() -> None:
    text = (ROOT / "docs" / "walkthrough.md").read_text()
    for file, name in re.findall(r"`((?:{})/[\w/]+\.py)(?::(\w+))?`".format("|".join(CODE)), text):
        assert (ROOT / file).is_file(), file
        if name:
            defined = {
                node.name
                for node in ast.walk(ast.parse((ROOT / file).read_text()))
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            }
            assert name in defined, f"{file}:{name}"


def test_messages_of_the_troubleshooting_page_can_be_printed() -> None:
    sources = " ".join(
        re.sub(r'"\s*\n\s*f?"', "", path.read_text()) for folder in CODE for path in (ROOT / folder).rglob("*.py")
    )
    sources = re.sub(r"\s+", " ", sources)
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    quoted = re.findall(r'^\| "([^"]+)"', page, flags=re.MULTILINE)
    missing = [words for words in quoted if words not in sources]
    assert len(quoted) > 8 and not missing
