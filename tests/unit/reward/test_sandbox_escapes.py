"""What hostile code tries, in the sandbox and (where that is safe) outside of it, where it must succeed.

Each attempt prints ESCAPED when it got what it wanted. Where this machine can isolate nothing, the product
refuses with what is missing, and these tests are skipped with the same words or fail (tests/unit/reward/conftest.py).
Keyring and io_uring succeeded outside when tried by hand; containers often forbid them.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from raylign.reward.sandbox.box import Box, Isolation
from raylign.reward.sandbox.limits import Limits
from raylign.reward.sandbox.pool import BoxPool
from raylign.reward.sandbox.run import Ran, Verdict, run_program

LIMITS = Limits(timeout_s=60, cpu_s=30)
SECRET = "a-secret-of-the-run"
MARK = "raylign_sandbox_daemon"
ROOT = os.geteuid() == 0

PRELUDE = """
import ctypes, os, platform, resource, signal, socket, sys, time
libc = ctypes.CDLL(None, use_errno=True)
NUMBERS = {"x86_64": {"add_key": 248, "io_uring_setup": 425, "process_vm_readv": 310, "pidfd_open": 434},
           "aarch64": {"add_key": 217, "io_uring_setup": 425, "process_vm_readv": 270, "pidfd_open": 434}}
def system_call(name, *given):
    words = (NUMBERS[platform.machine()][name], *given)
    return libc.syscall(*(ctypes.c_long(word) if isinstance(word, int) else word for word in words))
def escaped(if_=True):
    if if_:
        print("ESCAPED", flush=True)
def many(start):
    for count in range(30):
        start()
    escaped()
"""


@dataclass(frozen=True)
class Attempt:
    """`outside`: whether it is safe to see it succeed without the sandbox, as who these tests run as."""

    code: str
    outside: bool = True


ATTEMPTS = {
    "fork bomb": Attempt("many(lambda: os.fork() or (time.sleep(0.5), os._exit(0)))"),
    "threads": Attempt(
        "import threading\nmany(lambda: threading.Thread(target=time.sleep, args=(0.5,), daemon=True).start())"
    ),
    "memory": Attempt("import mmap; mmap.mmap(-1, 600 << 20); escaped()"),
    "memory by file descriptor": Attempt("os.memfd_create('x'); escaped()"),
    "disk, many files": Attempt("many(lambda: open(f'f{time.monotonic_ns()}', 'wb').write(bytes(1 << 20)))"),
    "disk, one sparse file": Attempt("os.truncate(open('f', 'wb').name, 1 << 30); escaped()"),
    "network": Attempt("socket.create_connection(('127.0.0.1', PORT), 2); escaped()"),
    "abstract socket": Attempt("socket.socket(socket.AF_UNIX).connect(chr(0) + 'ADDRESS'); escaped()"),
    "socket in a folder": Attempt("socket.socket(socket.AF_UNIX).connect('FOLDER/socket'); escaped()"),
    "netlink": Attempt("socket.socket(socket.AF_NETLINK, socket.SOCK_RAW); escaped()"),
    "ptrace": Attempt("escaped(libc.ptrace(0, 0, 0, 0) == 0)"),
    "another process's memory": Attempt("escaped(system_call('process_vm_readv', os.getpid(), 0, 0, 0, 0, 0) == 0)"),
    "a handle of a process": Attempt("escaped(system_call('pidfd_open', os.getpid(), 0) >= 0)"),
    "the parent by /proc": Attempt("escaped(open(f'/proc/{os.getppid()}/stat').read())"),
    "the run folder": Attempt("escaped(open('FOLDER/secret').read() == 'SECRET')"),
    "the environment": Attempt("escaped(os.environ.get('RAYLIGN_SECRET') == 'SECRET')"),
    "a symbolic link": Attempt("os.symlink('FOLDER/secret', 'link'); escaped(open('link').read() == 'SECRET')"),
    "a hard link": Attempt("os.link('FOLDER/secret', 'FOLDER/hard'); escaped()"),
    "the home folder": Attempt("escaped(len(os.listdir(HOME)) > 1)"),
    "inherited descriptors": Attempt("""
for number in range(3, 4096):
    try:
        os.fstat(number); escaped()
    except OSError: pass"""),
    "processes of others": Attempt("""
def seen(pid):
    try:
        os.kill(pid, 0)
    except PermissionError: pass
    except ProcessLookupError: return False
    return True
escaped(sum(map(seen, PIDS)) > 2)"""),
    "becoming root": Attempt("os.setuid(0); escaped()", outside=ROOT),
    "mounting": Attempt("escaped(libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0)", outside=False),
    "namespaces inside": Attempt("escaped(libc.unshare(0x10000000) == 0 or libc.unshare(0x20000) == 0)"),
    "a user namespace by clone": Attempt("escaped(libc.syscall(56, 0x10000011, 0, 0, 0, 0) >= 0)", outside=False),
    "changing the root": Attempt("os.chroot('/tmp'); escaped()", outside=False),
    "a device node": Attempt("os.mknod('device', 0o60666, os.makedev(254, 0)); escaped()", outside=False),
    "raising limits": Attempt("""
try:
    resource.setrlimit(resource.RLIMIT_NPROC, (3000, 3000)); escaped()
except (OSError, ValueError): pass
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2); escaped()"""),
    "limits of the first process": Attempt("resource.prlimit(os.getppid(), resource.RLIMIT_CPU); escaped()"),
    "shared memory": Attempt("path = f'/dev/shm/raylign-{os.getpid()}'; open(path, 'w'); os.unlink(path); escaped()"),
    "the keyring": Attempt("escaped(system_call('add_key', b'user', b'raylign', b'x', 1, -1) >= 0)", outside=False),
    "io_uring": Attempt("escaped(system_call('io_uring_setup', 1, bytes(120)) >= 0)", outside=False),
    "the clock": Attempt("time.clock_settime(time.CLOCK_REALTIME, time.time()); escaped()", outside=False),
    "the interpreter's library": Attempt("open(os.__file__, 'a'); escaped()", outside=ROOT),
    "the root folder": Attempt("open('/raylign', 'w'); escaped()", outside=False),
}  # fmt: skip


@dataclass(frozen=True)
class World:
    """What there is to reach."""

    folder: Path
    port: int
    address: str

    def fill(self, attempt: Attempt) -> str:
        code = attempt.code.replace("FOLDER", str(self.folder)).replace("PORT", str(self.port))
        code = code.replace("ADDRESS", self.address).replace("SECRET", SECRET).replace("PIDS", str(psutil.pids()))
        return PRELUDE + code.replace("RAYLIGN_" + SECRET, "RAYLIGN_SECRET").replace("HOME", repr(str(Path.home())))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("run")
    (folder / "secret").write_text(SECRET)
    folder.chmod(0o755)
    address = f"raylign-{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as there:
        for name in ("\0" + address, str(folder / "socket")):
            listener = there if name[0] == "\0" else socket.socket(socket.AF_UNIX)
            listener.bind(name)
            listener.listen()
        yield World(folder, tcp.getsockname()[1], address)
        listener.close()


@pytest.fixture(scope="module")
def pool(sandbox: Isolation) -> Iterator[BoxPool]:
    boxes = BoxPool(sandbox, LIMITS, ready=4)
    yield boxes
    boxes.stop()


def ran(pool: BoxPool, code: str, limits: Limits = LIMITS, box: Box | None = None) -> Ran:
    used = box or pool.take()
    try:
        return run_program(used, code, b"", limits, time.monotonic() + limits.timeout_s)
    finally:
        if box is None:
            pool.done(used)


@pytest.mark.parametrize("name", ATTEMPTS)
def test_it_is_refused(name: str, world: World, pool: BoxPool) -> None:
    found = ran(pool, world.fill(ATTEMPTS[name]))
    assert b"ESCAPED" not in found.written
    assert found.verdict in (Verdict.passed, Verdict.error, Verdict.memory), found


@pytest.mark.parametrize("name", [name for name, attempt in ATTEMPTS.items() if attempt.outside])
def test_without_the_sandbox_it_succeeds(name: str, world: World, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", world.fill(ATTEMPTS[name])], cwd=tmp_path, env={"RAYLIGN_SECRET": SECRET},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, pass_fds=(reader,),
    )  # fmt: skip
    try:
        written, _ = process.communicate(timeout=60)
    finally:
        os.close(reader)
        os.close(writer)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert b"ESCAPED" in written, written.decode()


def test_signals_do_not_end_the_first_process(pool: BoxPool) -> None:
    """Nor does anything else that a program can do to it: a failed sandbox would be no score, an answer's way out."""
    code = (
        "import os\nassert os.getppid() == 1 and os.getpid() < 10, 'a namespace of its own'\n"
        "for whom in (1, -1):\n  for s in range(1, 65):\n    try: os.kill(whom, s)\n    except OSError: pass\n"
    )
    box = pool.take()
    assert ran(pool, code + "os.kill(0, 9)", box=box).verdict is Verdict.crash
    assert ran(pool, code, box=box).verdict is Verdict.passed
    assert ran(pool, "print('still there')", box=box).written == b"still there\n"
    pool.done(box)


def daemons() -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cmdline"]) if any(MARK in part for part in p.info["cmdline"] or [])]


DAEMON = f"""
import os, sys, time
ready, told = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execv(sys.executable, [sys.executable, "-S", "-c",
            f"import os, time; os.write({{told}}, b'x'); time.sleep(60)  # {MARK}"])
    os._exit(0)
os.set_inheritable(told, True)
""".replace("ready, told = os.pipe()", "ready, told = os.pipe(); os.set_inheritable(told, True)")


def test_a_daemon_does_not_outlive_the_program(pool: BoxPool, tmp_path: Path) -> None:
    code = DAEMON + "os.read(ready, 1)\n"
    subprocess.run([sys.executable, "-S", "-c", code], cwd=tmp_path, check=True, timeout=60)
    (left,) = daemons()
    left.kill()
    box = pool.take()
    assert ran(pool, code, box=box).verdict is Verdict.passed
    assert not daemons()
    pool.done(box)


def test_a_closed_box_leaves_no_process(pool: BoxPool) -> None:
    box = pool.take()
    goes_on = "try: print('x' * 10**6)\nexcept OSError: pass  # nobody reads any more\ntime.sleep(60)\n"
    code = DAEMON + "os.read(ready, 1)\n" + goes_on
    assert ran(pool, code, box=box).verdict is Verdict.output
    assert daemons(), "what is to be ended is there"
    box.close()
    until = time.monotonic() + 30
    while daemons() and time.monotonic() < until:
        time.sleep(0.02)
    assert not daemons()


def test_endless_output_ends_the_run(pool: BoxPool) -> None:
    found = ran(pool, "while True:\n    print('x' * 999)")
    assert found.verdict is Verdict.output
    assert len(found.written) == (LIMITS.output_kb << 10) + 1


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        ("import sys; sys.exit(0)", Verdict.passed),
        ("import sys; sys.exit(3)", Verdict.error),
        ("1 / 0", Verdict.error),
        ("x = (", Verdict.error),
        ("import os; os.abort()", Verdict.crash),
        ("import ctypes; ctypes.string_at(0)", Verdict.crash),
        ("x = [0] * 10**9", Verdict.memory),
        ("import os; os.close(1)", Verdict.passed),
    ],
)
def test_what_came_of_it_is_told_apart(code: str, verdict: Verdict, pool: BoxPool) -> None:
    assert ran(pool, code).verdict is verdict
