"""Models by their name on a hub: downloaded once, held to one revision, safetensors only, no code.

The hub is that of HF_ENDPOINT, the files lie in the cache of HF_HOME; a private model is read with the token that
`hf auth login` or HF_TOKEN gives.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from raylign.conf.errors import ConfigError

FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "LICENSE*", "README.md")
"""What is downloaded: no pickled weights and no Python files."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB = "https://huggingface.co"


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model on this machine."""

    name: str
    revision: str  # the commit's hash
    folder: str

    @property
    def pin(self) -> str:
        """Name and revision, as a setting can name them."""
        return f"{self.name}@{self.revision}"


def hub_model(key: str, named: str, *, pinned: str = "", fetch: Callable[[str], None] | None) -> HubModel:
    """The model that `named` names: `owner/name`, or `owner/name@revision`.

    `pinned`: what an earlier start of the run used, `owner/name@commit`; it wins when it is the same name without a
    revision. `fetch`: gets one sentence before a download; None: nothing is downloaded. Raises ConfigError in one
    sentence, for `key`: not there, no such model or revision, no access, no network, no safetensors.
    """
    name, _, revision = named.partition("@")
    if not revision and pinned.startswith(f"{name}@"):
        revision = pinned.partition("@")[2]
    found = _cached(name, revision or "main")
    if found is None and fetch is None:
        raise ConfigError(
            f"{key}={named}: there is no such folder here, and the hub's model of this name is not on this machine "
            "yet; correct the path if a folder is meant, else `raylign train` downloads it, or "
            f"{_command(name, revision)}."
        )
    if found is None:
        assert fetch is not None
        found = _download(key, named, name, revision, fetch)
    if not list(found.glob("*.safetensors")):
        raise ConfigError(
            f"{key}={named}: revision {found.name} has no safetensors weights, and pickled ones are not loaded; give a "
            "revision or a folder that has them."
        )
    return HubModel(name, found.name, str(found))


def _cached(name: str, revision: str) -> Path | None:
    """The snapshot in the cache when all of it is there, without a network."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(FILES), local_files_only=True))
    except Exception:  # not there, or in part
        return None
    return folder if _complete(folder) else None


def _complete(folder: Path) -> bool:
    """An interrupted download leaves a snapshot without its last files."""
    index = folder / "model.safetensors.index.json"
    if not (folder / "config.json").is_file():
        return False
    if not index.is_file():
        return any(folder.glob("*.safetensors"))
    shards = set(re.findall(r"[\w.-]+\.safetensors", index.read_text(encoding="utf-8")))
    return all((folder / shard).is_file() for shard in shards)


def _download(key: str, named: str, name: str, revision: str, fetch: Callable[[str], None]) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    where = os.environ.get("HF_ENDPOINT", _HUB).rstrip("/")
    try:
        info = HfApi().model_info(name, revision=revision or None, files_metadata=True, timeout=30)
        files = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        if not any(file.endswith(".safetensors") for file in files):
            raise ConfigError(
                f"{key}={named}: the model at {where} has no safetensors weights, and pickled ones are not loaded; "
                "name another revision, or a folder with the weights saved as safetensors."
            )
        size = sum(size for file, size in files.items() if file.endswith(".safetensors"))
        fetch(
            f"{key}={named}: no such folder here; downloading revision {info.sha} from {where} "
            f"({size / 1e9:.2f} GB of weights), once"
        )
        # By the name of the revision, which the cache keeps: the next start finds it there without asking.
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(FILES)))
    except GatedRepoError as error:
        raise ConfigError(
            f"{key}={named}: it is gated; accept its terms at {where}/{name}, then run `hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise ConfigError(
            f"{key}={named}: {where}/{name} has no revision {revision!r}; name a branch, tag or commit."
        ) from error
    except RepositoryNotFoundError as error:
        raise ConfigError(
            f"{key}={named}: there is no such folder here, and {where} has no model of this name (or it is private: "
            "`hf auth login`)."
        ) from error
    except ConfigError:
        raise
    except Exception as error:  # the client's network library has its own classes
        raise ConfigError(
            f"{key}={named}: there is no such folder here, no copy of a hub's model of this name, and {where} cannot "
            f"be reached ({_why(error)}); correct the path if a folder is meant, else run "
            f"{_command(name, revision)} where there is a network and copy it here (HF_HOME)."
        ) from error


def _why(error: Exception) -> str:
    """The client's class of errors; its switch against the network has one of its own."""
    offline = type(error).__name__ == "OfflineModeIsEnabled"
    return "HF_HUB_OFFLINE is set" if offline else type(error).__name__


def _command(name: str, revision: str) -> str:
    given = f" --revision {revision}" if revision else ""
    return f"`hf download {name}{given} --exclude '*.bin'`"
