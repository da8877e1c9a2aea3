"""`raylign serve`: vLLM's OpenAI-compatible server on an export."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from raylign.conf.errors import UserError
from raylign.conf.model_folder import is_run, model_folder

_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # read by the CPU build only, as is the next; other roles may use the cores
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
}


def causal_export(model: str, run_root: Path) -> Path:
    """The folder of the language model that `model` names: such a folder, or a run's best export, else its last.

    Raises UserError when there is none, or when it is a reward model, which has no answers to give.
    """
    from raylign.trainer.models.loading import read_head

    folder = named_export(model, run_root)
    if read_head(folder) != "causal":
        raise UserError(f"{folder} is a reward model, which writes no answers; name a language model's export.")
    return folder


def named_export(model: str, run_root: Path) -> Path:
    """The folder of any model that `model` names: such a folder, or a run's best export, else its last.

    Raises UserError when there is none.
    """
    for folder in (Path(model).expanduser(), run_root.expanduser() / model):
        if not (folder / "config.json").is_file() and not is_run(folder):
            continue
        try:
            return Path(model_folder(str(folder)).path)
        except ValueError as error:
            raise UserError(f"{folder} {error}.") from error
    raise UserError(f"{model}: there is neither a run nor an exported model, at that path or in {run_root}/.")


def serve_command(model: Path, host: str, port: int, extra: Sequence[str]) -> list[str]:
    """The server by its module: `vllm serve` needs a distribution named vllm, and the CPU build is named vllm-cpu."""
    server = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    return [*server, "--model", str(model), "--host", host, "--port", str(port), *extra]


def serve(model: Path, host: str, port: int, extra: Sequence[str]) -> None:
    """Become the server: this process's signals and exit code are vLLM's."""
    if find_spec("vllm") is None:
        raise UserError("vLLM is not installed here; `make setup` installs it, or `pip install vllm` on a GPU machine.")
    sys.stderr.write(f"serving {model} at http://{host}:{port}/v1 (Ctrl-C ends it)\n")
    sys.stderr.flush()
    command = serve_command(model, host, port, extra)
    os.execve(command[0], command, {**_ENVIRONMENT, **os.environ})
