"""README.md of an exported model: what it was trained from, on what, how, and how to use it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from raylign.conf.derive import adapters_said
from raylign.conf.held_out import held_out_sets
from raylign.conf.schema import RunConfig
from raylign.records.atomic import write_atomic
from raylign.records.manifest import package_versions

_ABOUT = {
    "pretrain": "plain next-token training",
    "sft": "supervised fine-tuning",
    "rm": "Bradley-Terry reward modelling",
    "dpo": "direct preference optimisation",
    "kto": "Kahneman-Tversky optimisation",
    "orpo": "odds-ratio preference optimisation",
    "simpo": "simple preference optimisation",
}


@dataclass(frozen=True, slots=True)
class ModelCard:
    """The facts of a card that hold for the whole run."""

    algorithm: str
    start: str
    reference: str  # empty without one
    data: str
    held_out: tuple[str, ...]
    run: str
    settings: tuple[tuple[str, str], ...]
    versions: tuple[tuple[str, str], ...] = field(default=())

    def text(self, step: int, *, scalar: bool) -> str:
        """The page for the export of one step."""
        auto = "AutoModelForSequenceClassification" if scalar else "AutoModelForCausalLM"
        tags = "text-classification" if scalar else "text-generation"
        about = _ABOUT.get(self.algorithm, f"online training with {self.algorithm}")
        facts = [
            ("started from", self.start),
            *([("reference", self.reference)] if self.reference else []),
            ("trained on", self.data),
            *(("held out", one) for one in self.held_out),
            ("steps", str(step)),
            *self.settings,
        ]
        lines = [
            "---",
            "library_name: transformers",
            f"pipeline_tag: {tags}",
            f"tags: [raylign, {self.algorithm}]",
            "---",
            "",
            f"# {self.run}, step {step}",
            "",
            f"A {'scalar-head' if scalar else 'causal language'} model after {about} with Raylign.",
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {_cell(value)} |" for name, value in facts),
            "",
            "```python",
            f"from transformers import {auto}, AutoTokenizer",
            "",
            'folder = "."  # this folder',
            f"model = {auto}.from_pretrained(folder)",
            "tokenizer = AutoTokenizer.from_pretrained(folder)",
            "```",
            "",
            f"The run's folder (`{self.run}`) holds every setting (`resolved.yaml`), the hashes of what went in",
            "(`manifest.json`) and the curves (`report.html`). Made with "
            + ", ".join(f"{name} {version}" for name, version in self.versions)
            + ".",
            "",
        ]
        return "\n".join(lines)


def model_card(config: RunConfig, *, with_reference: bool) -> ModelCard:
    """The card of a run's exports."""
    optim = config.policy.optim
    settings = (
        ("units an update", str(config.algorithm.units_per_update)),
        ("learning rate", f"{optim.lr:g}, {optim.schedule.value}"),
        ("precision", config.policy.precision.value),
        *([("LoRA, merged", adapters_said(config.policy.lora))] if config.policy.lora.rank else []),
        ("seed", str(config.seed)),
    )
    known = package_versions()
    return ModelCard(
        algorithm=config.algorithm.name,
        start=config.policy.model,
        reference=(config.reference.model or config.policy.model) if with_reference else "",
        data=config.data.train,
        held_out=tuple(held_out_sets(config.data.eval).values()),
        run=config.name,
        settings=settings,
        versions=tuple((name, known[name]) for name in ("raylign", "torch", "transformers") if name in known),
    )


def write_model_card(folder: Path, card: ModelCard, step: int) -> None:
    """README.md beside an export's weights."""
    scalar = "ForSequenceClassification" in (folder / "config.json").read_text(encoding="utf-8")
    write_atomic(folder / "README.md", card.text(step, scalar=scalar))


def _cell(value: str) -> str:
    return "`" + value.replace("|", "\\|") + "`"
