"""What does a table of a million rows with 50,000 distinct photos cost?

    python -m benchmarks.bench_table

The photos are crops of scikit-learn's two sample images as JPEG files; each has two names (one a link), and the rows
of the frame name them at random. `PretrainedFeatureExtractor().fit_transform` embeds the column in a process of its
own, with a new cache, again in another process with the full cache, and into a file that is mapped into memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from benchmarks.measure import write_markdown

ROWS, PHOTOS, SIDE = 1_000_000, 50_000, 64

CODE = """
import json, sys, threading, time
import numpy as np
import pandas as pd
import sktransfer
from sktransfer.session import forward_passes

folder, cache, rows, photos, form = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
peak, done = 0, threading.Event()

def watch():
    global peak
    while not done.wait(0.05):
        with open("/proc/self/status") as file:
            values = dict(line.split(":", 1) for line in file)
        peak = max(peak, int(values["RssAnon"].split()[0]) * 1024)

watcher = threading.Thread(target=watch)
watcher.start()
numbers = np.random.default_rng(0).integers(2 * photos, size=rows)
names = [f"{folder}/{number:06}.jpg" for number in range(2 * photos)]
frame = pd.DataFrame({"photo": [names[number] for number in numbers], "price": numbers.astype(float)})
started = time.perf_counter()
if form == "array":
    found = sktransfer.PretrainedFeatureExtractor(device="cpu", cache_dir=cache).fit_transform(frame[["photo"]])
else:
    found = sktransfer.extract(frame[["photo"]], device="cpu", cache_dir=cache, out=f"{folder}/out.npy")
seconds = time.perf_counter() - started
done.set()
watcher.join()
step = rows // 1000
same = all((found[i] == found[np.flatnonzero(numbers == numbers[i])]).all() for i in range(0, rows, step * 50))
print(json.dumps({"peak": peak, "seconds": seconds, "passes": forward_passes(), "bytes": found.nbytes, "same": same}))
"""


def make_photos(folder: Path, n: int) -> None:
    """`n` distinct small photos, and a link to each."""
    generator = np.random.default_rng(0)
    images = [Image.fromarray(image) for image in load_sample_images().images]
    for number in range(n):
        image = images[number % 2]
        left, top = (int(generator.integers(size - SIDE)) for size in image.size)
        crop = np.asarray(image.crop((left, top, left + SIDE, top + SIDE))).copy()
        crop.reshape(-1)[:3] = number % 256, number // 256 % 256, number // 65536  # distinct, whatever the place
        name = folder / f"{number:06}.jpg"
        Image.fromarray(crop).save(name, quality=95)
        (folder / f"{n + number:06}.jpg").symlink_to(name)


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory() as cache:
        make_photos(Path(name), PHOTOS)
        distinct = len({path.read_bytes() for path in Path(name).glob("*.jpg")})
        for title, form in (("new cache", "array"), ("full cache", "array"), ("full cache, into a file", "file")):
            command = [sys.executable, "-c", CODE, name, cache, str(ROWS), str(PHOTOS), form]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            if not found["same"]:
                raise SystemExit("Rows of one photo differ.")
            ratio = f"{found['peak'] / found['bytes']:.2f}"
            rows.append([title, found["passes"], ratio, f"{found['peak'] / 1e6:.0f}", f"{found['seconds']:.0f}"])
    write_markdown(
        "table",
        "What does a table of a million rows with 50,000 distinct photos cost?",
        "python -m benchmarks.bench_table",
        ["process", "forward passes", "peak memory ÷ output", "peak, MB", "seconds"],
        rows,
        f"{ROWS:,} rows, {2 * PHOTOS:,} names of {distinct:,} distinct contents, 256 features of the embedded "
        f"backbone: an output of {ROWS * 1024 / 1e6:.0f} MB. Peak of the process's own memory (RssAnon, read every "
        "50 ms), the frame and its texts included; the output in a file is not part of it.",
    )


if __name__ == "__main__":
    main()
