"""Adapters: they begin as nothing, compute what peft computes, leave the base alone, and merge into what they did."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from raylign.app.launch.trained import trained_models
from raylign.conf.errors import ConfigError, ModelLoadError
from raylign.conf.schema import LearnerConfig, LoraConfig, OptimConfig, Precision, RunConfig
from raylign.data.types import Denominators, PolicyExperience, RankShard, TokenBatch, UpdateWindow
from raylign.rollout.adapters import round_in_proportion
from raylign.trainer.algorithms.base import LossOutput
from raylign.trainer.algorithms.ppo import PPOConfig
from raylign.trainer.algorithms.rm import RMConfig
from raylign.trainer.engine.base import EngineStateError
from raylign.trainer.engine.buckets import weights_to_buckets
from raylign.trainer.engine.torch_engine import TorchEngine
from raylign.trainer.learner import Learner
from raylign.trainer.models.adapters import add_adapters, start_adapters, write_adapter
from raylign.trainer.models.causal_lm import CausalLM
from raylign.trainer.models.export import export_hf
from raylign.trainer.models.loading import load_causal_lm, load_scalar_model, stored_weights
from raylign.trainer.models.lora import is_adapter, lora_layers, merged_weights
from raylign.trainer.models.scalar_head import ScalarModel, last_states
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

LORA = LoraConfig(rank=4, alpha=8.0)
LENGTHS = (5, 9, 3, 12, 7, 4)
SEED = 7


def _tokens() -> TokenBatch:
    generator = torch.Generator().manual_seed(5)
    rows = [torch.randint(0, 400, (n,), generator=generator).tolist() for n in LENGTHS]
    return TokenBatch.from_sequences(rows, [[False] * 2 + [True] * (n - 2) for n in LENGTHS])


def _load(
    folder: Path, lora: LoraConfig = LORA, *, scalar: bool = False, precision: Precision = Precision.float32
) -> Any:
    """As a rank loads it (trainer/workers/specs.py)."""
    model: CausalLM | ScalarModel
    if scalar:
        model = load_scalar_model(folder, precision=precision, new_head_seed=3)
    else:
        model = load_causal_lm(folder, precision=precision)
    if lora.rank:
        add_adapters(model.hf, lora)
        start_adapters(model.hf, SEED)
    return model


@torch.no_grad()
def _shaken(model: Any, size: float = 0.05) -> Any:
    """With a B that training could have left."""
    generator = torch.Generator().manual_seed(11)
    for layer in lora_layers(model).values():
        layer.lora_B.copy_(torch.randn(layer.lora_B.shape, generator=generator) * size)
    return model


def _whole(model: Any) -> dict[str, Tensor]:
    """As it is sent and exported."""
    buckets = list(weights_to_buckets(TorchEngine(model, OptimConfig(), total_steps=1), 100_000))
    return {name: tensor for bucket in buckets for name, tensor in zip(bucket.names, bucket.tensors, strict=True)}


@pytest.fixture(scope="module")
def biased_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen 2: its projections have biases."""
    config = Qwen2Config(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(config)
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                nn.init.normal_(parameter)
    model.save_pretrained(folder := tmp_path_factory.mktemp("models") / "biased")
    return folder


MODELS = pytest.mark.parametrize("fixture", ["tiny_model_dir", "tiny_model_untied_dir", "biased_model_dir"])


@pytest.mark.slow
@MODELS
def test_an_adapter_begins_as_the_base_itself(fixture: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(fixture)
    adapted, base = _load(folder), _load(folder, LoraConfig())
    base.requires_grad_(False)  # a frozen head, as the adapted model's, is another order of the same sums
    ours, theirs = adapted(_tokens(), temperature=0.7), base(_tokens(), temperature=0.7)
    assert torch.equal(ours.logprobs, theirs.logprobs) and torch.equal(ours.entropy, theirs.entropy)
    assert all(layer.lora_A.std() > 0.03 for layer in lora_layers(adapted).values())
    scores = _load(folder, scalar=True)(_tokens())
    assert torch.equal(scores, _load(folder, LoraConfig(), scalar=True)(_tokens()))


@pytest.mark.parametrize("precision", list(Precision))
def test_without_its_adapters_a_trained_policy_is_the_reference(tiny_model_dir: Path, precision: Precision) -> None:
    """Bit for bit what a frozen model loaded from the start's folder says, and back to itself afterwards."""
    trained = Learner(TorchEngine(_shaken(_load(tiny_model_dir, precision=precision)), OptimConfig(), total_steps=1))
    frozen = load_causal_lm(tiny_model_dir, precision=precision)
    reference = Learner(TorchEngine(frozen, OptimConfig(), total_steps=0))
    batches = [_tokens()]
    (before,), (own,) = trained.logprobs(batches, temperature=0.7), reference.logprobs(batches, temperature=0.7)
    (without,) = trained.logprobs(batches, temperature=0.7, without_adapters=True)
    (after,) = trained.logprobs(batches, temperature=0.7)
    assert torch.equal(without, own) and torch.equal(before, after)
    assert not torch.equal(before, own)
    with pytest.raises(ValueError, match="has no adapters"):
        reference.logprobs(batches, temperature=0.7, without_adapters=True)


def test_the_start_is_drawn_by_name_and_seed_whatever_else_draws(tiny_model_dir: Path) -> None:
    torch.manual_seed(1)
    first = lora_layers(_load(tiny_model_dir))
    torch.manual_seed(2)
    few = lora_layers(_load(tiny_model_dir, LoraConfig(rank=4, target_modules=["v_proj"])))
    assert 0 < len(few) < len(first)
    assert all(torch.equal(layer.lora_A, first[name].lora_A) for name, layer in few.items())
    drawn = [layer.lora_A.flatten()[:512] for layer in first.values()]
    assert len({tuple(one.tolist()) for one in drawn}) == len(drawn) == 14
    bound = 128**-0.5
    a = first["hf.model.layers.0.self_attn.q_proj"].lora_A.detach()
    assert a.abs().max() <= bound and float(a.std()) == pytest.approx(bound / 3**0.5, rel=0.1)


@pytest.mark.slow
@MODELS
@pytest.mark.parametrize("scalar", [False, True])
def test_merged_weights_do_what_base_and_adapter_did(
    fixture: str, scalar: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(fixture)
    model = _shaken(_load(folder, scalar=scalar))
    state = _whole(model)
    plain = _load(folder, LoraConfig(), scalar=scalar)
    assert list(state) == [name.removeprefix("hf.") for name, _ in plain.named_parameters()]
    export_hf(model, state.items(), tmp_path / "merged", None)
    merged, tokens = _load(tmp_path / "merged", LoraConfig(), scalar=scalar), _tokens()
    if scalar:
        ours, theirs, before = merged(tokens), model(tokens), plain(tokens)
    else:
        ours, theirs, before = (m(tokens, temperature=1.0).logprobs for m in (merged, model, plain))
    assert _gap(ours, theirs) < 1e-5
    assert _gap(ours, before) > 0.01


def _gap(ours: Tensor, theirs: Tensor) -> float:
    return float(((ours - theirs).norm() / theirs.norm()).detach())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fixture", "lora"),
    [
        ("tiny_model_dir", LORA),
        ("biased_model_dir", LORA),
        ("tiny_model_untied_dir", LoraConfig(rank=9, alpha=5.0, rslora=True)),
        ("tiny_model_untied_dir", LoraConfig(rank=2, target_modules=["q_proj", "mlp.down_proj"])),
    ],
    ids=["tied", "biased", "rslora", "few"],
)
def test_loss_and_gradients_are_those_of_pefts_own_model(
    fixture: str, lora: LoraConfig, request: pytest.FixtureRequest
) -> None:
    """Packed through our attention and fused head; peft's layers through transformers' own forward, one by one."""
    folder: Path = request.getfixturevalue(fixture)
    model, tokens = _shaken(_load(folder, lora)), _tokens()
    ours = -model(tokens, temperature=1.0).logprobs.sum()
    ours.backward()
    twin = _peft_twin(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), model, lora, "CAUSAL_LM")
    theirs = torch.zeros(())
    for s in range(tokens.num_sequences):
        one = tokens.select([s])
        log_p = twin(input_ids=one.input_ids[None]).logits[0, :-1].log_softmax(-1)
        theirs = theirs - (log_p.gather(1, one.input_ids[1:, None])[:, 0] * one.response_mask[1:]).sum()
    theirs.backward()
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)
    _same_gradients(model, twin)


def test_a_scalar_models_gradients_are_those_of_pefts_own_model(tiny_model_dir: Path) -> None:
    model, tokens = _shaken(_load(tiny_model_dir, scalar=True)), _tokens()
    weights = torch.arange(1.0, tokens.num_sequences + 1)
    ours = (last_states(model(tokens), tokens).tanh() * weights).sum()
    ours.backward()
    base = AutoModelForSequenceClassification.from_pretrained(tiny_model_dir, num_labels=1, dtype=torch.float32)
    with torch.no_grad():
        base.score.weight.copy_(model.hf.score.weight)
    twin = _peft_twin(base, model, LORA, "SEQ_CLS")
    rows = [tokens.select([s]).input_ids[None] for s in range(tokens.num_sequences)]
    theirs = (torch.cat([twin(input_ids=row).logits[0] for row in rows]).tanh() * weights).sum()
    theirs.backward()
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)
    _same_gradients(model, twin)
    head = twin.base_model.model.score.modules_to_save["default"].weight.grad
    assert _gap(model.hf.score.weight.grad, head) < 1e-5


def _peft_twin(base: Any, model: Any, lora: LoraConfig, task: str) -> Any:
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        use_rslora=lora.rslora,
        target_modules=lora.target_modules or "all-linear",
        task_type=task,
    )
    twin = peft.get_peft_model(base.eval(), config).eval()
    parameters = dict(twin.named_parameters())
    adapters = {name for name in parameters if ".lora_" in name}
    for name, layer in lora_layers(model.hf).items():
        for part in ("lora_A", "lora_B"):
            full = f"base_model.model.{name}.{part}.default.weight"
            parameters[full].data.copy_(getattr(layer, part))
            adapters.remove(full)
    assert not adapters, "peft adapts other layers"
    return twin


def _same_gradients(model: Any, twin: Any) -> None:
    theirs = dict(twin.named_parameters())
    for name, layer in lora_layers(model.hf).items():
        for part in ("lora_A", "lora_B"):
            expected = theirs[f"base_model.model.{name}.{part}.default.weight"].grad
            assert expected.norm() > 0
            assert _gap(getattr(layer, part).grad, expected) < 1e-5, f"{name}.{part}"
        assert layer.weight.grad is None


def _experience() -> PolicyExperience:
    tokens = _tokens()
    ones = tokens.response_mask.float()
    return PolicyExperience(tokens, ones, ones, None, ones)


def _nll(model: nn.Module, batch: PolicyExperience, denominators: Denominators) -> LossOutput:
    if isinstance(model, ScalarModel):
        score = last_states(model(batch.tokens), batch.tokens) - 1
        return LossOutput(score.square().sum() / denominators.tokens, {})
    return LossOutput(-model(batch.tokens, temperature=1.0).logprobs.sum() / denominators.tokens, {})


def _shard(parts: list[list[int]], steps: int = 3) -> RankShard[PolicyExperience]:
    batch = _experience()
    window = UpdateWindow(tuple(batch.select(part) for part in parts), Denominators(30.0, float(len(LENGTHS))))
    return RankShard((window,) * steps)


WHOLE = [list(range(len(LENGTHS)))]


@pytest.mark.parametrize(("scalar", "checkpointing"), [(False, True), (True, False)])
def test_training_moves_adapters_and_head_and_nothing_else(
    scalar: bool, checkpointing: bool, tiny_model_dir: Path
) -> None:
    model = _load(tiny_model_dir, scalar=scalar)
    if checkpointing:
        model.hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    before = {name: p.detach().clone() for name, p in model.hf.named_parameters()}
    engine = TorchEngine(model, OptimConfig(lr=3e-3), total_steps=100)
    learner = Learner(engine)
    losses = [learner.update(_shard(WHOLE, 1), _nll).metrics["loss"] for _ in range(10)]
    assert losses[-1] < 0.9 * losses[0]
    stored = dict(stored_weights(tiny_model_dir))
    for name, parameter in model.hf.named_parameters():
        if is_adapter(name) or name == "score.weight":
            assert not torch.equal(parameter, before[name]), name
        else:
            assert torch.equal(parameter, stored[name]) and parameter.grad is None, name
    with_state = {id(parameter) for parameter in engine._optimizer.state}
    assert with_state == {id(p) for p in model.parameters() if p.requires_grad}


@pytest.mark.parametrize("parts", [[[0, 1, 2], [3, 4, 5]], [[5, 0], [3], [1, 2, 4]]])
def test_steps_do_not_depend_on_the_cut(parts: list[list[int]], tiny_model_dir: Path) -> None:
    # eps far above rounding: AdamW's first step is the gradient's sign, which noise around zero would flip
    optim = OptimConfig(lr=3e-3, eps=1e-3)
    whole, cut = (Learner(TorchEngine(_shaken(_load(tiny_model_dir)), optim, total_steps=9)) for _ in range(2))
    expected, found = whole.update(_shard(WHOLE), _nll), cut.update(_shard(parts), _nll)
    for name in ("loss", "grad_norm"):
        assert found.metrics[name] == pytest.approx(expected.metrics[name], rel=1e-5), name
    for (name, ours), (_, theirs) in zip(
        cut.engine.gathered_parameters(), whole.engine.gathered_parameters(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_a_small_adapter_survives_rounding_to_bfloat16(tiny_model_dir: Path) -> None:
    """To the nearest it would be rounded away: the engines would serve the base while the trainer moves on."""
    model = _load(tiny_model_dir, precision=Precision.bfloat16)
    plain = _load(tiny_model_dir, LoraConfig(), precision=Precision.bfloat16)
    at_the_start = {name.removeprefix("hf."): p.detach() for name, p in plain.named_parameters()}
    assert all(torch.equal(tensor, at_the_start[name]) for name, tensor in _whole(model).items())
    first, again = _whole(_shaken(model, size=2e-4)), _whole(model)
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    wanted = {
        f"{name}.weight": (layer.lora_B.float() @ layer.lora_A.float() * layer.scale).detach()
        for name, layer in lora_layers(model.hf).items()
    }
    nearest = {name: (at_the_start[name].float() + moved).bfloat16() for name, moved in wanted.items()}

    def share_kept(merged: dict[str, Tensor]) -> float:
        moved = torch.cat([(merged[name].float() - at_the_start[name].float()).flatten() for name in wanted])
        asked = torch.cat([one.flatten() for one in wanted.values()])
        return float((moved * asked).sum() / asked.square().sum())

    assert share_kept(first) == pytest.approx(1, abs=0.05)
    assert share_kept(nearest) < 0.5


def test_rounding_in_proportion_is_right_on_average_and_keeps_what_is_on_the_grid() -> None:
    step = 2.0**-7  # between bfloat16 numbers from 1 to 2
    for value, share in ((1 + step * 0.25, 0.25), (-1 - step * 0.7, 0.7), (1.5, 0.0), (-2.0, 0.0), (0.0, 0.0)):
        rounded = round_in_proportion(torch.full((20_000,), value), "some.weight").double()
        toward_zero = torch.full((20_000,), value - share * step * (1 if value > 0 else -1)).double()
        away = (rounded - toward_zero).abs() / step
        assert set(away.tolist()) <= {0.0, 1.0}
        assert float(away.mean()) == pytest.approx(share, abs=0.015 if share else 0)


def test_saved_and_continued_is_uninterrupted_and_only_on_the_same_base(tiny_model_dir: Path, tmp_path: Path) -> None:
    def learner(lora: LoraConfig = LORA, folder: Path = tiny_model_dir) -> Learner:
        return Learner(TorchEngine(_load(folder, lora), OptimConfig(lr=3e-3), total_steps=9))

    straight, resumed = learner(), learner()
    straight.update(_shard(WHOLE), _nll)
    straight.engine.save_state(tmp_path)
    held = load_file(tmp_path / "rank-00000.safetensors")
    assert sum(name.endswith(".master") for name in held) == 2 * 14, "only what is trained is saved"
    resumed.engine.load_state(tmp_path)
    straight.update(_shard(WHOLE), _nll), resumed.update(_shard(WHOLE), _nll)
    for (_, ours), (_, theirs) in zip(
        resumed.engine.gathered_parameters(), straight.engine.gathered_parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)
    changed = shutil.copytree(tiny_model_dir, tmp_path / "changed")
    weights = load_file(changed / "model.safetensors")
    weights["model.embed_tokens.weight"][5, 5] += 1e-3
    save_file(weights, changed / "model.safetensors", metadata={"format": "pt"})
    for other in (
        learner(LoraConfig(rank=4, alpha=16.0)),
        learner(LoraConfig(rank=4, alpha=8.0, rslora=True)),
        learner(LoraConfig()),
        learner(folder=changed),
    ):
        with pytest.raises(EngineStateError, match="same model folder and the same lora settings"):
            other.engine.load_state(tmp_path)


@pytest.mark.parametrize("scalar", [False, True])
@pytest.mark.parametrize(
    "lora", [LORA, LoraConfig(rank=3, alpha=6.5, rslora=True, target_modules=["v_proj", "up_proj"])]
)
def test_the_adapters_folder_is_pefts_and_gives_the_merged_models_answers(
    scalar: bool, lora: LoraConfig, tiny_model_dir: Path, tmp_path: Path
) -> None:
    model = _shaken(_load(tiny_model_dir, lora, scalar=scalar))
    export_hf(model, _whole(model).items(), tmp_path / "merged", None)
    trained = {name: p for name, p in model.hf.named_parameters() if p.requires_grad}
    write_adapter(model.hf, trained, lora, tiny_model_dir, tmp_path / "merged" / "adapter")
    auto = AutoModelForSequenceClassification if scalar else AutoModelForCausalLM
    labels = {"num_labels": 1} if scalar else {}
    merged = auto.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    base = auto.from_pretrained(tiny_model_dir, dtype=torch.float32, **labels)
    twin = peft.PeftModel.from_pretrained(base, tmp_path / "merged" / "adapter")
    row = torch.tensor([[5, 9, 100, 33, 250]])
    with torch.no_grad():
        assert _gap(twin.eval()(row).logits, merged.eval()(row).logits) < 1e-5
        with twin.disable_adapter():
            assert _gap(twin(row).logits, merged(row).logits) > 0.01


@pytest.mark.parametrize(
    ("lora", "trained"),
    [
        (LoraConfig(), None),
        (LORA, 2 * 4 * (2 * (128 + 128) + 2 * (128 + 64) + 3 * (128 + 256))),
        (LoraConfig(rank=3, target_modules=["k_proj"]), 2 * 3 * (128 + 64)),
    ],
)
def test_what_a_run_would_train_is_what_it_trains(
    lora: LoraConfig, trained: int | None, tiny_model_dir: Path, tiny_model_untied_dir: Path
) -> None:
    learner = LearnerConfig(model=str(tiny_model_dir), lora=lora)
    critic = LearnerConfig(model=str(tiny_model_untied_dir), lora=lora)
    policy, value = trained_models(RunConfig(algorithm=PPOConfig(), policy=learner, critic=critic))
    (reward,) = trained_models(RunConfig(algorithm=RMConfig(), policy=learner))
    for told, real in (
        (policy, _load(tiny_model_dir, lora)),
        (value, _load(tiny_model_untied_dir, lora, scalar=True)),
        (reward, _load(tiny_model_dir, lora, scalar=True)),
    ):
        assert told.trained == sum(p.numel() for p in real.parameters() if p.requires_grad)
        assert told.parameters == sum(p.numel() for n, p in real.named_parameters() if not is_adapter(n))
    if trained is not None:
        assert (policy.trained, value.trained, reward.trained) == (trained, trained + 128, trained + 128)


def test_adapters_that_have_no_place_are_refused_with_what_there_is(tiny_model_dir: Path, tmp_path: Path) -> None:
    def told(folder: Path, *targets: str) -> list[str]:
        learner = LearnerConfig(model=str(folder), lora=LoraConfig(rank=2, target_modules=list(targets)))
        with pytest.raises(ConfigError) as caught:
            trained_models(RunConfig(algorithm=PPOConfig(), policy=learner, critic=learner))
        return list(caught.value.problems)

    problems = told(tiny_model_dir, "q_prj", "v_proj", "lm_head")
    assert [p.split(":")[0] for p in problems] == ["policy.lora.target_modules"] * 2 + [
        "critic.lora.target_modules"
    ] * 2
    assert "called 'q_prj'; did you mean q_proj? It has down_proj, gate_proj, k_proj" in problems[0]
    assert "called 'lm_head'" in problems[1]
    tiny = GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    GPT2LMHeadModel(tiny).save_pretrained(tmp_path / "gpt2")
    assert "policy.lora.rank=2: the body of GPT2LMHeadModel has no linear layer to adapt; set rank=0." in told(
        tmp_path / "gpt2"
    )
    with pytest.raises(ModelLoadError, match="no linear layer called 'q_prj'"):
        _load(tiny_model_dir, LoraConfig(rank=2, target_modules=["q_prj"]))


def test_a_weight_comes_after_its_adapter_so_one_layer_is_held_at_a_time(biased_model_dir: Path) -> None:
    """The order that merging relies on, and that it needs nothing but names and tensors."""
    model = _load(biased_model_dir)
    named = [(name, p) for name, p in model.hf.named_parameters()]
    asked: list[str] = []

    def one_by_one() -> Any:
        for name, tensor in named:
            asked.append(name)
            yield name, tensor

    for name, _ in merged_weights(one_by_one(), lora_layers(model.hf)):
        assert name == asked[-1]
