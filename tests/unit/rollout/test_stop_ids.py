"""The engine stops at exactly the tokens that end an answer in training, wherever they are written down."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from raylign.app.launch.rows import OnlineRows
from raylign.data.encoder import Encoder
from raylign.data.prompts import PromptSet
from raylign.data.quarantine import LoadReport
from raylign.data.types import SampleKey, SamplingParams
from transformers import GenerationConfig

from tests.unit.data.chat_families import FAMILIES, tokenizer

vllm_engine = pytest.importorskip("raylign.rollout.vllm_engine")

NO_ROWS = PromptSet((), "", LoadReport("", 0, 0, 0, 0, 0))


@pytest.mark.parametrize("family", ["chatml", "llama 3", "phi 3", "gemma", "glm 4", "harmony", "no end token"])
@pytest.mark.parametrize("listed", [(), ("<|endoftext|>",), ("<|endoftext|>", "<|user|>", "<|end|>")])
@pytest.mark.parametrize("where", ["generation_config.json", "config.json"])
def test_the_engine_stops_where_training_ends_answers(
    family: str, listed: tuple[str, ...], where: str, tmp_path: Path
) -> None:
    made = tokenizer("gpt2", *FAMILIES[family])
    ids = [made.convert_tokens_to_ids(token) for token in listed]
    if where == "generation_config.json":  # which is read in place of what config.json says
        (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 3}))
    (tmp_path / where).write_text(json.dumps({"eos_token_id": ids[0] if len(ids) == 1 else ids} if ids else {}))
    made.name_or_path = str(tmp_path)
    encoder = Encoder(made)

    sampling = SamplingParams(1.0, 8, seed=1, stop_token_ids=OnlineRows(NO_ROWS, None, made, "", ()).stop_token_ids)
    params = vllm_engine._vllm_sampling(sampling, SampleKey(0, "p", 0), 0)
    read = GenerationConfig(eos_token_id=ids or None).to_diff_dict()  # as vLLM's input processor does for each request
    params.update_from_generation_config(read, made.eos_token_id)

    stops = {params.eos_token_id, *params.stop_token_ids}
    assert stops == {i for i in range(len(made)) if encoder.is_end(i)} and {made.eos_token_id, *ids} <= stops
    if family != "harmony":  # whose prompt opens less than an answer has
        assert encoder.encode_answer("a", "b").token_ids[-1] in stops
