"""Proof that a rank and the driver mean the same folder: a random token that the rank reads through its own path.

A folder that two machines know by the same path need not be one: each has its own disk. A rank would write its
checkpoints there without an error, and nobody would find them.
"""

from __future__ import annotations

import os
import secrets
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path

from raylign.conf.errors import ClusterError

_TOKEN_FILE = ".shared"


@dataclass(frozen=True, slots=True)
class SharedFolder:
    """A folder of the driver's, as it travels to the ranks."""

    path: str  # absolute
    token: str

    @classmethod
    def mark(cls, folder: Path) -> SharedFolder:
        """On the driver: leave a token of this start in `folder`."""
        token = secrets.token_hex(16)
        (folder / _TOKEN_FILE).write_text(token, encoding="ascii")
        return cls(str(folder.absolute()), token)

    def prove(self, role: str, rank: int) -> None:
        """On a rank: the token is here, and the rank may write. Raises ClusterError naming node and folder."""
        here = f"{role} rank {rank} on {socket.gethostname()}"
        try:
            found = (Path(self.path) / _TOKEN_FILE).read_text(encoding="ascii")
        except OSError as error:
            raise ClusterError(
                f"run_root: {here} cannot read {self.path} ({error.strerror}); every node needs the same run_root: a "
                "folder on a file system that all of them mount, given by its absolute path"
            ) from error
        if found != self.token:
            raise ClusterError(
                f"run_root: {here} finds another folder than the driver's at {self.path}; give a run_root= on a file "
                "system that every node mounts"
            )
        try:
            with tempfile.TemporaryFile(dir=self.path) as file:
                file.write(b"x")
                os.fsync(file.fileno())
        except OSError as error:
            raise ClusterError(
                f"run_root: {here} cannot write into {self.path} ({error.strerror}); let the user of `ray start` "
                "write there, or choose another run_root="
            ) from error
