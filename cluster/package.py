"""The `raylign` package as one folder, which is what Ray can send to the nodes of a cluster."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path


@cache
def package_folder() -> Path:
    """A folder named `raylign` that holds every module of this process's `raylign`.

    An installed wheel is such a folder already. In an editable installation the parts lie beside each other at the
    top of the checkout, so they are copied together, once a process (under 3 MB).
    """
    root = find_spec("raylign")
    assert root is not None and root.origin is not None
    installed = Path(root.origin).parent
    if (installed / "cluster").is_dir():
        return installed
    folder = Path(tempfile.mkdtemp(prefix="raylign-package-")) / "raylign"
    shutil.copytree(installed, folder, ignore=_CACHES)
    for part in installed.parent.iterdir():
        if _is_part(part):
            shutil.copytree(part, folder / part.name, ignore=_CACHES)
    atexit.register(shutil.rmtree, folder.parent, ignore_errors=True)
    return folder


def _is_part(folder: Path) -> bool:
    """True for a folder that this process imports as `raylign.<its name>`."""
    if not (folder / "__init__.py").is_file():
        return False
    spec = find_spec(f"raylign.{folder.name}")
    return (
        spec is not None
        and spec.submodule_search_locations is not None
        and str(folder) in spec.submodule_search_locations
    )


_CACHES = shutil.ignore_patterns("__pycache__")
