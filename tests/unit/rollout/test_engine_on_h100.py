"""What vLLM itself makes of every online GPU experiment, on a pretended H100, is what is recorded."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from raylign.conf import reference

SCRIPT = Path(__file__).with_name("pretended_h100.py")
GOLDEN = Path(__file__).parents[2] / "golden" / "engines_h100.json"
EXPERIMENTS = [n for n in reference.options("experiment") if re.match(r"(ppo|grpo)_.*_\d+x\d+$", n)]
LLAMA_8B = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "tie_word_embeddings": False, "max_position_embeddings": 8192,
}  # fmt: skip


@pytest.mark.thorough
def test_vllm_resolves_every_gpu_experiment_as_recorded(tmp_path: Path) -> None:
    """Refresh after a wanted change or another vLLM: RAYLIGN_REFRESH_GOLDEN=1; then read the diff."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(LLAMA_8B))
    (tmp_path / "rows.jsonl").write_text('{"prompt": "q"}\n')
    command = [sys.executable, str(SCRIPT), str(tmp_path), *EXPERIMENTS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESOLVED "))
    found = json.loads(line.removeprefix("RESOLVED "))
    if os.environ.get("RAYLIGN_REFRESH_GOLDEN"):
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    assert found == json.loads(GOLDEN.read_text())
    for name, engine in found.items():
        assert engine["compilation"]["cudagraph_mode"] == "FULL_AND_PIECEWISE", f"{name} would decode without graphs"
        assert engine["scheduler"]["max_num_batched_tokens"] == 8192
        assert engine["parallel"]["distributed_executor_backend"] in ("uni", "mp"), "Ray would be asked for cards again"
        assert engine["model"]["enable_sleep_mode"] == ("colocated" in name)
