"""vLLM's own parsers behind `environment.tool_parser`: they read what ours reads, and are refused in words."""

from __future__ import annotations

import pytest
from raylign.rollout.environments.interfaces import EnvironmentRefused, ToolCall
from raylign.rollout.playing import call_reader
from raylign.rollout.tool_calls import Reply, TaggedCalls

from tests.unit.data.chat_families import FAMILIES, tokenizer

TOOLS = ({"type": "function", "function": {"name": "add", "description": "d", "parameters": {}, "return": {}}},)
CALL = '<tool_call>\n{"name": "add", "arguments": {"n": 2}}\n</tool_call>'


@pytest.mark.parametrize("text", [f"Hm. {CALL}", f"{CALL}\n{CALL}", "just words", '<tool_call>{"name": "add", "argu'])
def test_vllms_hermes_parser_reads_the_calls_that_ours_reads(text: str):
    read = call_reader("hermes", tokenizer("gpt2", *FAMILIES["chatml"]), TOOLS).read(text)
    own = TaggedCalls().read(text)

    assert read.calls == tuple(call for call in own.calls if isinstance(call, ToolCall))
    assert (read == Reply(text, ())) == ("</tool_call>" not in text), "what it cannot read is the model's own words"


def test_another_form_is_read_by_its_parser_and_an_unknown_or_unfit_one_is_refused():
    made = tokenizer("gpt2", *FAMILIES["chatml"])
    assert call_reader("pythonic", made, TOOLS).read("[add(n=2)]").calls == (ToolCall("add", {"n": 2}),)
    with pytest.raises(EnvironmentRefused, match=r"vLLM has no such parser; it has .*hermes"):
        call_reader("hermess", made, TOOLS)
    with pytest.raises(EnvironmentRefused, match="refuses this model's tokenizer"):
        call_reader("mistral", made, TOOLS)
