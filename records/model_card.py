"""README.md of an exported model: what it was trained from, on what, how, and how to use it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from raylign.conf.derive import lora_description
from raylign.conf.held_out import held_out_sets
from raylign.conf.schema import RunConfig
from raylign.records.atomic import write_atomic
from raylign.records.manifest import package_versions
from raylign.records.metrics_log import MetricHistory, read_history
from raylign.records.model_names import BaseModel, base_model, short_data, short_model

_ABOUT = {
    "pretrain": "plain next-token training",
    "sft": "supervised fine-tuning",
    "rm": "Bradley-Terry reward modelling",
    "dpo": "direct preference optimisation",
    "kto": "Kahneman-Tversky optimisation",
    "orpo": "odds-ratio preference optimisation",
    "simpo": "simple preference optimisation",
}


_USE_CAUSAL = """Answers in the style that the data or the reward asked for, to be judged by people before anybody
relies on it. The table above says what has judged it so far."""

_USE_SCALAR = """A score for an answer to a prompt, for training a policy or ranking answers. Scores have no unit: they
compare answers to one prompt, not prompts with each other."""

_LIMITS = """Everything that holds for the base model holds here. Nothing was measured beyond the table above: no test
of facts, of safety, of bias or of other languages was run. What was trained on may be repeated."""


@dataclass(frozen=True, slots=True)
class ModelCard:
    """The facts of a card that hold for the whole run. No path of this machine is among them."""

    algorithm: str
    base: BaseModel
    start: str
    reference: str  # empty without one
    data: str
    held_out: tuple[str, ...]
    run: str
    settings: tuple[tuple[str, str], ...]
    versions: tuple[tuple[str, str], ...] = field(default=())
    data_ledger: str = ""  # id of data/data_ledger.py; empty: its rows name no event
    metrics: Path | None = None  # metrics.jsonl, where the held-out figures of a step are

    def text(self, step: int, *, scalar: bool) -> str:
        """The page for the export of one step."""
        about = _ABOUT.get(self.algorithm, f"training with {self.algorithm}")
        facts = [
            ("base model", self.base.name),
            ("licence", self.base.licence or "not recorded; that of the base model applies"),
            ("started from", self.start),
            *([("reference", self.reference)] if self.reference else []),
            ("trained on", self.data),
            *([("data ledger", self.data_ledger)] if self.data_ledger else []),
            *(("held out", one) for one in self.held_out),
            ("steps", str(step)),
            *self.settings,
        ]
        return "\n".join(
            [
                *self._head(scalar),
                f"# {self.run}, step {step}",
                "",
                f"A {'scalar-head' if scalar else 'causal language'} model after {about} with Raylign.",
                "",
                "| | |",
                "|---|---|",
                *(f"| {name} | {_cell(value)} |" for name, value in facts),
                "",
                *self._held_out_figures(step),
                "## Intended use",
                "",
                _USE_SCALAR if scalar else _USE_CAUSAL,
                "",
                "## Limits",
                "",
                _LIMITS,
                "",
                *_loading(scalar),
                f"The run's folder (`{self.run}`) holds every setting (`resolved.yaml`), the hashes of what went in",
                "(`manifest.json`) and the curves (`report.html`). Made with "
                + ", ".join(f"{name} {version}" for name, version in self.versions)
                + ".",
                "",
            ]
        )

    def _head(self, scalar: bool) -> list[str]:
        """What hubs read. A folder's name is no address of a base model, so it is left out."""
        tags = "text-classification" if scalar else "text-generation"
        return [
            "---",
            "library_name: transformers",
            f"pipeline_tag: {tags}",
            *([f"license: {json.dumps(self.base.licence)}"] if self.base.licence else []),
            *([f"base_model: {json.dumps(self.base.name)}"] if self.base.is_hub_name else []),
            f"tags: [raylign, {self.algorithm}]",
            "---",
            "",
        ]

    def _held_out_figures(self, step: int) -> list[str]:
        """First and newest value of every held-out metric up to `step`."""
        history = read_history(self.metrics) if self.metrics else MetricHistory((), 0)
        lines = []
        for name in history.names():
            values = [v for s, v in history.series(name) if s <= step and v is not None]
            if name.startswith("eval/") and values:
                lines.append(f"| `{name.removeprefix('eval/')}` | {values[0]:.4g} | {values[-1]:.4g} |")
        if not lines:
            return ["## Held-out figures", "", "None: the run held nothing out.", ""]
        return ["## Held-out figures", "", "| | at the start | at this step |", "|---|---|---|", *lines, ""]


def _loading(scalar: bool) -> list[str]:
    auto = "AutoModelForSequenceClassification" if scalar else "AutoModelForCausalLM"
    return [
        "## Loading",
        "",
        "```python",
        f"from transformers import {auto}, AutoTokenizer",
        "",
        'folder = "."  # this folder',
        f"model = {auto}.from_pretrained(folder)",
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        "```",
        "",
    ]


def model_card(
    config: RunConfig, *, with_reference: bool, metrics: Path | None = None, data_ledger: str = ""
) -> ModelCard:
    """The card of a run's exports; `metrics`: its metrics.jsonl; `data_ledger`: the id of its training rows' ledger."""
    optim = config.policy.optim
    settings = (
        ("units an update", str(config.algorithm.units_per_update)),
        ("learning rate", f"{optim.lr:g}, {optim.schedule.value}"),
        ("precision", config.policy.precision.value),
        *([("LoRA, merged", lora_description(config.policy.lora))] if config.policy.lora.rank else []),
        ("seed", str(config.seed)),
    )
    known = package_versions()
    return ModelCard(
        algorithm=config.algorithm.label,
        base=base_model(config.policy.model),
        start=short_model(config.policy.model),
        reference=short_model(config.reference.model or config.policy.model) if with_reference else "",
        data=short_data(config.data.train),
        held_out=tuple(short_data(source) for source in held_out_sets(config.data.eval).values()),
        run=config.name,
        settings=settings,
        versions=tuple((name, known[name]) for name in ("raylign", "torch", "transformers") if name in known),
        data_ledger=data_ledger,
        metrics=metrics,
    )


def write_model_card(folder: Path, card: ModelCard, step: int) -> None:
    """README.md beside an export's weights."""
    scalar = "ForSequenceClassification" in (folder / "config.json").read_text(encoding="utf-8")
    write_atomic(folder / "README.md", card.text(step, scalar=scalar))


def _cell(value: str) -> str:
    return "`" + value.replace("|", "\\|") + "`"
