"""`raylign feedback browse` on a large build: seconds until it listens, seconds a page, peak memory.

    python benchmarks/feedback_browse.py [--events 100000] [--longer 2.5]

The log is that of feedback_scale.py; the browser is a process of its own, asked over HTTP like any.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from feedback_scale import write_log

_ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+/[\w-]+/")


def pages(address: str) -> dict[str, str]:
    """What is asked for, by what it is; one event and one row are those of the first page."""
    first = urllib.request.urlopen(address, timeout=120).read().decode()
    rows = urllib.request.urlopen(f"{address}rows", timeout=120).read().decode()
    event = re.search(r'href="(event\?[^"]+)"', first)
    row = re.search(r'href="(row\?[^"]+)"', rows)
    assert event and row, "the lists link to what they list"
    return {
        "events": "", "events, page 1,000": "?page=1000", "events by signal": "?signal=thumb_up", "events by text":
        "?text=someone", "rows": "rows", "rows by rule": "rows?rule=choice", "rows by text": "rows?text=someone",
        "event": event[1].replace("&amp;", "&"), "row": row[1].replace("&amp;", "&"),
    }  # fmt: skip


def peak_gb(pid: int) -> float:
    """The highest resident memory so far."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024 / 1e9  # type: ignore[index]


def main() -> None:
    """Build, browse, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--longer", type=float, default=2.5)
    given = parser.parse_args()
    raylign = [sys.executable, "-m", "raylign", "feedback"]
    with tempfile.TemporaryDirectory() as folder:
        log, out = Path(folder) / "log.jsonl", Path(folder) / "built"
        write_log(log, given.events, given.longer)
        subprocess.run([*raylign, "build", str(log), "--out", str(out)], check=True, capture_output=True, timeout=600)
        begun = time.perf_counter()
        served = subprocess.Popen([*raylign, "browse", str(out)], stdout=subprocess.PIPE, text=True)
        try:
            address = None
            while address is None and served.poll() is None:
                assert served.stdout is not None
                address = _ADDRESS.search(served.stdout.readline())
            assert address, "it ended before it listened"
            took = time.perf_counter() - begun
            sys.stdout.write(f"{given.events:,} events: listens after {took:.1f} s, {peak_gb(served.pid):.2f} GB\n")
            for name, path in pages(address[0]).items():
                seconds = []
                for _ in range(3):
                    begun = time.perf_counter()
                    body = urllib.request.urlopen(address[0] + path, timeout=120).read()
                    seconds.append(time.perf_counter() - begun)
                sys.stdout.write(f"{name:24} {min(seconds):.3f} s, {len(body) / 1000:.0f} KB\n")
            sys.stdout.write(f"peak {peak_gb(served.pid):.2f} GB\n")
        finally:
            served.terminate()
            served.wait(timeout=30)


if __name__ == "__main__":
    main()
