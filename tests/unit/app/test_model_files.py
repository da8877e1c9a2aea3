"""Model folders that lack files, or hold broken ones, are refused by `plan` in one sentence of their role."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from raylign.app.configuration import compose, needs
from raylign.app.launch.refusals import refuse_impossible
from raylign.conf.errors import ConfigError, ModelLoadError
from raylign.data.tokenize import load_tokenizer


def without(*patterns: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for pattern in patterns:
            for file in folder.glob(pattern):
                file.unlink()

    return change


def written(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text, encoding="latin-1") and None


WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "nothing": (without("*"), "the folder is empty and holds no config.json"),
    "tokenizer alone": (
        without("*config.json", "*.safetensors"),
        "folder holds no config.json",
    ),
    "weights alone": (without("*.json", "*.jinja"), "folder holds no config.json"),
    "no weights": (without("*.safetensors"), "holds no weights"),
    "generation settings cut": (written("generation_config.json", '{"eos'), "generation_config.json cannot be read"),
    "generation settings a list": (written("generation_config.json", "[2]"), "is not a JSON object"),
    "configuration a list": (written("config.json", "[]"), "config.json is not a JSON object"),
    "configuration not UTF-8": (written("config.json", '{"a": "\xe9"}'), "config.json cannot be read"),
}
ROLES = {
    "policy": ("sft", "policy.model={wrong}"),
    "reference": ("dpo", "reference.model={wrong}"),
    "critic": ("ppo", "critic.model={wrong}"),
    "reward": ("grpo", "reward.model={wrong}"),
}


def refuse(role: str, wrong: Path, whole: Path, *, to_run: bool = True) -> None:
    algorithm, given = ROLES[role]
    settings = [f"policy.model={whole}", f"data.train={whole}/config.json", "data.eval=''", given.format(wrong=wrong)]
    settings += ["reward.rules=[{rule: finished}]"] if role == "critic" else []
    config = compose([f"+experiment={algorithm}_tiny_cpu", *settings]).config
    refuse_impossible(config, needs(config), to_run=to_run)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_a_folder_that_is_no_model_is_refused_in_every_role(name: str, tiny_model_dir: Path, tmp_path: Path):
    wrong = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    change, said = WRONG[name]
    change(wrong)
    for role in ROLES:
        with pytest.raises(ConfigError) as refused:
            refuse(role, wrong, tiny_model_dir)
        assert len(refused.value.problems) == 1, refused.value.problems
        assert said in str(refused.value) and f"{role}.model={wrong}" in str(refused.value)


def test_a_policy_without_a_tokenizer_is_refused_and_a_configuration_alone_is_planned_for(
    tiny_model_dir: Path, tmp_path: Path
):
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    without("tokenizer*", "*.jinja")(folder)
    with pytest.raises(ConfigError, match="holds no tokenizer"):
        refuse("policy", folder, tiny_model_dir)
    refuse("reference", folder, tiny_model_dir)  # which is given token ids
    without("*.safetensors")(folder)
    refuse("policy", folder, tiny_model_dir, to_run=False)


@pytest.mark.parametrize(
    ("part", "content"), [("model", {"type": "Odd"}), ("pre_tokenizer", {"type": "Odd"}), ("added_tokens", [3])]
)
def test_a_tokenizer_that_the_library_does_not_know_is_refused(
    part: str, content: object, tiny_model_dir: Path, tmp_path: Path
):
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    file = folder / "tokenizer.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), part: content}))
    with pytest.raises(ModelLoadError, match="the tokenizer cannot be loaded"):
        load_tokenizer(str(folder))
