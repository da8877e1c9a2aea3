"""Algorithms from a user's file: typed settings, refusals that name what is wrong; the shipped ones pass the trial."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from raylign.app.commands.train_help import train_help
from raylign.app.configuration import compose, from_resolved
from raylign.app.launch.inputs import run_inputs
from raylign.conf.errors import ConfigError
from raylign.conf.own_code import OwnCodeError, load_named
from raylign.conf.schema import DPOLoss, IPONormalisation, KLEstimator, LossAggregation
from raylign.trainer.algorithms import ALGORITHMS, algorithm_of
from raylign.trainer.algorithms.trial import trial

EXAMPLE = (Path(__file__).parents[4] / "examples" / "dpop.py").read_text()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a model, pairs and the example's algorithm."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tmp_path / "dpop.py").write_text(EXAMPLE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


GIVEN = ("policy.model=model", "data.train=rows.jsonl")


def problems_of(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose([*GIVEN, *overrides])
    return list(caught.value.problems)


def test_its_settings_are_typed_in_help_and_survive_the_resolved_file(home: Path) -> None:
    composed = compose([*GIVEN, "algorithm=dpop.py:DPOP", "algorithm.beta=0.25", "+experiment=dpo_tiny_cpu"])
    config = composed.config.algorithm
    assert (config.name, config.label, config.beta, config.positive_weight) == ("dpop.py:DPOP", "DPOP", 0.25, 50.0)  # type: ignore[attr-defined]
    assert type(algorithm_of(config)).__name__ == "DPOP" and algorithm_of(config).config is config  # type: ignore[union-attr]
    assert dataclasses.asdict(from_resolved(composed.resolved_yaml).config.algorithm) == dataclasses.asdict(config)
    shown = train_help(["algorithm=dpop.py:DPOP", "algorithm"])
    assert "algorithm.positive_weight" in shown and "Weight of the penalty; 0 is DPO." in shown
    assert "clip_eps_low" not in shown
    (home / "my.yaml").write_text("defaults:\n  - algorithm: dpop.py:DPOP\nalgorithm: {beta: 0.5}\n")
    assert compose([*GIVEN, "--config=my.yaml"]).config.algorithm.beta == 0.5  # type: ignore[attr-defined]


@pytest.mark.slow
def test_the_files_on_record_are_the_users_own(home: Path) -> None:
    """torch has modules that name a file without a folder (torch.ops: _ops.py), which no job could take along."""
    assert torch.ops.__file__ == "_ops.py"
    (home / "beside.py").write_text("weight = 1.0\n")
    (home / "dpop.py").write_text(EXAMPLE + "\nimport beside\n")
    inputs = run_inputs(compose([*GIVEN, "algorithm=dpop.py:DPOP"]).config)
    assert {name for name in inputs if name.startswith("algorithm")} == {"algorithm/dpop.py", "algorithm/beside.py"}


def test_a_run_goes_on_with_what_it_loaded_when_the_file_changes(home: Path) -> None:
    config = compose([*GIVEN, "algorithm=dpop.py:DPOP"]).config.algorithm
    (home / "dpop.py").write_text("raise RuntimeError('half edited')\n")
    assert type(algorithm_of(config)).__name__ == "DPOP"
    assert problems_of("algorithm=dpop.py:DPOP") == [
        "algorithm=dpop.py:DPOP: dpop.py cannot be imported: RuntimeError: half edited."
    ]


def test_mistakes_in_its_settings_are_told_as_for_any_other(home: Path) -> None:
    told = problems_of("algorithm=dpop.py:DPOP", "algorithm.positive_weigth=1", "algorithm.beta=much")
    assert told[0] == "algorithm.positive_weigth is not a setting; did you mean algorithm.positive_weight?"
    assert told[1] == "algorithm.beta=much: expected a number (default 0.1)."
    (told,) = problems_of("algorithm=dpop.py:DPOP", "algorithm.positive_weight=-1")  # type: ignore[assignment]
    assert told == "algorithm.positive_weight is -1.0; set it to 0 or more."


RETURN = "        return LossOutput(loss, pair_metrics(logps, beta * chosen, beta * rejected, batch))"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("from torch.nn", "import nowhere_at_all\nfrom torch.nn", "cannot be imported: ModuleNotFoundError: No module"),
        ("class DPOP:", "class Other:", "dpop.py has no class DPOP; it has DPOPConfig, Other"),
        ("    config: DPOPConfig", "    config: dict", "derive it from raylign.conf.schema.AlgorithmConfig"),
        ("    config: DPOPConfig", "    settings: DPOPConfig", "has no field `config`"),
        ("@dataclass(kw_only=True)\n", "", "DPOPConfig is not a dataclass"),
        ("    beta: float = 0.1", "    beta: float", "its setting beta has no default"),
        ("    beta: float = 0.1", "    beta: dict = None", "its setting beta is of type dict"),
        ("denominators: Denominators)", "denominators: Denominators, step: int)", "cannot be called as loss("),
        ("    def loss(", "    def lost(", "has no method loss"),
        (RETURN, "        pass", "loss returned a NoneType"),
        (RETURN, "        return loss", "loss returned a Tensor"),
        (RETURN, RETURN.replace("(loss,", "(loss * float('nan'),"), "loss returned nan"),
        (RETURN, RETURN.replace("(loss,", "(loss.detach(),"), "does not depend on the model's output"),
        (RETURN, RETURN.replace("(loss,", "(loss + chosen.mean(),"), "divide sums by the denominators"),
        (RETURN, RETURN.replace("(loss,", "(loss + chosen.sum() * 0 + 1e-9,"), "for a batch of weight 0"),
        (RETURN, "        return LossOutput(loss, {'mine': 0.5})", "metric mine is a float"),
        (RETURN, "        raise KeyError('mine')", "loss raised KeyError: 'mine'"),
        ("frozenset({Role.POLICY, Role.REFERENCE})", "['policy']", "roles is ['policy']"),
        ("OfflineNeeds(RowKind.PAIRS, ModelKind.CAUSAL)", "'pairs'", "needs is 'pairs'"),
        ("        return self.pairs_per_update", "        return None", "units_per_update is None"),
        ("{Role.POLICY, Role.REFERENCE}", "{Role.POLICY, Role.ROLLOUT}", "trainer.algorithms.online.OnlineConfig"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_with_is_refused_in_one_sentence(home: Path, old: str, new: str, told: str) -> None:
    assert old in EXAMPLE
    (home / "dpop.py").write_text(EXAMPLE.replace(old, new))
    (sentence,) = problems_of("algorithm=dpop.py:DPOP")
    assert sentence.startswith("algorithm=dpop.py:DPOP: ") and told in sentence, sentence


def test_one_whose_import_hangs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text("import time\ntime.sleep(60)\n")
    with pytest.raises(OwnCodeError, match=r"endless\.py was not imported within 0\.2 s; do less at import"):
        load_named(f"{tmp_path}/endless.py:Mine", timeout_s=0.2)


def test_one_whose_loss_hangs_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raylign.app.configuration.TRIAL_TIMEOUT_S", 0.2)
    (home / "dpop.py").write_text(EXAMPLE.replace(RETURN, "        import time; time.sleep(60)"))
    (sentence,) = problems_of("algorithm=dpop.py:DPOP")
    assert sentence.startswith("algorithm=dpop.py:DPOP: its trial") and "not done within 0.2 s" in sentence


def test_a_file_alone_and_a_missing_file_say_what_to_write(home: Path) -> None:
    assert "write FILE.py:NAME" in problems_of("algorithm=dpop.py")[0]
    assert problems_of("algorithm=gone.py:A", "num_steps=x") == [
        "algorithm=gone.py:A: gone.py: there is no such file.",
        "num_steps=x: expected a whole number (default 100).",
    ]


ONLINE = """
from dataclasses import dataclass, replace
import torch
from raylign.trainer.algorithms.rloo import RLOO, RLOOConfig

@dataclass(kw_only=True)
class MineConfig(RLOOConfig):
    pass

class Mine(RLOO):
    config: MineConfig

    def estimate(self, batch, *, kl_coef):
        found = super().estimate(batch, kl_coef=kl_coef)
        return CHANGED
"""


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ("None", "estimate returned a NoneType; return an AdvantageEstimate"),
        ("replace(found, advantages=found.advantages / 0)", "estimate's advantages are not all finite"),
        ("replace(found, advantages=found.advantages + 1)", "estimate's advantages are not 0 outside response_mask"),
        ("replace(found, advantages=found.advantages[:3])", "are not a tensor of one number a token"),
    ],
)
def test_an_online_one_is_tried_too(home: Path, changed: str, told: str) -> None:
    (home / "mine.py").write_text(ONLINE.replace("CHANGED", changed))
    (sentence,) = problems_of("algorithm=mine.py:Mine", "reward.rules=[{rule: finished}]")
    assert told in sentence


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_shipped_ones_pass_the_trial(name: str) -> None:
    config, build = ALGORITHMS[name]
    assert trial(config(), build) == []


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *(("dpo", {"loss": loss}) for loss in DPOLoss),
        ("dpo", {"loss": DPOLoss.ipo, "ipo_normalisation": IPONormalisation.sum, "sft_weight": 1.0}),
        *(("grpo", {"kl_in_loss": True, "kl_estimator": k, "entropy_coef": 0.1}) for k in KLEstimator),
        ("grpo", {"loss_aggregation": LossAggregation.sequence_mean}),
        ("grpo", {"loss_aggregation": LossAggregation.constant_length, "constant_length": 8}),
        ("ppo", {"kl_coef": 0.0}),
    ],
)
def test_so_do_their_other_forms(name: str, settings: dict[str, object]) -> None:
    config, build = ALGORITHMS[name]
    assert trial(config(**settings), build) == []  # type: ignore[arg-type]
