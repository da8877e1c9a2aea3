# ruff: noqa: E501
"""Chat templates and small tokenizers in the shape of families in use, written for these tests."""

from __future__ import annotations

from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXT = [
    "The answer is 42.\n\n    def f(x):\n        return x + 1\n", "Paris is a city.  Name a city: Paris\n\n\nUSER: ask ",
    "### Response:\n\nASSISTANT: It is -4 C. [INST] Why? [/INST] So. Why is it so?", "user\nassistant\nsystem\n1234 and 7",
] * 3  # fmt: skip
SPECIAL = (
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|eot|>",
    "<|head|>", "<|/head|>", "<turn>", "</turn>", "<|endoftext|>", "<|channel|>", "<|message|>", "<|return|>",
)  # fmt: skip
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TOKENIZERS = ("gpt2", "qwen", "metaspace_first", "metaspace_always", "legacy")


@cache
def _trained(kind: str) -> str:
    if kind in ("gpt2", "qwen"):
        made = Tokenizer(models.BPE())
        if kind == "qwen":
            made.normalizer = normalizers.NFC()
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(GPT2 if kind == "gpt2" else QWEN), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        made.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet))
    else:
        made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        if kind == "legacy":  # Llama 2: the space is put before every piece between special tokens
            made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        else:
            scheme = kind.removeprefix("metaspace_")
            made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
        made.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        hexes = [f"<0x{i:02X}>" for i in range(256)]
        made.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=600, special_tokens=["<unk>", *hexes]))
    return str(made.to_str())


def tokenizer(kind: str, template: str | None, eos: str) -> PreTrainedTokenizerFast:
    """A new tokenizer of the kind with all of `SPECIAL`."""
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(_trained(kind)), bos_token="<s>", eos_token=eos)
    made.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL], special_tokens=True)
    made.chat_template = template
    return made


def _turns(before: str, after: str, opening: str, *, first: str = "", last: str = "") -> str:
    return (
        f"{first}{{% for m in messages %}}{before}{after}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{opening}{{% else %}}{last}{{% endif %}}"
    )


def _by_role(user: str, assistant: str, opening: str, *, first: str = "") -> str:
    body = f"{{% if m.role == 'assistant' %}}{assistant}{{% else %}}{user}{{% endif %}}"
    return _turns(body, "", opening, first=first)


_C = "{{ m.content }}"
_IM = "<|im_start|>{{ m.role }}\n"
_TOOLS = "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
_CALLS = "{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}"
_QWEN3 = (
    _TOOLS + "{% for m in messages %}" + _IM + "{% if m.role == 'assistant' and loop.last %}"
    "<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}" + _C + _CALLS + "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)

FAMILIES: dict[str, tuple[str, str]] = {  # template and EOS
    "chatml": (_turns(_IM + _C, "<|im_end|>\n", "<|im_start|>assistant\n"), "<|im_end|>"),
    "qwen2 (tools)": (_TOOLS + _turns(_IM + _C + _CALLS, "<|im_end|>\n", "<|im_start|>assistant\n"), "<|im_end|>"),
    "qwen3 (thinking)": (_QWEN3, "<|im_end|>"),
    "llama 2": (_by_role("<s>[INST] " + _C + " [/INST]", " " + _C + " </s>", ""), "</s>"),
    "llama 3": (
        _turns("<|head|>{{ m.role }}<|/head|>\n\n{{ m.content | trim }}", "<|eot|>",
               "<|head|>assistant<|/head|>\n\n", first="{{ bos_token }}"), "<|endoftext|>"),
    "llama 3.2 (date)": (
        _turns("<|head|>{{ m.role }}<|/head|>\n\n{{ m.content | trim }}", "<|eot|>", "<|head|>assistant<|/head|>\n\n",
               first="{{ bos_token }}Today: {{ strftime_now('%d %b %Y') }}\n\n"), "<|eot|>"),
    "mistral v1": (_by_role("[INST] " + _C + " [/INST]", _C + "</s>", "", first="{{ bos_token }}"), "</s>"),
    "mistral v3": (_by_role("[INST]" + _C + "[/INST]", " {{ m.content | trim }}</s>", "", first="{{ bos_token }}"), "</s>"),
    "gemma": (
        _turns("<turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}", "</turn>\n",
               "<turn>model\n", first="{{ bos_token }}"), "<|endoftext|>"),
    "phi 3": (_turns("<|{{ m.role }}|>\n" + _C, "<|end|>\n", "<|assistant|>\n", last="{{ eos_token }}"), "<|endoftext|>"),
    "phi 4": (_turns("<|im_start|>{{ m.role }}<|message|>" + _C, "<|im_end|>", "<|im_start|>assistant<|message|>"),
              "<|endoftext|>"),
    "zephyr": (_turns("<|{{ m.role }}|>\n" + _C, "</s>\n", "<|assistant|>\n"), "</s>"),
    "vicuna": (_by_role("USER: " + _C + " ", "ASSISTANT: " + _C + "</s>", "ASSISTANT:", first="{{ bos_token }}A chat. "), "</s>"),
    "vicuna (space)": (_by_role("USER: " + _C + " ", "ASSISTANT: " + _C + "</s>", "ASSISTANT: "), "</s>"),
    "alpaca": (_by_role("### Instruction:\n\n" + _C + "\n\n", "### Response:\n\n" + _C + "</s>", "### Response:\n\n"), "</s>"),
    "deepseek": (_by_role("<|user|>" + _C, "<|assistant|>{{ m.content.split('</think>')[-1] }}</s>", "<|assistant|>",
                          first="{{ bos_token }}"), "</s>"),
    "glm 4": (_turns("<|{{ m.role }}|>\n" + _C, "", "<|assistant|>\n", first="<s>"), "<|endoftext|>"),
    "olmo": (_by_role("<|user|>\n" + _C + "\n", "<|assistant|>\n" + _C + "</s>\n", "<|assistant|>\n", first="<s>"), "</s>"),
    "granite": (_turns("<|head|>{{ m.role }}<|/head|>" + _C, "<|endoftext|>\n", "<|head|>assistant<|/head|>"), "<|endoftext|>"),
    "command-r": (_turns("<turn><|{{ m.role }}|>" + _C, "</turn>", "<turn><|assistant|>", first="{{ bos_token }}"), "</turn>"),
    "falcon": (_by_role("User: " + _C + "\n", "Falcon: " + _C + "<|endoftext|>\n", "Falcon:"), "<|endoftext|>"),
    "harmony": (
        _by_role("<|im_start|>user<|message|>" + _C + "<|end|>",
                 "<|im_start|>assistant<|channel|>final<|message|>" + _C +
                 "{% if loop.last %}<|return|>{% else %}<|end|>{% endif %}", "<|im_start|>assistant"), "<|return|>"),
    "no end token": (_turns("[{{ m.role }}]" + _C, "\n", "[assistant]"), "</s>"),
}  # fmt: skip
