"""Loss and gradient equal TRL's own on the same model and token ids: its trainers are built and their code is called.

TRL is a test-only dependency. Everything is float32 on a tiny model; the reference is the policy before a small random
change, so that log-ratios are neither 0 nor saturated.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from raylign.conf.schema import DPOLoss, IPONormalisation, Precision
from raylign.data.batching import shard
from raylign.data.judged import JudgedExample, JudgedSet, mismatches
from raylign.data.preferences import PairExample, PairSet
from raylign.data.quarantine import LoadReport
from raylign.data.row_kinds import TrainRows
from raylign.data.texts import TextSet
from raylign.data.tokenize import EncodedAnswer, EncodedText
from raylign.data.types import TokenBatch
from raylign.trainer.algorithms.base import OfflineAlgorithm
from raylign.trainer.algorithms.dpo import DPO, DPOConfig
from raylign.trainer.algorithms.kto import KTO, KTOConfig
from raylign.trainer.algorithms.orpo import ORPO, ORPOConfig
from raylign.trainer.algorithms.rm import RewardModelling, RMConfig
from raylign.trainer.algorithms.sft import SFT, SFTConfig
from raylign.trainer.algorithms.simpo import SimPO, SimPOConfig
from raylign.trainer.engine.base import StepResult
from raylign.trainer.engine.torch_engine import TorchEngine
from raylign.trainer.functional.distillation import divergence_estimate, divergence_signal
from raylign.trainer.learner import Learner
from raylign.trainer.models.loading import load_causal_lm, load_scalar_model
from raylign.trainer.workers.offline_model import objective_of
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import DPOConfig as TRLDPOConfig
from trl import DPOTrainer, KTOTrainer, RewardTrainer, SFTTrainer
from trl import KTOConfig as TRLKTOConfig
from trl import RewardConfig as TRLRewardConfig
from trl import SFTConfig as TRLSFTConfig
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.gkd import GKDTrainer
from trl.experimental.orpo import ORPOConfig as TRLORPOConfig
from trl.experimental.orpo import ORPOTrainer

from tests.unit.one_process import alone  # noqa: F401

REL = 1e-5
PAD = 0
REPORT = LoadReport("test", 0, 0, 0, 0, 0)
Gradients = Mapping[str, Tensor]


@dataclass(frozen=True)
class Folders:
    policy: Path
    reference: Path
    scalar: Path


@pytest.fixture(scope="module")
def folders(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    root = tmp_path_factory.mktemp("trl")
    policy = root / "policy"
    shutil.copytree(tiny_model_dir, policy)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.004 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(policy)
    scalar = root / "scalar"
    shutil.copytree(policy, scalar)
    (scalar / "model.safetensors").unlink()
    head = AutoModelForSequenceClassification.from_pretrained(policy, num_labels=1, dtype=torch.float32)
    with torch.no_grad():
        head.score.weight.normal_(generator=generator, std=0.1)
    head.config.pad_token_id = PAD
    head.save_pretrained(scalar)
    return Folders(policy, tiny_model_dir, scalar)


def answers(count: int, seed: int) -> list[EncodedAnswer]:
    """Prompts of 3-7 tokens, answers of 1-9."""
    draw = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=draw))

    made = []
    for _ in range(count):
        prompt, length = number(3, 8), number(1, 10)
        made.append(EncodedAnswer(tuple(number(3, 500) for _ in range(prompt + length)), prompt))
    return made


def pair_set() -> PairSet:
    """Five pairs; both sides share their prompt."""
    chosen, other = answers(5, 1), answers(5, 2)
    rejected = [
        EncodedAnswer((*c.token_ids[: c.prompt_tokens], *r.token_ids[r.prompt_tokens :]), c.prompt_tokens)
        for c, r in zip(chosen, other, strict=True)
    ]
    margins = (0.0, 0.5, 1.0, 2.0, 0.1)
    pairs = tuple(PairExample(c, r, m, 1.0) for c, r, m in zip(chosen, rejected, margins, strict=True))
    return PairSet(pairs, "", REPORT)


def judged_set() -> JudgedSet:
    """Six answers, two of them undesirable."""
    made = answers(6, 3)
    rows = tuple(JudgedExample(answer, i not in (1, 4), 1.0) for i, answer in enumerate(made))
    return JudgedSet(rows, mismatches(made, 64), "", REPORT)


def padded(rows: list[EncodedAnswer]) -> dict[str, Tensor]:
    """Right-padded ids, attention mask and completion mask, as TRL's collators make them."""
    width = max(len(row.token_ids) for row in rows)
    ids = [[*row.token_ids, *[PAD] * (width - len(row.token_ids))] for row in rows]
    seen = [[1] * len(row.token_ids) + [0] * (width - len(row.token_ids)) for row in rows]
    mask = [[*map(int, row.mask), *[0] * (width - len(row.token_ids))] for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(seen), "completion_mask": torch.tensor(mask)}


class GradientEngine(TorchEngine):
    """Keeps the gradient of the step instead of taking it."""

    def step(self) -> StepResult:
        self.gradients = {
            name.removeprefix("hf."): p.grad.clone() for name, p in self.module.named_parameters() if p.grad is not None
        }
        return StepResult(0.0, 0.0, True)


def ours(folder: Path, algorithm: OfflineAlgorithm, rows: TrainRows) -> tuple[float, Gradients]:
    """Our loss and gradient over all rows, through the learner, in three micro-batches and more."""
    if isinstance(algorithm, RewardModelling):
        model: Any = load_scalar_model(folder, precision=Precision.float32)
    else:
        model = load_causal_lm(folder, precision=Precision.float32)
    engine = GradientEngine(model, _no_decay(), total_steps=1)
    (one,) = shard(rows.batch(range(len(rows))), num_ranks=1, units_per_update=len(rows), micro_batch_tokens=40, seed=0)
    assert len(one.windows[0].micro_batches) > 1
    result = Learner(engine).update(one, objective_of(algorithm))
    return result.metrics["loss"], engine.gradients


def _no_decay() -> Any:
    from raylign.conf.schema import OptimConfig

    return OptimConfig()


def with_reference(folders: Folders, rows: Any) -> Any:
    """The rows with our reference's log-probs."""
    reference = Learner(
        TorchEngine(load_causal_lm(folders.reference, precision=Precision.float32), _no_decay(), total_steps=0)
    )
    batch = TokenBatch.from_sequences(*zip(*rows.sequences(), strict=True))
    return rows.with_reference(reference.sequence_logprobs([batch])[0])


def theirs(trainer: Any, loss: Tensor) -> tuple[float, Gradients]:
    trainer.model.zero_grad()
    loss.backward()
    found = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    return float(loss.detach()), found


def assert_equal(mine: tuple[float, Gradients], other: tuple[float, Gradients]) -> None:
    assert mine[0] == pytest.approx(other[0], rel=REL)
    assert mine[1].keys() == other[1].keys()
    for name, gradient in other[1].items():
        gap = (mine[1][name] - gradient).norm() / gradient.norm()
        assert gap < REL, f"{name}: relative gradient gap {gap:.1e}"
    assert sum(g.norm() for g in other[1].values()) > 1e-3, "a gradient of nothing would equal anything"


def causal(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def common(tmp_path: Path) -> dict[str, Any]:
    return {
        "output_dir": str(tmp_path), "report_to": [], "use_cpu": True, "bf16": False, "gradient_checkpointing": False,
        "per_device_train_batch_size": 8,
    }  # fmt: skip


def rows_for(*columns: str) -> Dataset:
    """Something for a trainer to be built with; the batches under test are given by hand."""
    text = {"label": [True, False]}
    return Dataset.from_dict({c: text.get(c, [f"a {c} here", f"other {c} there"]) for c in columns})


def dpo_trainer(folders: Folders, tmp_path: Path, **settings: Any) -> DPOTrainer:
    return DPOTrainer(
        model=causal(folders.policy),
        ref_model=causal(folders.reference),
        args=TRLDPOConfig(**common(tmp_path), disable_dropout=True, **settings),
        processing_class=AutoTokenizer.from_pretrained(folders.policy),
        train_dataset=rows_for("prompt", "chosen", "rejected"),
    )


def dpo_inputs() -> dict[str, Tensor]:
    pairs = pair_set().pairs
    return padded([p.chosen for p in pairs] + [p.rejected for p in pairs])


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (DPOConfig(beta=0.3), {"loss_type": ["sigmoid"], "beta": 0.3}),
        (
            DPOConfig(beta=0.3, loss=DPOLoss.robust, label_smoothing=0.2),
            {"loss_type": ["robust"], "beta": 0.3, "label_smoothing": 0.2},
        ),
        (DPOConfig(beta=0.2, loss=DPOLoss.ipo), {"loss_type": ["ipo"], "beta": 0.2}),
        (DPOConfig(beta=0.2, loss=DPOLoss.hinge), {"loss_type": ["hinge"], "beta": 0.2}),
        (
            DPOConfig(beta=0.3, sft_weight=0.7),
            {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7], "beta": 0.3},
        ),
    ],
    ids=["sigmoid", "robust", "ipo", "hinge", "with SFT term"],
)
def test_dpo(config: DPOConfig, settings: dict[str, Any], folders: Folders, tmp_path: Path) -> None:
    trainer = dpo_trainer(folders, tmp_path, **settings)
    expected = theirs(trainer, trainer._compute_loss(trainer.model, dpo_inputs(), False))
    assert_equal(ours(folders.policy, DPO(config), with_reference(folders, pair_set())), expected)


def cpo_trainer(folders: Folders, tmp_path: Path, **settings: Any) -> CPOTrainer:
    return CPOTrainer(
        model=causal(folders.policy),
        args=CPOConfig(**common(tmp_path), disable_dropout=True, max_length=64, **settings),
        processing_class=AutoTokenizer.from_pretrained(folders.policy),
        train_dataset=rows_for("prompt", "chosen", "rejected"),
    )


def answer_sums(model: Any, rows: list[EncodedAnswer]) -> Tensor:
    """TRL's own sequence log-probs."""
    batch = padded(rows)
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    return CPOTrainer.get_batch_logps(logits, labels)


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (DPOConfig(beta=0.3, label_smoothing=0.2), {"loss_type": "sigmoid", "beta": 0.3, "label_smoothing": 0.2}),
        (
            DPOConfig(beta=0.2, loss=DPOLoss.ipo, ipo_normalisation=IPONormalisation.sum),
            {"loss_type": "ipo", "beta": 0.2},
        ),
    ],
    ids=["cDPO", "summed ipo"],
)
def test_dpo_forms_that_trl_has_in_its_cpo_loss(
    config: DPOConfig, settings: dict[str, Any], folders: Folders, tmp_path: Path
) -> None:
    """`cpo_loss` on log-ratios is conservative DPO, and its ipo is the summed one."""
    trainer, reference = cpo_trainer(folders, tmp_path, cpo_alpha=0.0, **settings), causal(folders.reference)
    rows = [p.chosen for p in pair_set().pairs], [p.rejected for p in pair_set().pairs]
    ratios = [answer_sums(trainer.model, side) - answer_sums(reference, side).detach() for side in rows]
    expected = theirs(trainer, trainer.cpo_loss(*ratios)[0].mean())
    assert_equal(ours(folders.policy, DPO(config), with_reference(folders, pair_set())), expected)


def chosen_and_rejected() -> dict[str, Tensor]:
    """ORPO's and CPO's batches: ids, mask and labels of each side."""
    batch = {}
    for side in ("chosen", "rejected"):
        made = padded([getattr(pair, side) for pair in pair_set().pairs])
        batch[f"{side}_input_ids"], batch[f"{side}_attention_mask"] = made["input_ids"], made["attention_mask"]
        batch[f"{side}_labels"] = made["input_ids"].masked_fill(made["completion_mask"] == 0, -100)
    return batch


@pytest.mark.parametrize("sft_weight", [0.0, 0.4])
def test_simpo(sft_weight: float, folders: Folders, tmp_path: Path) -> None:
    trainer = cpo_trainer(
        folders, tmp_path, loss_type="simpo", beta=2.0, simpo_gamma=0.7, cpo_alpha=sft_weight, label_smoothing=0.1
    )
    expected = theirs(trainer, trainer.get_batch_loss_metrics(trainer.model, chosen_and_rejected())[0])
    config = SimPOConfig(beta=2.0, gamma=0.7, label_smoothing=0.1, sft_weight=sft_weight)
    assert_equal(ours(folders.policy, SimPO(config), pair_set()), expected)


def test_orpo(folders: Folders, tmp_path: Path) -> None:
    trainer = ORPOTrainer(
        model=causal(folders.policy),
        args=TRLORPOConfig(**common(tmp_path), beta=0.4, max_length=64),
        processing_class=AutoTokenizer.from_pretrained(folders.policy),
        train_dataset=rows_for("prompt", "chosen", "rejected"),
    )
    expected = theirs(trainer, trainer.get_batch_loss_metrics(trainer.model, chosen_and_rejected())[0])
    pairs = replace(pair_set(), train_prompts=True)
    assert_equal(ours(folders.policy, ORPO(ORPOConfig(beta=0.4)), pairs), expected)


def test_kto(folders: Folders, tmp_path: Path) -> None:
    trainer = KTOTrainer(
        model=causal(folders.policy),
        ref_model=causal(folders.reference),
        args=TRLKTOConfig(
            **common(tmp_path), beta=0.3, desirable_weight=0.8, undesirable_weight=1.7, disable_dropout=True
        ),
        processing_class=AutoTokenizer.from_pretrained(folders.policy),
        train_dataset=rows_for("prompt", "completion", "label"),
    )
    rows = judged_set()
    inputs = padded([row.answer for row in rows.answers])
    inputs |= {f"KL_{name}": value for name, value in padded(list(rows.mismatched)).items()}
    inputs["label"] = torch.tensor([row.desirable for row in rows.answers])
    expected = theirs(trainer, trainer._compute_loss(trainer.model, inputs, False))
    (kl,) = trainer._metrics["eval"]["kl"]  # the model was loaded for evaluation
    assert kl > 0, "the KL is cut off at 0, so this data would not show a wrong one"
    config = KTOConfig(beta=0.3, desirable_weight=0.8, undesirable_weight=1.7)
    assert_equal(ours(folders.policy, KTO(config), with_reference(folders, rows)), expected)


def test_sft(folders: Folders, tmp_path: Path) -> None:
    trainer = SFTTrainer(
        model=causal(folders.policy),
        args=TRLSFTConfig(**common(tmp_path)),
        processing_class=AutoTokenizer.from_pretrained(folders.policy),
        train_dataset=rows_for("prompt", "completion"),
    )
    rows = answers(6, 8)
    inputs = padded(rows)
    inputs["labels"] = inputs["input_ids"].masked_fill(inputs.pop("completion_mask") == 0, -100)
    expected = theirs(trainer, trainer.compute_loss(trainer.model, inputs))
    texts = tuple(EncodedText(row.token_ids, tuple(map(float, row.mask))) for row in rows)
    assert_equal(ours(folders.policy, SFT(SFTConfig()), TextSet(texts, "", REPORT)), expected)


@pytest.mark.parametrize("centering", [0.0, 0.05])
def test_reward_model(centering: float, folders: Folders, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(folders.scalar, num_labels=1, dtype=torch.float32)
    trainer = RewardTrainer(
        model=model,
        args=TRLRewardConfig(**common(tmp_path), center_rewards_coefficient=centering or None, disable_dropout=True),
        processing_class=AutoTokenizer.from_pretrained(folders.policy),
        train_dataset=rows_for("chosen", "rejected"),
    )
    inputs = dpo_inputs()
    del inputs["completion_mask"]
    inputs["margin"] = torch.tensor([pair.margin for pair in pair_set().pairs])
    expected = theirs(trainer, trainer.compute_loss(trainer.model, inputs))
    config = RMConfig(use_margin=True, centering_coef=centering)
    assert_equal(ours(folders.scalar, RewardModelling(config), pair_set()), expected)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
def test_distillation_has_the_gradient_of_trls_gkd(beta: float) -> None:
    """Sampled tokens need no vocabulary; over all of them, weighed by their probability, they are its loss."""
    gen = torch.Generator().manual_seed(9)
    policy, teacher = (2 * torch.randn(5, 11, generator=gen, dtype=torch.float64) for _ in range(2))
    log_q = policy.requires_grad_().log_softmax(-1)
    q, log_r = log_q.detach().exp(), teacher.log_softmax(-1) - log_q.detach()
    loss = GKDTrainer.generalized_jsd_loss(policy[None], teacher[None], beta=beta, reduction="sum")
    scale = 1.0 if beta in (0.0, 1.0) else beta * (1 - beta)
    (theirs,) = torch.autograd.grad(loss, policy, retain_graph=True)
    (ours,) = torch.autograd.grad(-(q * divergence_signal(log_r, beta) * log_q).sum(), policy)
    torch.testing.assert_close(scale * ours, theirs, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(
        scale * (q * divergence_estimate(log_r, beta)).sum(), loss.detach(), rtol=1e-7, atol=1e-8
    )
