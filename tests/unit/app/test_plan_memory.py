"""What `plan` says of memory before anything starts: counts, refusals with a way out, and every preset's fit."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from raylign.app.cli import app, run_command
from raylign.app.commands.plan_memory import SuppliedCluster, refuse_overfull, run_memory
from raylign.app.configuration import compose, needs
from raylign.app.launch.refusals import refuse_impossible
from raylign.conf.errors import ClusterError, ConfigError, UserError
from raylign.conf.schema import LearnerConfig, LoraConfig, Offload, Precision, RolloutConfig
from raylign.trainer.memory_plan import GB, ModelShape, engine_use, learner_use, model_shape, nearest_that_fits

# hidden, intermediate, layers, heads, key-value heads, vocabulary, tied: as published for Llama 3, Qwen 2.5 and 3
SIZES = {
    "small": (1024, 3072, 28, 16, 8, 151936, True),
    "7b": (4096, 14336, 32, 32, 8, 128256, False),
    "32b": (5120, 27648, 64, 40, 8, 152064, False),
    "70b": (8192, 28672, 80, 64, 8, 128256, False),
}
PRESETS = {
    "ppo_small_1x1": "small",
    "ppo_7b_1x8": "7b",
    "grpo_7b_1x8": "7b",
    "ppo_7b_colocated_1x8": "7b",
    "grpo_7b_colocated_1x8": "7b",
    "sft_7b_1x8": "7b",
    "dpo_7b_1x8": "7b",
    "rm_7b_1x8": "7b",
    "ppo_7b_2x8": "7b",
    "grpo_32b_4x8": "32b",
    "sft_32b_4x8": "32b",
    "grpo_70b_4x8": "70b",
    "sft_70b_4x8": "70b",
}


def write_config(folder: Path, size: str, *, scalar: bool = False) -> Path:
    hidden, intermediate, layers, heads, kv, vocab, tied = SIZES[size]
    folder.mkdir()
    config = {
        "model_type": "llama",
        "architectures": [f"LlamaFor{'SequenceClassification' if scalar else 'CausalLM'}"],
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
    }
    (folder / "config.json").write_text(json.dumps(config | ({"num_labels": 1} if scalar else {})))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for size in SIZES:
        write_config(root / size, size)
    for size in ("small", "7b"):
        write_config(root / f"{size}-rm", size, scalar=True)
    (root / "rows.jsonl").write_text('{"prompt": "q"}\n')
    return root


def settings(folders: Path, preset: str) -> list[str]:
    size = PRESETS[preset]
    reward = "small-rm" if size == "small" else "7b-rm"
    return [
        f"+experiment={preset}",
        f"policy.model={folders / size}",
        f"reward.model={folders / reward}",
        f"data.train={folders / 'rows.jsonl'}",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_fits_its_cards_by_the_plan(preset: str, folders: Path) -> None:
    config = compose(settings(folders, preset)).config
    memory = run_memory(config, needs(config), 80 * GB)
    refuse_overfull(config, memory, 80 * GB)
    assert all(use.total > 0.02 * 80 * GB for use in memory.on_cards()), "a card would stand idle"
    if memory.engine is not None:
        assert memory.engine.sequences(config.rollout.max_model_len) >= 8


def test_weights_gradients_and_optimizer_are_counted_exactly(folders: Path) -> None:
    shape = model_shape(str(folders / "7b"), scalar=False)
    n = shape.parameters
    assert n == 8_030_261_248  # Llama 3 8B
    sharded = LearnerConfig(zero_stage=2, num_ranks=4)
    parts = learner_use("policy", shape, sharded).parts
    assert (parts["weights"], parts["gradients"], parts["optimizer"]) == (2 * n, 4 * n / 4, 12 * n / 4)
    whole = learner_use("policy", shape, replace(sharded, zero_stage=0)).parts
    assert (whole["gradients"], whole["optimizer"]) == (2 * n, 12 * n)
    away = learner_use("policy", shape, replace(sharded, offload_optimizer=Offload.cpu)).parts
    assert away["optimizer"] == 0
    longer = replace(sharded, sequence_parallel_size=4, micro_batch_tokens=4 * sharded.micro_batch_tokens)
    assert learner_use("policy", shape, longer).total == learner_use("policy", shape, sharded).total
    thirds, copied = (replace(sharded, zero_stage=3, num_ranks=16, zero_node_ranks=size) for size in (0, 8))
    more = learner_use("policy", shape, copied).parts["weights"] - learner_use("policy", shape, thirds).parts["weights"]
    assert more == pytest.approx(2 * n / 8)
    lora = replace(sharded, lora=LoraConfig(rank=16))
    adapted = model_shape(str(folders / "7b"), scalar=False, learner=lora)
    sides = 32 * 16 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336))
    assert (adapted.trained, adapted.adapted, adapted.parameters) == (sides, sides, n)
    assert learner_use("policy", adapted, lora).parts["optimizer"] == 12 * sides / 4


def test_an_engines_cache_is_counted_by_heads_and_copied_where_ranks_outnumber_them(folders: Path) -> None:
    shape = model_shape(str(folders / "7b"), scalar=False)
    assert shape.kv_bytes(2, 1) == 2 * 32 * 8 * 128 * 2
    assert shape.kv_bytes(2, 4) == shape.kv_bytes(2, 1) / 4
    assert shape.kv_bytes(2, 16) == shape.kv_bytes(2, 8)  # eight heads over sixteen ranks
    rollout = RolloutConfig(precision=Precision.bfloat16, gpu_memory_utilization=0.9)
    one = engine_use(shape, rollout, 80 * GB, 1.0)
    assert one.cache_tokens == int((0.9 * 80 * GB - 2 * shape.parameters - 3 * GB) / shape.kv_bytes(2, 1))


@pytest.mark.slow
def test_what_does_not_fit_is_refused_with_a_setting_that_does(folders: Path) -> None:
    config = compose([*settings(folders, "ppo_7b_1x8"), "policy.micro_batch_tokens=131072"]).config
    memory = run_memory(config, needs(config), 80 * GB)
    with pytest.raises(ClusterError, match=r"policy: .* GB on a card .*optimizer.*would fit: policy\.") as refusal:
        refuse_overfull(config, memory, 80 * GB)
    change = str(refusal.value).split("this would fit: ")[1]
    better = compose([*settings(folders, "ppo_7b_1x8"), "policy.micro_batch_tokens=131072", *change.split()]).config
    refuse_overfull(better, run_memory(better, needs(better), 80 * GB), 80 * GB)
    alone = replace(config.policy, num_ranks=1, zero_stage=2, micro_batch_tokens=16384)
    shape: ModelShape = memory.trained["policy"][0]
    assert nearest_that_fits("policy", shape, alone, 80 * GB) == "policy.zero_stage=3 policy.num_ranks=3"


@pytest.mark.slow
def test_a_shared_card_must_hold_each_turn_and_not_both_together(folders: Path) -> None:
    config = compose(settings(folders, "ppo_7b_colocated_1x8")).config
    memory = run_memory(config, needs(config), 80 * GB)
    learners, engines = memory.turns
    n = memory.trained["policy"][0].parameters
    assert learners.total + engines.total > 80 * GB, "nothing would be gained by taking turns"
    assert engines.parts["policy at rest"] == 2 * n / 6 + 1.2 * GB  # its part of the weights, and CUDA's context
    assert learners.parts["sleeping engine"] == 3 * GB
    state = memory.outside.host["state of the policy in the engines' turn"]
    assert state == 16 * n  # masters, moments and ZeRO-3's gradients
    with pytest.raises(ClusterError, match=r"engines' turn: .* this would fit: rollout\.kv_cache_gb=4\d"):
        more = compose([*settings(folders, "ppo_7b_colocated_1x8"), "rollout.kv_cache_gb=60"]).config
        refuse_overfull(more, run_memory(more, needs(more), 80 * GB), 80 * GB)
    with pytest.raises(ClusterError, match=r"learners' turn: .* lower micro_batch_tokens, or use more num_ranks"):
        more = compose([*settings(folders, "ppo_7b_colocated_1x8"), "policy.micro_batch_tokens=65536"]).config
        refuse_overfull(more, run_memory(more, needs(more), 80 * GB), 80 * GB)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("role", "size", "asked"),
    [
        ("reward", "7b", "reward.gpus_per_replica=0.5"),
        ("reward", "70b", "reward.ranks_per_replica=4 reward.gpus_per_replica=4"),
        ("reference", "70b", "reference.sharded=true reference.num_ranks=4 reference.gpus_per_rank=1"),
    ],
)
def test_a_model_that_is_only_asked_and_larger_than_its_card_is_refused_with_parts_that_fit(
    folders: Path, role: str, size: str, asked: str
) -> None:
    if role == "reward" and not (folders / f"{size}-rm").exists():
        write_config(folders / f"{size}-rm", size, scalar=True)
    model = folders / (f"{size}-rm" if role == "reward" else size)
    given = [*settings(folders, "ppo_7b_2x8"), f"{role}.model={model}", "critic.model=" + str(folders / "7b-rm")]
    given += ["reward.gpus_per_replica=0.1"] if size == "7b" else []
    config = compose(given).config
    with pytest.raises(ClusterError, match=f"{role}: .* this would fit: {asked}"):
        refuse_overfull(config, run_memory(config, needs(config), 80 * GB), 80 * GB)
    better = compose([*given, *asked.split()]).config
    memory = run_memory(better, needs(better), 80 * GB)
    refuse_overfull(better, memory, 80 * GB)
    ranks = better.reward.ranks_per_replica
    [use] = [use for use in memory.on_cards() if use.role == "reward"]
    assert (use.processes, use.share) == (better.reward.num_replicas * ranks, better.reward.gpus_per_replica / ranks)


def test_an_engine_without_room_for_one_sequence_is_refused(folders: Path) -> None:
    config = compose([*settings(folders, "grpo_70b_4x8"), "rollout.tensor_parallel_size=1"]).config
    with pytest.raises(ClusterError, match=r"rollout: the weights .*set rollout.tensor_parallel_size=2"):
        refuse_overfull(config, run_memory(config, needs(config), 80 * GB), 80 * GB)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("rollout.tensor_parallel_size=3", "32 attention heads and 8 key-value heads, which 3 ranks cannot share; set"),
        ("policy.sequence_parallel_size=3", "8 key-value heads, .* set policy.sequence_parallel_size=1."),
        ("critic.sequence_parallel_size=3", "critic.sequence_parallel_size=3: .* set critic.sequence_parallel_size=1."),
        ("reward.model={folders}/7b", "LlamaForCausalLM is a language model without a scalar head"),
        ("evaluation.gold=finishd", "no reward component has this name; there is model"),
    ],
)
def test_what_was_found_only_after_the_start_is_refused_before(folders: Path, override: str, sentence: str) -> None:
    config = compose([*settings(folders, "ppo_7b_1x8"), override.format(folders=folders)]).config
    with pytest.raises(ConfigError, match=sentence):
        refuse_impossible(config, needs(config))


@pytest.mark.slow
def test_plan_for_a_cluster_that_is_not_there(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = settings(folders, "ppo_7b_1x8")
    for arguments, code, words in (
        (["--cluster", "1x8x80"], 0, ("KV cache", "node-1", "optimizer", "the others wait for this", "publication")),
        (["--cluster", "1x7x80"], 2, ("the cluster has 7",)),
        (["--cluster", "1x8x24"], 2, ("policy:", "24", "would fit")),
    ):
        ended = run_command(lambda given=arguments: app(["plan", *overrides, *given], standalone_mode=False))
        said = capsys.readouterr()
        assert ended == code, said.err
        assert all(word in said.out + said.err for word in words)
    with pytest.raises(UserError, match="as 2x8x80"):
        SuppliedCluster.parse("2x8")


@pytest.mark.slow
def test_the_sizing_table_in_the_docs_is_the_planners() -> None:
    root = Path(__file__).resolve().parents[3]
    spec = spec_from_file_location("sizing", root / "benchmarks" / "sizing.py")
    assert spec is not None and spec.loader is not None
    sizing = module_from_spec(spec)
    spec.loader.exec_module(sizing)
    assert sizing.table() in (root / "docs" / "gpu.md").read_text(encoding="utf-8"), "python benchmarks/sizing.py"
