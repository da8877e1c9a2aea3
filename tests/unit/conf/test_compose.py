"""Composition: every shipped choice works, and everything wrong is told at once."""

from __future__ import annotations

import copy
import dataclasses
import os
from enum import Enum
from pathlib import Path
from typing import get_type_hints

import pytest
from omegaconf import DictConfig, OmegaConf
from raylign.app.configuration import compose, from_resolved
from raylign.conf import reference
from raylign.conf.errors import ConfigError
from raylign.conf.ranges import leaves
from raylign.conf.schema import AlgorithmConfig, Precision, RuleRewardConfig, RunConfig, Schedule
from raylign.trainer.algorithms import ALGORITHMS
from raylign.trainer.algorithms.online import OnlineConfig

CONF = Path(reference.__file__).parent
GOLDEN = Path(__file__).parents[2] / "golden"
RULE = "reward.rules=[{rule: finished}]"


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What every run needs besides its experiment, with paths that are the same everywhere."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "rows.jsonl").write_text("{}\n")
    monkeypatch.chdir(tmp_path)
    return ["policy.model=model", "critic.model=model", "data.train=./rows.jsonl", RULE]


def problems_of(overrides: list[str]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    return list(caught.value.problems)


@pytest.mark.parametrize("experiment", reference.options("experiment"))
def test_every_experiment_composes_to_what_is_recorded(experiment: str, start: list[str]):
    # Refresh after a wanted change: RAYLIGN_REFRESH_GOLDEN=1 pytest tests/unit/conf; then read the diff.
    resolved = compose([f"+experiment={experiment}", *start]).resolved_yaml
    golden = GOLDEN / f"{experiment}.yaml"
    if os.environ.get("RAYLIGN_REFRESH_GOLDEN"):
        golden.write_text(resolved)
    assert resolved == golden.read_text(), f"{experiment} changed; refresh {golden.name} if that is wanted"


def test_one_composition_leaves_nothing_to_the_next(start: list[str]):
    first = compose(["algorithm=ppo", *start])
    other = compose(
        ["algorithm=ppo", *start, "num_steps=77", "policy.optim.lr=0.5", "reward.rules=[]", "reward.model=model"]
    )
    again = compose(["algorithm=ppo", *start])
    assert (other.config.num_steps, other.config.reward.rules) == (77, [])
    assert again.resolved_yaml == first.resolved_yaml and again.config == first.config
    first.config.reward.rules.clear()
    assert compose(["algorithm=ppo", *start]).config.reward.rules == again.config.reward.rules != []


def test_no_golden_file_is_left_of_a_removed_experiment():
    assert sorted(p.stem for p in GOLDEN.glob("*.yaml")) == reference.options("experiment")


@pytest.mark.parametrize("algorithm", reference.options("algorithm"))
@pytest.mark.parametrize("cluster", reference.options("cluster"))
def test_every_algorithm_composes_on_every_cluster(algorithm: str, cluster: str, start: list[str]):
    settings = [f"algorithm={algorithm}", f"cluster={cluster}", *start]
    if cluster == "colocated" and not issubclass(ALGORITHMS[algorithm][0], OnlineConfig):
        assert "has no engines that learners could take turns with" in problems_of(settings)[0]
        return
    config = compose(settings).config
    assert type(config.algorithm) is ALGORITHMS[algorithm][0]
    assert config.algorithm.name == algorithm


@pytest.mark.parametrize("model", reference.options("model"))
def test_every_model_choice_composes(model: str, start: list[str]):
    composed = compose([f"model={model}", "algorithm.sequences_per_update=32", *start])
    assert composed.config.algorithm.units_per_update == 32


def test_algorithms_and_their_yaml_files_match_one_to_one():
    assert reference.options("algorithm") == sorted(ALGORITHMS)
    assert sorted(reference.algorithm_names()) == sorted(ALGORITHMS)


def test_yaml_holds_no_value_that_is_the_default_already():
    stated_twice = []
    for path in sorted(CONF.rglob("*.yaml")):
        content = OmegaConf.load(path)
        assert isinstance(content, DictConfig)
        content.pop("defaults", None)
        packaged = "# @package _global_" in path.read_text()
        prefix = "" if packaged or path.name == "config.yaml" else f"{path.parent.name}."
        algorithm = path.stem if path.parent.name == "algorithm" else "ppo"
        if path.parent.name == "experiment":
            algorithm = reference.algorithm_of(path.stem) or "ppo"
        defaults = dict(leaves(_defaults(ALGORITHMS[algorithm][0])))
        for key, value in _flat(content, prefix):
            default = defaults[key]
            shown = default.value if isinstance(default, Enum) else default
            under_choice = path.parent.name == "experiment"  # may restate what a chosen group changed
            if shown == value and not under_choice:
                stated_twice.append(f"{path.relative_to(CONF)}: {key}={value}")
    assert stated_twice == []


def _defaults(algorithm: type[AlgorithmConfig]) -> RunConfig:
    return RunConfig(algorithm=algorithm())  # type: ignore[call-arg]  # subclasses give name its default


def _flat(tree: DictConfig, prefix: str) -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    for key, value in tree.items():
        found += _flat(value, f"{prefix}{key}.") if isinstance(value, DictConfig) else [(f"{prefix}{key}", value)]
    return found


def test_conversion_gives_plain_typed_values(start: list[str]):
    config = compose(
        [*start, "policy.precision=float32", "policy.optim.betas=[0.8,0.9]", "policy.optim.lr=1e-5"]
    ).config
    assert config.policy.precision is Precision.float32
    assert config.policy.optim.betas == (0.8, 0.9)
    assert isinstance(config.policy.optim.lr, float)
    assert config.reward.rules == [RuleRewardConfig(rule="finished", weight=1.0)]
    assert config.policy.optim.schedule is Schedule.constant


def test_a_run_can_be_composed_again_from_its_resolved_yaml(start: list[str]):
    composed = compose(["+experiment=grpo_tiny_cpu", *start, "algorithm.kl_coef=0.125"])
    again = from_resolved(composed.resolved_yaml)
    assert again.config == composed.config
    assert again.resolved_yaml == composed.resolved_yaml


def test_composing_changes_nothing_of_an_earlier_run(start: list[str]):
    first = compose(["+experiment=ppo_tiny_cpu", *start])
    before = copy.deepcopy(first.config)
    compose([*start, "policy.num_ranks=3", "algorithm.sequences_per_update=32"])
    assert first.config == before
    assert compose(["+experiment=ppo_tiny_cpu", *start]).config == before


def test_all_problems_are_told_at_once_with_the_nearest_names(start: list[str]):
    told = problems_of(
        [
            "algorithm=pppo", "policy.lr=1", "rollout.samples_per_promt=2", "policy.precision=bf16", "seed=x",
            "algorithm.kl_coef=abc", "data.overlong=drp", "nonsense", "~seed", "cluster@x=local", "policy=3",
            "reward.rules=[{rul: finished}]", "policy.num_ranks=1,2", "algorithm.centering_coef=1", *start[:3],
        ]
    )  # fmt: skip
    expected = [
        "algorithm=pppo is not known; did you mean ppo?",
        "policy.lr is not a setting; use policy.optim.lr",
        "rollout.samples_per_promt is not a setting; did you mean rollout.samples_per_prompt?",
        "policy.precision=bf16: expected one of float32, bfloat16 (default bfloat16). Did you mean bfloat16?",
        "seed=x: expected a whole number (default 0).",
        "algorithm.kl_coef=abc: expected a number",
        "data.overlong=drp: expected one of drop, error, truncate_left (default drop). Did you mean drop?",
        "nonsense is not of the form key=value.",
        "~seed: settings cannot be removed",
        "cluster@x=local: a choice cannot be put elsewhere",
        "policy is a section, not a setting",
        "reward.rules[0].rul is not a setting; did you mean rule?",
        "policy.num_ranks=1,2 is several values; a list is written policy.num_ranks=[a,b], and a run for each",
    ]
    for sentence in expected:
        assert any(line.startswith(sentence) for line in told), f"{sentence!r} is not among {told}"
    # No consequence of these beside them, and nothing on a setting that the misspelt algorithm may have.
    assert len(told) == len(expected), told


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["policy.zero_stage=4"], "policy.zero_stage=4: must be at least 0 and at most 3."),
        (["policy.optim.lr=nan"], "policy.optim.lr=nan: expected a finite number."),
        (["policy.optim.lr=0"], "policy.optim.lr=0: must be above 0."),
        (["rollout.temperature=0"], "rollout.temperature=0: must be above 0."),
        (["rollout.prompts_per_step=10"], "10 x rollout.samples_per_prompt=4 = 40 sequences"),
        (["data.max_prompt_tokens=2000"], "set it to 2512 or lower"),
        (["cluster.device=cuda"], "policy.gpus_per_rank=0 with cluster.device=cuda"),
        (
            ["cluster=shared", "policy.gpus_per_rank=0.5", "policy.num_ranks=2"],
            "NCCL refuses two on one); set policy.gpus_per_rank=1, or policy.num_ranks=1.",
        ),
        (
            ["policy.num_ranks=3", "policy.sequence_parallel_size=2"],
            "does not divide policy.num_ranks=3; set policy.num_ranks=4, or policy.sequence_parallel_size=1.",
        ),
        (["policy.zero_node_ranks=2"], "weights are in parts in stage 3 alone; set policy.zero_node_ranks=0, or"),
        (
            ["policy.zero_stage=3", "policy.num_ranks=4", "policy.zero_node_ranks=3"],
            "policy.zero_node_ranks=3 does not divide policy.num_ranks=4; give the ranks that each node has",
        ),
        (["critic.sequence_parallel_size=0"], "critic.sequence_parallel_size=0: must be at least 1."),
        (["cluster=shared", "critic.gpus_per_rank=2"], "critic.gpus_per_rank=2 with cluster.device=cuda"),
        (["cluster=shared", "reference.gpus_per_rank=2"], "set reference.gpus_per_rank=1, or a share"),
        (
            ["cluster=shared", "reference.gpus_per_rank=0.5", "reference.num_ranks=2", "reference.sharded=true"],
            "ranks that compute together need a card each (NCCL refuses two on one); set reference.gpus_per_rank=1",
        ),
        (
            ["cluster=shared", "reward.model=${policy.model}", "reward.ranks_per_replica=2"],
            "each rank of a replica needs a card; set reward.gpus_per_replica=2.",
        ),
        (
            ["cluster=shared", "rollout.tensor_parallel_size=2", "rollout.gpus_per_worker=1"],
            "one card for each tensor-parallel rank; set rollout.gpus_per_worker=0",
        ),
        (["policy.gpus_per_rank=1"], "policy.gpus_per_rank=1 with cluster.device=cpu"),
        (["policy.offload_optimizer=cpu"], "there is no GPU memory to spare"),
        (["algorithm.kl_controller=adaptive", "algorithm.kl_target=0"], "algorithm.kl_target is 0"),
        (["algorithm=grpo", "rollout.samples_per_prompt=1"], "needs at least 2"),
        (["algorithm.old_logprobs=update"], "algorithm.old_logprobs=update does not suit this run: more than one"),
        (["policy.model=nowhere"], "policy.model=nowhere: there is no such folder"),
        (["policy.model=."], "holds no config.json"),
        (["critic.model="], "critic.model is empty and there is no reward.model"),
        (["reward.rules=[]"], "nothing scores the answers"),
        (["reward.rules=[{rule: finishd}]"], "did you mean finished?"),
        (["reward.rules=[{weight: 2}]"], "reward.rules[0] has no rule; give one, as reward.rules=[{rule: ...}]."),
        (["data.train=gone.jsonl"], "data.train=gone.jsonl: there is no such file"),
        (["data.eval=gone.jsonl"], "data.eval=gone.jsonl: there is no such file"),
        (["algorithm=sft", "data.eval={math: gone.jsonl}"], "data.eval, set math=gone.jsonl: there is no such file"),
        (["algorithm=sft", "data.eval=[./rows.jsonl, rows.jsonl]"], "two sets are called 'rows'"),
        (["algorithm=sft", "data.eval={a/b: ./rows.jsonl}"], "'a/b' cannot name a set"),
        (["data.eval={a: ./rows.jsonl, b: ./rows.jsonl}"], "an online run answers one; give one"),
        (["algorithm=sft", "evaluation.best=eval/held_out/loss"], "name a metric of a held-out set"),
        (["data.eval=./rows.jsonl", "evaluation.best=eval/held_out/loss"], "only offline runs keep a best step"),
        (["data.max_overlong_fraction=2"], "must be at least 0 and at most 1"),
        (["algorithm=rm", "algorithm.label_smoothing=0.7"], "algorithm.label_smoothing is 0.7; set it to"),
        (["algorithm=dpo", "algorithm.label_smoothing=0.5"], "algorithm.label_smoothing is 0.5; set it to"),
        (["algorithm=dpo", "algorithm.loss=ipo", "algorithm.label_smoothing=0.1"], "which loss=ipo does not use"),
        (["algorithm=dpo", "algorithm.beta=0"], "algorithm.beta is 0"),
        (["algorithm=kto", "algorithm.desirable_weight=0"], "algorithm.desirable_weight is 0"),
        (["algorithm=simpo", "algorithm.gamma=-1"], "algorithm.gamma is -1"),
        (["algorithm=dpo", "reference.model=nowhere"], "reference.model=nowhere: there is no such folder"),
        (["name=a/b"], "a run's name is 1-64 of"),
        (["name=.."], "a run's name is 1-64 of"),
        (["seed=${nowhere}"], "seed cannot be resolved: Interpolation key 'nowhere' not found."),
        (["num_steps=???"], "num_steps has no value yet"),
        (["reward.rules.0.rule=finished"], "a list is set as a whole"),
        (["policy.num_ranks=65"], "gives some of policy.num_ranks=65 nothing to do"),
        (["policy.optim.betas=[0.9]"], "give two numbers from 0 to below 1"),
        (["policy.lora.rank=-1"], "policy.lora.rank=-1: must be at least 0"),
        (["policy.lora.rank=4", "policy.lora.alpha=0"], "policy.lora.alpha=0: must be above 0"),
        (["policy.lora.alpha=16"], "policy.lora.alpha=16.0 with policy.lora.rank=0: there is no adapter; set policy"),
        (["critic.lora.target_modules=[q_proj]"], "critic.lora.target_modules=['q_proj'] with critic.lora.rank=0"),
        (["critic.lora.rank=4", "critic.lora.save_adapter=true"], "a critic is not exported"),
        (["policy.lora.target_modules=q_proj"], "expected a list such as [a,b]"),
        (["rollout.stop=['']"], "an empty text would end every answer"),
        (["rollout.stop=['\\n']"], "a backslash and an n, not a new line"),
        (["evaluation.samples=4"], "evaluation.samples=4: data.eval is empty"),
        (["algorithm=sft", "evaluation.samples=4", "data.eval=./rows.jsonl"], "offline runs generate no answers"),
        (["rollout.stop_token_ids=[-1]"], "ids are 0 or more"),
        (["rollout.stop_token_ids=[eos]"], "rollout.stop_token_ids[0]=eos: expected a whole number."),
        (["policy.lora.dropout=0.1"], "policy.lora.dropout is not a setting"),
    ],
)
def test_what_cannot_work_is_refused_with_key_value_and_fix(overrides: list[str], sentence: str, start: list[str]):
    told = problems_of([*start, *overrides])
    assert any(sentence in line for line in told), told


def test_the_plain_run_is_accepted_so_each_refusal_above_is_its_own(start: list[str]):
    assert compose(start).config.algorithm.name == "ppo"
    assert compose(["algorithm=grpo", *start]).config.algorithm.name == "grpo"


def test_held_out_sets_are_given_in_three_forms(start: list[str], tmp_path: Path):
    (tmp_path / "chat rows.jsonl").write_text("{}")
    for given, read in (
        ("./chat rows.jsonl", "./chat rows.jsonl"),
        ("[./rows.jsonl]", ["./rows.jsonl"]),
        ("{math: ./rows.jsonl}", {"math": "./rows.jsonl"}),
    ):
        composed = compose(["algorithm=sft", *start, f"data.eval={given}"])
        assert composed.config.data.eval == read
        assert from_resolved(composed.resolved_yaml).config == composed.config


def test_interpolations_resolve(start: list[str]):
    config = compose(
        [*start, "evaluation.max_new_tokens=${rollout.max_new_tokens}", "rollout.max_new_tokens=100"]
    ).config
    assert config.evaluation.max_new_tokens == 100


def test_paths_are_taken_as_typed(start: list[str], tmp_path: Path):
    odd = tmp_path / "step=3,é (a) #[1]"
    odd.mkdir()
    (odd / "config.json").write_text("{}")
    assert compose([*start, f"policy.model={odd}"]).config.policy.model == str(odd)


def test_a_home_folder_is_looked_into_but_kept_as_typed(
    start: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert compose([*start, "policy.model=~/model"]).config.policy.model == "~/model"


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_the_reference_read_from_source_is_the_dataclasses(algorithm: str):
    config = _defaults(ALGORITHMS[algorithm][0])
    actual = dict(leaves(config))
    read = reference.keys(algorithm)
    assert sorted(read) == sorted(actual)
    for name, key in read.items():
        value = actual[name]
        shown = value.value if isinstance(value, Enum) else list(value) if isinstance(value, tuple) else value
        if isinstance(shown, list) and any(isinstance(item, Enum) for item in shown):
            shown = f"[{', '.join(item.value for item in shown)}]"
        text = str(shown).lower() if isinstance(shown, bool) else str(shown) or "''"
        assert key.default == text, name
        assert key.doc, f"{name} has no doc"
        if isinstance(value, Enum):
            assert key.choices == tuple(type(value).__members__)


def test_enum_words_are_their_names():
    for cls in (RunConfig, *(f.default_factory for f in dataclasses.fields(RunConfig) if callable(f.default_factory))):
        for hint in get_type_hints(cls).values():
            if isinstance(hint, type) and issubclass(hint, Enum):
                assert all(member.name == member.value for member in hint)
