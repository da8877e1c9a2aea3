"""Own yaml files: Hydra's form, the user's folders, and mistakes reported with file and line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from raylign.app.configuration import compose, from_resolved
from raylign.conf.errors import ConfigError, DataError
from raylign.conf.schema import Precision
from raylign.conf.suites import read_suite
from raylign.conf.yaml_text import MAX_BYTES
from raylign.feedback.importers.mapping import mapped_format
from raylign.feedback.scores import parse_scores


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a model and data."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "rows.jsonl").write_text("{}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


PATHS = "policy: {model: model}\ndata: {train: rows.jsonl}\n"


def problems_of(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    return list(caught.value.problems)


def test_an_own_file_chooses_and_sets_and_the_command_line_wins(home: Path):
    (home / "my.yaml").write_text(
        "defaults:\n  - algorithm: grpo\n  - model: tiny\n"
        "policy:\n  model: model\n  optim: {lr: 2e-5}\nalgorithm:\n  kl_coef: 0.125\n"
        "data.train: rows.jsonl\nreward:\n  rules: [{rule: finished}]\n"
        "rollout:\n  prompts_per_step: 32\nevaluation:\n  max_new_tokens: ${rollout.max_new_tokens}\n"
    )
    config = compose(["--config=my.yaml", "seed=7", "rollout.max_new_tokens=16"]).config
    assert (config.algorithm.name, config.algorithm.kl_coef, config.seed) == ("grpo", 0.125, 7)
    assert config.policy.precision is Precision.float32  # of model=tiny
    assert config.policy.optim.lr == 2e-5  # the file's own value over the model's
    assert config.evaluation.max_new_tokens == 16
    assert compose(["--config=my.yaml", "algorithm=rloo"]).config.algorithm.name == "rloo"


def test_the_file_that_the_documentation_shows_composes(home: Path):
    page = (Path(__file__).parents[3] / "docs" / "configuration.md").read_text()
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    (home / "my-model").mkdir()
    (home / "my-model" / "config.json").write_text("{}")
    (home / "prompts.jsonl").write_text("{}\n")
    (home / "my.yaml").write_text(text)
    config = compose(["--config=my.yaml", "seed=7"]).config
    assert (config.algorithm.name, config.policy.optim.lr, config.data.train) == ("grpo", 2e-5, "prompts.jsonl")


def test_files_build_on_files_in_the_order_of_their_defaults(home: Path):
    (home / "base.yaml").write_text(f"algorithm: sft\nseed: 1\nnum_steps: 5\n{PATHS}")
    (home / "mine.yaml").write_text("defaults: [base]\nseed: 2\n")
    (home / "first.yaml").write_text("defaults: [_self_, base]\nseed: 2\n")
    mine, first = (compose([f"--config={name}.yaml"]).config for name in ("mine", "first"))
    assert (mine.seed, mine.num_steps, mine.algorithm.name) == (2, 5, "sft")
    assert first.seed == 1  # what it says itself came first
    (home / "second.yaml").write_text("seed: 3\n")
    assert compose(["--config=mine.yaml", "--config=second.yaml"]).config.seed == 3


def test_hydras_own_form_of_an_experiment_works_as_a_file(home: Path):
    (home / "x.yaml").write_text(
        f"# @package _global_\ndefaults:\n  - override /algorithm: dpo\n  - experiment: dpo_tiny_cpu\n{PATHS}"
    )
    shipped = compose(["+experiment=dpo_tiny_cpu", "policy.model=model", "data.train=rows.jsonl"])
    assert compose(["--config=x.yaml"]).resolved_yaml == shipped.resolved_yaml


def test_a_folder_of_ones_own_adds_choices_to_every_group(home: Path):
    for name, text in {
        "experiment/mine": f"defaults:\n  - override /algorithm: mygrpo\n  - override /model: small\n{PATHS}",
        "model/small": "# @package _global_\npolicy: {micro_batch_tokens: 77}\n",
        "algorithm/mygrpo": "defaults: [grpo]\nkl_coef: 0.5\n",
        "policy/fast": "optim: {lr: 3e-3}\n",
    }.items():
        path = home / "conf" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    rule = "reward.rules=[{rule: finished}]"
    config = compose(["--config-dir=conf", "+experiment=mine", rule]).config
    assert (config.algorithm.name, config.algorithm.kl_coef, config.policy.micro_batch_tokens) == ("grpo", 0.5, 77)
    (home / "my.yaml").write_text(
        "hydra: {searchpath: ['file://conf']}\ndefaults: [{experiment: mine}, {policy: fast}]\n"
    )
    config = compose(["--config=my.yaml", rule]).config
    assert (config.policy.optim.lr, config.policy.micro_batch_tokens) == (3e-3, 77)
    again = compose(["hydra.searchpath=[file://conf]", "+experiment=mine", rule]).config
    assert again.algorithm.kl_coef == 0.5
    (told,) = problems_of("--config-dir=conf", "+experiment=mine2", rule)
    assert told.startswith("+experiment=mine2 is not known; did you mean mine? Choices: demo_ppo")


def test_an_experiment_of_ones_own_builds_on_a_shipped_one_by_its_name(home: Path):
    (home / "settings" / "experiment").mkdir(parents=True)
    (home / "settings" / "experiment" / "mine.yaml").write_text("defaults: [grpo_tiny_cpu]\nseed: 7\n" + PATHS)
    config = compose(["--config-dir=settings", "+experiment=mine", "reward.rules=[{rule: finished}]"]).config
    assert (config.algorithm.name, config.seed, config.num_steps) == ("grpo", 7, 20)


def test_a_mistake_is_reported_with_its_file_and_line(home: Path):
    (home / "my.yaml").write_text(
        f"defaults:\n  - algorithm: rloo\n{PATHS}policy.optim:\n  lrr: 1\n  betas: 3\nalgorithm:\n  gae_lambda: 1\n"
        "rollout:\n  temperatur: 1\nreward:\n  rules:\n    - {rule: finished}\n"
    )
    told = problems_of("--config=my.yaml")
    assert told == [
        "my.yaml:6: policy.optim.lrr is not a setting; did you mean policy.optim.lr?",
        "my.yaml:7: policy.optim.betas=3: expected a list such as [a,b] (default [0.9, 0.95]).",
        "my.yaml:9: algorithm.gae_lambda is a setting of algorithm=ppo, not of this one.",
        "my.yaml:11: rollout.temperatur is not a setting; did you mean rollout.temperature?",
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: [1\n", "my.yaml:2: not readable as yaml (expected ',' or ']'"),
        ("- a\n", "my.yaml: holds a list; a file of settings is `key: value` lines."),
        ("defaults: [bsae]\n", "my.yaml:1: `defaults:` names bsae: there is no such file in "),
        ("defaults: [my]\n", "my.yaml:1: my: my.yaml names itself through its `defaults:`."),
        ("\ndefaults:\n  - algorithm: gpro\n", "my.yaml:2: algorithm=gpro is not known; did you mean grpo?"),
        ("defaults: [{model@policy: tiny}]\n", "my.yaml:1: `model@policy`: a package (@) is not supported"),
        ("hydra: {run: {dir: x}}\n", "my.yaml:1: of `hydra:` only `searchpath: [file:///folder]` has a meaning here."),
        ("hydra: {searchpath: [file://nowhere]}\n", "my.yaml:1: nowhere: there is no such folder; correct the path."),
        ("model: tinny\n", "model=tinny is not known; did you mean tiny?"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_alone(text: str, sentence: str, home: Path):
    """Without the lines that would only follow from the missing file."""
    (home / "base.yaml").write_text("seed: 1\n")
    (home / "my.yaml").write_text(text)
    (told,) = problems_of("--config=my.yaml")
    assert told.startswith(sentence), told


def test_a_file_that_is_missing_or_given_as_a_setting_is_the_only_error(home: Path):
    (home / "mine.yaml").write_text("seed: 1\n")
    assert problems_of("--config=mone.yaml") == [
        f"--config mone.yaml: there is no such file in {home}; did you mean mine?"
    ]
    for given in ("mine.yaml", "+experiment=exps/mine.yaml"):
        (told,) = problems_of(given, "algorithm.scale_by_std=true")
        assert told.startswith(f"{given}: a file of settings is given as --config")
    (told,) = problems_of("+experiment=gpro_tiny_cpu", "algorithm.scale_by_std=true")
    assert told.startswith("+experiment=gpro_tiny_cpu is not known; did you mean grpo_tiny_cpu?")
    told_both = problems_of("+experiment=gpro_tiny_cpu", "policy.model=/nowhere", "rollout.temperatur=1")
    assert len(told_both) == 3  # what is wrong by itself is still told
    assert problems_of("--config-dir=nowhere")[0] == "--config-dir=nowhere: there is no such folder; correct the path."


def test_hints_name_what_is_meant_or_nothing(home: Path):
    for key, words in {
        "rollout.top_p=0.9": "is not a setting; answers are sampled with temperature only",
        "rollout.stop_sequences=x": "use rollout.stop.",
        "rollout.repetition_penalty=1.1": "is not a setting; answers are sampled with temperature only",
        "data.prompt_column=question": "data.columns={prompt: question",
        "batch_size=8": "one optimizer step takes algorithm.sequences_per_update, and one forward pass policy.micro",
        "lr=1e-5": "use policy.optim.lr",
        "rollout.unheard=1": "`raylign train --help rollout` lists its settings.",
        "rollout.temprature=1": "did you mean rollout.temperature?",
    }.items():
        told = problems_of(key)
        assert any(line.startswith(key.split("=")[0]) and words in line for line in told), told
        assert "timeout_s" not in told[0]
    assert any("takes algorithm.rows_per_update" in line for line in problems_of("algorithm=kto", "batch_size=8"))


def test_own_columns_in_a_file_and_one_more_on_the_command_line(home: Path):
    (home / "my.yaml").write_text(
        PATHS.replace("train: rows.jsonl", "train: rows.jsonl, columns: {prompt: question, id: key}")
    )
    given = ["--config=my.yaml", "algorithm=sft", "data.columns.id=row", "data.columns={text: body}"]
    composed = compose(given)
    assert composed.config.data.columns == {"prompt": "question", "id": "row", "text": "body"}
    assert from_resolved(composed.resolved_yaml).config.data.columns == composed.config.data.columns


def test_columns_that_nothing_reads_and_swapped_names_are_told(home: Path):
    (home / "my.yaml").write_text(PATHS)
    given = ("--config=my.yaml", "algorithm=sft")
    (told,) = problems_of(*given, "data.columns={question: prompt}")
    assert told.startswith("data.columns={question: prompt}: question is not a column that is read from rows; known: ")
    assert told.endswith("did you mean {prompt: question}?")
    (told,) = problems_of(*given, "data.columns={promt: q}")
    assert told.endswith("did you mean {prompt: q}?")
    (told,) = problems_of(*given, "data.columns=question")
    assert told == "data.columns=question: expected a mapping such as {name: text} (default {})."


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 10)}]\n" for n in range(9)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (LAUGHS, "stands for more than 100,000 values"),
        ("name: " + "[" * 33 + "]" * 33 + "\n", "nested deeper than 32 levels"),
        ("name: " + "[" * 9000 + "]" * 9000 + "\n", "nested deeper than 32 levels"),
        ("name: &own [*own]\n", "*own stands inside what it names"),
        ("name: '" + "x" * 1_000_000 + "'\n", "longer than 1,000,000 bytes"),
    ],
)
@pytest.mark.parametrize("read", ["settings", "suite", "mapping", "scores"])
def test_a_yaml_file_beyond_the_limits_is_refused_before_anything_is_built(
    text: str, reason: str, read: str, home: Path
):
    """A file of 400 bytes that stands for ten thousand million values, and its kin, wherever a user's yaml is read."""
    file = home / "my.yaml"
    file.write_text(text)
    if read == "scores":
        if len(text) <= MAX_BYTES:  # these stand in a file that is read elsewhere
            with pytest.raises(ValueError, match=re.escape(reason)):
                parse_scores(text)
        return
    with pytest.raises((ConfigError, DataError)) as caught:
        if read == "settings":
            compose(["--config=my.yaml"])
        elif read == "suite":
            read_suite(file)
        else:
            mapped_format(file)
    (problem,) = caught.value.problems
    assert reason in problem
    assert len(problem) < 200


def test_aliases_within_the_limits_are_kept(home: Path):
    (home / "my.yaml").write_text(PATHS + "algorithm: sft\ntracking: {tags: [&t a, *t]}\n")
    assert compose(["--config=my.yaml"]).config.tracking.tags == ["a", "a"]


def test_a_secret_of_the_environment_does_not_become_a_setting(home: Path, monkeypatch: pytest.MonkeyPatch):
    """Settings are written to the run folder and to W&B; `${oc.env:...}` is for names that say no secret."""
    monkeypatch.setenv("WANDB_API_KEY", "planted-0123456789")
    monkeypatch.setenv("LAB", "berlin")
    paths = ["policy.model=model", "data.train=rows.jsonl", "algorithm=sft"]
    assert compose([*paths, "name=${oc.env:LAB}"]).config.name == "berlin"
    assert compose([*paths, "name=${oc.env:LAB_2,paris}"]).config.name == "paris"
    (absent,) = problems_of(*paths, "name=${oc.env:LAB_2}")
    assert "the environment has no such variable" in absent
    for text in ("${oc.env:WANDB_API_KEY}", "${oc.env:WANDB_API_KEY,x}", "run-${oc.env:WANDB_${oc.env:HALF,API_KEY}}"):
        (home / "my.yaml").write_text(f"name: {text}\n")
        (problem,) = problems_of(*paths, "--config=my.yaml")
        assert "name cannot be resolved: ${oc.env:WANDB_API_KEY} is a secret by its name" in problem
        assert "planted" not in problem
