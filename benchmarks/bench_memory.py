"""Does memory grow with the number of images?

    SKTRANSFER_ASSETS=… python -m benchmarks.bench_memory

`extract` writes into a file mapped into memory (out=) from 1,000 and from 100,000 references: distinct links to the 966
clothing photos, each in a process of its own, with a new cache and without one. What is reported is the peak of the
memory that is the process's own (its resident set without mapped files), so without the output.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import clothing_photos, write_markdown

SIZES = (1_000, 100_000)


CODE = """
import os, sys, threading
import sktransfer

folder, n, cache = sys.argv[1], int(sys.argv[2]), sys.argv[3] or None
peak, done = 0, threading.Event()

def watch():
    global peak
    while not done.wait(0.02):
        with open("/proc/self/status") as file:
            values = dict(line.split(":", 1) for line in file)
        peak = max(peak, int(values["RssAnon"].split()[0]))

watcher = threading.Thread(target=watch)
watcher.start()
paths = [os.path.join(folder, f"{index:06}.jpg") for index in range(n)]
sktransfer.extract(paths, device="cpu", cache_dir=cache, out=os.path.join(folder, "out.npy"))
done.set()
watcher.join()
print(peak)
"""


def measure(folder: Path, n: int, cache: str) -> float:
    """Peak MB of a process that embeds n references."""
    command = [sys.executable, "-c", CODE, str(folder), str(n), cache]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / 1024


def main() -> None:
    photos, rows = clothing_photos(), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for index in range(max(SIZES)):
            (folder / f"{index:06}.jpg").symlink_to(photos[index % len(photos)])
        for title in ("with a new cache", "without a cache"):
            peaks = []
            for n in SIZES:
                with tempfile.TemporaryDirectory() as cache:
                    peaks.append(measure(folder, n, os.path.join(cache, "c") if title.startswith("with a") else ""))
            rows.append([title, *(f"{peak:.0f}" for peak in peaks), f"{peaks[1] - peaks[0]:.0f}"])
    write_markdown(
        "memory",
        "Does memory grow with the number of images?",
        "python -m benchmarks.bench_memory",
        ["extract", *(f"{n:,} references, MB" for n in SIZES), "difference, MB"],
        rows,
        "Peak of the process's own memory (RssAnon, read every 20 ms), embedded backbone, output in a mapped file. The "
        "references are distinct links to 966 photos, so every one of them is read and hashed, and 966 are embedded.",
    )


if __name__ == "__main__":
    main()
