"""A machine's sandbox, for the tests that run code in it."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
from raylign.reward.sandbox.box import Isolation
from raylign.reward.sandbox.isolation import NoIsolationError, find_isolation


@pytest.fixture(scope="session")
def sandbox() -> Isolation:
    """Skipped, aloud, only where the kernel gives this user no namespaces; what else is missing is a failure."""
    try:
        return find_isolation()
    except NoIsolationError as error:
        if namespaces():
            pytest.fail(f"no sandbox can be made on this machine: {error}")
        pytest.skip(f"this user may not make namespaces here, so no code is run: {error}")


def namespaces() -> bool:
    """Whether util-linux's own program makes those that a sandbox needs, mounts something and sees a new /proc."""
    program = shutil.which("unshare")
    if program is None:
        return True
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    mounts = "mount -t tmpfs none /tmp && mount -t proc none /proc"
    command = [program, *user, "--pid", "--mount", "--net", "--ipc", "--uts", "--fork", "sh", "-c", mounts]
    return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0
