"""A loaded model becomes base and adapters; and an adapter becomes a folder that peft and vLLM read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from raylign.conf.errors import ModelLoadError
from raylign.conf.nearest import nearest
from raylign.conf.schema import LoraConfig
from raylign.trainer.models.loading import SCORE_WEIGHT
from raylign.trainer.models.lora import LoraLinear, is_adapter, lora_layers
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

ADAPTER_FOLDER = "adapter"
"""Below an export: the adapter by itself."""


def add_adapters(hf: PreTrainedModel, config: LoraConfig) -> None:
    """Freeze every weight but a scalar head, and give each target an adapter that does nothing yet: A and B are 0.

    Raises ModelLoadError with `target_problems`.
    """
    if problems := target_problems(hf, config):
        raise ModelLoadError(problems)
    scale = config.alpha / (config.rank**0.5 if config.rslora else config.rank)
    targets = find_targets(hf, config.target_modules)
    for name, parameter in hf.named_parameters():
        parameter.requires_grad_(name == SCORE_WEIGHT)
    for name, linear in targets.items():
        parent, _, leaf = name.rpartition(".")
        setattr(hf.get_submodule(parent), leaf, LoraLinear(linear, config.rank, scale))


def find_targets(hf: PreTrainedModel, wanted: Sequence[str]) -> dict[str, nn.Linear]:
    """The body's linear layers by name: all, or those whose name ends in one of `wanted`."""
    body = ((f"{hf.base_model_prefix}.{name}", module) for name, module in hf.base_model.named_modules())
    linears = {name: module for name, module in body if type(module) is nn.Linear}  # a subclass may compute otherwise
    return {n: m for n, m in linears.items() if not wanted or any(_ends_in(n, target) for target in wanted)}


def target_problems(hf: PreTrainedModel, config: LoraConfig) -> list[str]:
    """Why the model cannot have these adapters: sentences that begin with the setting, `lora.` and on."""
    known = sorted({name.rpartition(".")[2] for name in find_targets(hf, [])})
    if not known:
        return [f"lora.rank={config.rank}: the body of {type(hf).__name__} has no linear layer to adapt; set rank=0."]
    found = []
    for target in config.target_modules:
        if not find_targets(hf, [target]):
            guess = nearest(target, known)
            hint = f"did you mean {guess}? " if guess else ""
            found.append(
                f"lora.target_modules: the body of {type(hf).__name__} has no linear layer called {target!r}; {hint}"
                f"It has {', '.join(known)}."
            )
    return found


def start_adapters(hf: PreTrainedModel, seed: int) -> None:
    """Draw every A; B stays 0."""
    parameters = dict(hf.named_parameters())
    for name, drawn in initial_adapters(hf, seed):
        parameters[name].data.copy_(drawn)


def initial_adapters(hf: nn.Module, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Every A as it is drawn, float32 `[rank, in]`, by its parameter's name: the start of its float32 master too."""
    for name, layer in lora_layers(hf).items():
        yield f"{name}.lora_A", layer.draw_a(seed, name)


def write_adapter(
    hf: PreTrainedModel, state: Mapping[str, Tensor], config: LoraConfig, base: str | Path, folder: Path
) -> None:
    """The adapter by itself, in peft's form: `PeftModel.from_pretrained(<base model>, folder)` is the trained model.

    `state`: whole parameters by Hugging Face name, those of the adapters and, of a scalar model, the head's.
    """
    from peft import LoraConfig as PeftConfig  # imports much, and is needed once a run at most

    head = {SCORE_WEIGHT: state[SCORE_WEIGHT]} if SCORE_WEIGHT in state else {}
    names = sorted({name.rpartition(".")[2] for name in lora_layers(hf)})
    PeftConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        use_rslora=config.rslora,
        lora_dropout=0.0,
        target_modules=config.target_modules or names,
        modules_to_save=[SCORE_WEIGHT.partition(".")[0]] if head else None,
        task_type="SEQ_CLS" if head else "CAUSAL_LM",
        base_model_name_or_path=str(Path(base).absolute()),
        inference_mode=True,
    ).save_pretrained(str(folder))
    adapters = {f"{name}.weight": tensor for name, tensor in state.items() if is_adapter(name)}
    tensors = {f"base_model.model.{name}": t.detach().cpu().contiguous() for name, t in {**adapters, **head}.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _ends_in(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
