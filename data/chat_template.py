"""`data.chat_template`: a template by file, by folder or by a family's name, for models without one.

The families' forms are public; these templates are written for this project. All but `hermes` know plain turns only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import TemplateSyntaxError
from raylign.conf.errors import DataError
from raylign.conf.nearest import nearest
from raylign.data.templates import parse_template

if TYPE_CHECKING:  # seconds to import, and rows are unpickled where no tokenizer is
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Family:
    """A template, and the tokens that it only works with."""

    template: str
    tokens: tuple[str, ...] = ()  # of one id each; with others it would write its marks as common text


def _by_turn(turn: str, opening: str) -> str:
    return "{% for m in messages %}" + turn + "{% endfor %}{% if add_generation_prompt %}" + opening + "{% endif %}"


_REFUSE_OTHERS = "{{ raise_exception('this template has turns of system, user and assistant only') }}"


def _by_role(system: str, user: str, assistant: str, opening: str) -> str:
    written = {"system": system, "user": user, "assistant": assistant}
    cases = "".join(
        f"{{% {'if' if i == 0 else 'elif'} m.role == '{role}' %}}{text}"
        for i, (role, text) in enumerate(written.items())
    )
    return _by_turn(f"{cases}{{% else %}}{_REFUSE_OTHERS}{{% endif %}}", opening)


_SAID = "{{ m.content }}"
_BEGIN = "{% if loop.first and bos_token is defined and bos_token %}{{ bos_token }}{% endif %}"
_END = "{{ eos_token }}"

_TOOL = (
    "{% set f = t.function if t.function is defined else t %}"
    '{"type": "function", "function": {"name": {{ f.name | tojson }}'
    "{% for key in ('description', 'parameters') %}{% if f[key] %}, \"{{ key }}\": {{ f[key] | tojson }}{% endif %}"
    "{% endfor %}}}\n"
)
_TOOLS = (  # a tool is written field by field: servers add fields that are null to what a client sends
    "{% if tools %}<|im_start|>system\n"
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}\n\n{% endif %}"
    "You may call these functions:\n<tools>\n{% for t in tools %}" + _TOOL + "{% endfor %}</tools>\n"
    'Write each call as <tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call><|im_end|>\n{% endif %}'
)
_CALLS = (
    "{% for c in m.tool_calls or [] %}{% set f = c.function if c.function is defined else c %}"
    "{% if m.content or not loop.first %}{{ '\n' }}{% endif %}<tool_call>\n{\"name\": {{ f.name | tojson }}, "
    '"arguments": {{ f.arguments | tojson }}}\n</tool_call>{% endfor %}'
)
_ANSWERED = "<tool_response>\n" + _SAID + "\n</tool_response>"

FAMILIES: dict[str, Family] = {
    "chatml": Family(
        _by_turn("<|im_start|>{{ m.role }}\n" + _SAID + "<|im_end|>\n", "<|im_start|>assistant\n"),
        ("<|im_start|>", "<|im_end|>"),
    ),
    "hermes": Family(
        _TOOLS
        + _by_turn(
            "{% if not (tools and loop.first and m.role == 'system') %}<|im_start|>{{ m.role }}\n"
            "{% if m.role == 'tool' %}" + _ANSWERED + "{% else %}" + _SAID + _CALLS + "{% endif %}"
            "<|im_end|>\n{% endif %}",
            "<|im_start|>assistant\n",
        ),
        ("<|im_start|>", "<|im_end|>"),
    ),
    "llama3": Family(
        _by_turn(
            _BEGIN + "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n" + _SAID + "<|eot_id|>",
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    "zephyr": Family(_by_turn("<|{{ m.role }}|>\n" + _SAID + _END + "\n", "<|assistant|>\n")),
    "vicuna": Family(
        _by_role(
            _BEGIN + _SAID + " ", _BEGIN + "USER: " + _SAID + " ", "ASSISTANT: " + _SAID + _END, "ASSISTANT:"
        )
    ),
    "alpaca": Family(
        _by_role(
            _BEGIN + _SAID + "\n\n",
            _BEGIN + "### Instruction:\n" + _SAID + "\n\n",
            "### Response:\n" + _SAID + _END + "\n\n",
            "### Response:\n",
        )
    ),
}  # fmt: skip


def read_chat_template(named: str) -> str:
    """The template's text, "" for "". `named`: a family, a file of Jinja, or a model folder whose template is taken.

    Raises DataError naming the setting.
    """
    if not named or named in FAMILIES:
        return FAMILIES[named].template if named else ""
    path, setting = Path(named).expanduser(), f"data.chat_template={named}"
    if path.is_dir():
        text = _of_folder(path, setting)
    elif path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{setting}: the file cannot be read ({error}).") from error
    else:
        guess = nearest(named, tuple(FAMILIES))
        hint = f"; did you mean {guess}?" if guess else "."
        raise DataError(
            f"{setting}: there is no such file, and no family of this name; known: {', '.join(FAMILIES)}{hint}"
        )
    if not text.strip():
        raise DataError(f"{setting}: the file is empty.")
    try:
        parse_template(text)
    except TemplateSyntaxError as error:
        raise DataError(f"{setting}: line {error.lineno} is not valid Jinja ({error.message}).") from error
    return text


def template_problems(named: str, tokenizer: PreTrainedTokenizerBase, folder: str) -> list[str]:
    """Why a family cannot be used with this tokenizer, as sentences."""
    family = FAMILIES.get(named)
    missing = [token for token in family.tokens if token not in tokenizer.get_vocab()] if family else []
    if not missing:
        return []
    fitting = [name for name, other in FAMILIES.items() if all(t in tokenizer.get_vocab() for t in other.tokens)]
    return [
        f"data.chat_template={named}: the tokenizer of policy.model={folder} has no token {', '.join(missing)}, so an "
        f"answer would end in common text; set one of {', '.join(fitting)}, or a file of your own."
    ]


def no_template(what: str) -> str:
    """The sentence's end for turns that a model without a template cannot be given."""
    return (
        f"{what} and the model's tokenizer has none; set data.chat_template to a file or to one of "
        f"{', '.join(FAMILIES)}, or use a chat model"
    )


def _of_folder(folder: Path, setting: str) -> str:
    from raylign.data.tokenize import load_tokenizer

    found = load_tokenizer(str(folder)).chat_template
    text = found.get("default") if isinstance(found, dict) else found
    if not isinstance(text, str):
        raise DataError(f"{setting}: the folder's tokenizer has no chat template.")
    return text
