"""Hugging Face folders in: safetensors only, no remote code, every weight accounted for."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from raylign.conf.errors import ModelLoadError
from raylign.conf.schema import Device, Precision
from raylign.trainer.models.architecture import noise_of, small_copy, without_noise
from raylign.trainer.models.causal_lm import CausalLM
from raylign.trainer.models.lean_layers import lean_layers
from raylign.trainer.models.packed_attention import PACKED_ATTENTION
from raylign.trainer.models.packing_check import ERRORS, check_model
from raylign.trainer.models.scalar_head import ScalarModel, init_score
from raylign.trainer.models.stored import refuse_other_weights, stored_tensors
from safetensors import safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils.logging import disable_progress_bar

SCORE_WEIGHT = "score.weight"


def torch_dtype(precision: Precision) -> torch.dtype:
    """The torch dtype of a configured precision."""
    return {Precision.float32: torch.float32, Precision.bfloat16: torch.bfloat16}[precision]


def load_causal_lm(
    folder: str | Path,
    *,
    precision: Precision,
    gradient_checkpointing: bool = False,
    attention: str = PACKED_ATTENTION,
    device: Device = Device.cpu,
    as_stored: bool = False,
) -> CausalLM:
    """A policy or reference, on `device`.

    `as_stored`: a folder in float32 stays so, in its files' mapping, for a caller that converts weight by weight.
    Raises ModelLoadError for a folder that is not a complete causal language model.
    """
    path = Path(folder)
    if read_head(path) != "causal":
        raise ModelLoadError(f"{path} holds a scalar-head model; a policy or reference needs a causal language model")
    hf = _from_pretrained(path, precision, attention, scalar=False, fresh=False, as_stored=as_stored)
    _prepare(hf, gradient_checkpointing)
    return CausalLM(hf, logit_scale=_checked_where_it_computes(hf, path, device, with_head=True))


def load_scalar_model(
    folder: str | Path,
    *,
    precision: Precision,
    gradient_checkpointing: bool = False,
    new_head_seed: int | None = None,
    attention: str = PACKED_ATTENTION,
    device: Device = Device.cpu,
    as_stored: bool = False,
) -> ScalarModel:
    """A critic or reward model. A causal language model is accepted only with `new_head_seed`: its head is then drawn.

    `as_stored`: see load_causal_lm.
    Raises ModelLoadError for a folder that is not a complete model, or has no scalar head and no seed was given.
    """
    path = Path(folder)
    fresh = read_head(path) == "causal"
    if fresh and new_head_seed is None:
        raise ModelLoadError(
            f"{path} is a causal language model without a scalar head; train a reward model first "
            "(algorithm=rm), or use it where a new head is trained (a critic, algorithm=rm)"
        )
    hf = _from_pretrained(path, precision, attention, scalar=True, fresh=fresh, as_stored=as_stored)
    if fresh:
        init_score(hf.score.weight, seed=new_head_seed or 0)
    _prepare(hf, gradient_checkpointing)
    _checked_where_it_computes(hf, path, device, with_head=False)
    return ScalarModel(hf)


def read_head(folder: Path) -> str:
    """What a model folder holds: "causal" or "scalar". Raises ModelLoadError when it is neither, naming why."""
    if not folder.is_dir():
        raise ModelLoadError(f"model folder {folder} does not exist; give a local Hugging Face folder")
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise ModelLoadError(f"{folder} is not a model folder: it has no config.json")
    if not list(folder.glob("*.safetensors")):
        raise ModelLoadError(f"{folder} has no *.safetensors; other weight formats are not read, convert it first")
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{config_file} is not valid JSON: {error}") from error
    if not (architecture := architecture_of(config)):
        raise ModelLoadError(f"{config_file} names no architecture (`architectures`), so its kind is not known")
    if architecture.endswith("ForCausalLM") or architecture in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        return "causal"
    labels = config.get("num_labels", len(config.get("id2label", {}) or {0: "", 1: ""}))
    if architecture.endswith("ForSequenceClassification") and labels == 1:
        return "scalar"
    raise ModelLoadError(
        f"{folder} holds {architecture} with {labels} labels; needed is a causal language model or a "
        "sequence classifier with one label"
    )


def architecture_of(config: object) -> str:
    """The class that a read config.json names; "" for none."""
    named = config.get("architectures") if isinstance(config, dict) else None
    return str(named[0]) if isinstance(named, list) and named else ""


def model_skeleton(folder: str | Path, *, scalar: bool) -> PreTrainedModel:
    """The modules and shapes of a folder's model without its weights: quick at any size.

    Raises ModelLoadError when the folder's configuration is none.
    """
    config = _read_config(Path(folder), scalar=scalar)
    try:
        with torch.device("meta"):
            return _auto(scalar=scalar).from_config(config, trust_remote_code=False)
    except (OSError, *ERRORS) as error:
        reason = f"there is no {error}" if isinstance(error, KeyError) else error
        raise ModelLoadError(f"{folder} ({config.model_type}) cannot be read as a model: {reason}") from error


def try_architecture(folder: str | Path, *, scalar: bool) -> bool:
    """Try a folder's architecture by its configuration alone, on a small copy with drawn weights: no weight is read.

    In float32 and with a short window, so it sees more than the check of the loaded model does in bfloat16. False:
    nothing was tried, for no small copy can be built. Raises ModelLoadError naming the architecture and the reason.
    """
    config = without_noise(_read_config(Path(folder), scalar=scalar))
    auto = _auto(scalar=scalar)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            copied = small_copy(config)
            auto.from_config(copied, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False)
        except ERRORS:
            return False
        settings = {"dtype": torch.float32, "attn_implementation": PACKED_ATTENTION, "trust_remote_code": False}
        hf = _built(lambda: auto.from_config(copied, **settings), folder, config)
    _prepare(hf, gradient_checkpointing=False)
    check_model(hf, folder, with_head=not scalar)
    return True


def _auto(*, scalar: bool) -> type[AutoModelForCausalLM] | type[AutoModelForSequenceClassification]:
    return AutoModelForSequenceClassification if scalar else AutoModelForCausalLM


def _read_config(path: Path, *, scalar: bool) -> PretrainedConfig:
    labels = {"num_labels": 1} if scalar else {}
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True, **labels)
    except (OSError, StrictDataclassError, *ERRORS) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelLoadError(f"{path} cannot be read as a model: {reason}") from error
    if quantised := getattr(config, "quantization_config", None):
        given = quantised if isinstance(quantised, Mapping) else vars(quantised)
        raise ModelLoadError(
            f"{path} is quantised ({given.get('quant_method', 'by quantization_config')}): such weights cannot be "
            "trained or sent; use the model as floats"
        )
    if type(config) not in _auto(scalar=scalar)._model_mapping:
        name = (getattr(config, "architectures", None) or [config.model_type])[0]
        what, use = ("sequence classifier", "reward model or critic") if scalar else ("causal language model", "policy")
        raise ModelLoadError(
            f"{path}: {name} is not supported: transformers has no {what} of model_type={config.model_type}, so it can "
            f"be no {use}"
        )
    return config


def stored_weights(folder: str | Path) -> Iterator[tuple[str, Tensor]]:
    """A folder's float32 tensors one by one, as they are stored; nothing when it stores a smaller format."""
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - safe_open is no mapping
                if opened.get_slice(name).get_dtype() == "F32":
                    yield name, opened.get_tensor(name)


def _from_pretrained(
    path: Path, precision: Precision, attention: str, *, scalar: bool, fresh: bool, as_stored: bool
) -> PreTrainedModel:
    disable_progress_bar()
    # Every role loads here. A sum of a card's blocks must not pass through bfloat16, else it depends on the batch.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    try_architecture(path, scalar=scalar)
    refuse_other_weights(path, model_skeleton(path, scalar=scalar))
    config = _read_config(path, scalar=scalar)
    noise = noise_of(config)
    whole = as_stored and {tensor.dtype for tensor in stored_tensors(path).values()} == {"F32"}
    config = without_noise(config)
    load = partial(
        _auto(scalar=scalar).from_pretrained,
        path,
        config=config,
        dtype=torch.float32 if whole else torch_dtype(precision),
        attn_implementation=attention,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
    )
    with _without_load_report():
        hf, info = _built(load, path, config)
    hf.config.dtype = torch_dtype(precision)  # what it will be, and an export says
    hf.raylign_noise = noise  # for the export, whose configuration says the same as the folder's
    missing = set(info["missing_keys"]) - ({SCORE_WEIGHT} if fresh else set())
    if missing or info["mismatched_keys"]:
        # transformers would go on with random weights and a warning
        raise ModelLoadError(
            f"{path} lacks {len(missing)} weights (first: {sorted(missing)[:3]}) and has "
            f"{len(info['mismatched_keys'])} of another shape"
        )
    return hf


@contextmanager
def _without_load_report() -> Iterator[None]:
    """transformers prints a table of weights that a folder lacks or has besides, which the caller checks, and which
    layers a tensor-parallel plan of its own, never used here, would leave whole."""
    loggers = [logging.getLogger(f"transformers.{name}") for name in ("modeling_utils", "distributed.tensor_parallel")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _built(build: Callable[[], Any], folder: Path | str, config: PretrainedConfig) -> Any:
    """What `build` makes. Raises ModelLoadError naming the architecture and what stands in the way."""
    try:
        return build()
    except (OSError, *ERRORS) as error:
        reason = str(error).strip().partition("\n")[0]
        if PACKED_ATTENTION in reason or "attention implementation" in reason or "attn_implementation" in reason:
            reason = "its attention layers do not take another attention function, which packed training needs"
        name = (getattr(config, "architectures", None) or [type(config).__name__])[0]
        raise ModelLoadError(f"{folder}: {name} cannot be loaded: {reason}") from error


def _checked_where_it_computes(hf: PreTrainedModel, path: Path, device: Device, *, with_head: bool) -> float:
    """On the CPU, and where the model goes to a GPU there too: attention takes another kernel on one."""
    scale = check_model(hf, path, with_head=with_head)
    return scale if device is Device.cpu else check_model(hf.to(device.value), path, with_head=with_head)


def check_on_card(hf: PreTrainedModel, folder: str, device: Device) -> None:
    """Try a model on its card that was loaded on the host and is partitioned or adapted by now; its head was tried.

    Collective under ZeRO-3, and the same on every rank. Nothing on a CPU. Raises ModelLoadError.
    """
    if device is not Device.cpu:
        check_model(hf, folder, with_head=False)


def _prepare(hf: PreTrainedModel, gradient_checkpointing: bool) -> None:
    """Training mode without dropout: log-probs are a function of the weights alone (see packed_attention)."""
    for module in hf.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    hf.config.use_cache = False
    lean_layers(hf, gated=not gradient_checkpointing)
    if gradient_checkpointing:
        hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    hf.train()
