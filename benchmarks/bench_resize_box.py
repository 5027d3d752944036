"""Does Pillow's `resize(box=…)` of the crop alone give the pixels of resize-then-crop?

python -m benchmarks.bench_resize_box
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from benchmarks.measure import write_markdown
from sktransfer import Preprocessing

N_IMAGES, SIDE, CROP = 300, 256, 224


def main() -> None:
    rng = np.random.default_rng(0)
    preprocessing = Preprocessing((CROP, CROP), SIDE)
    differences = []
    for height, width in rng.integers(60, 900, (N_IMAGES, 2)):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        short = min(image.size)
        new_width, new_height = int(SIDE * image.width / short), int(SIDE * image.height / short)
        left, top = round((new_width - CROP) / 2), round((new_height - CROP) / 2)
        x, y = image.width / new_width, image.height / new_height
        box = (left * x, top * y, (left + CROP) * x, (top + CROP) * y)
        boxed = np.asarray(image.resize((CROP, CROP), Image.Resampling.BILINEAR, box=box)).astype(int)
        differences.append(np.abs(boxed - preprocessing.resize_and_crop(image)).max())
    write_markdown(
        "resize_box",
        "Does `resize(box=…)` of the crop alone give the pixels of resize-then-crop?",
        "python -m benchmarks.bench_resize_box",
        ["random images", "with at least one other pixel", "largest difference, levels of 255"],
        [[N_IMAGES, int(np.count_nonzero(differences)), max(differences)]],
        f"Shorter side to {SIDE}, centre crop {CROP}, bilinear, uniform random pixels of 60–900 pixels a side.",
    )


if __name__ == "__main__":
    main()
