"""How does a pipeline predict where neither sktransfer nor scikit-learn is installed?

Patches of two photos, temple and flower. The pipeline is exported to one ONNX file and run as production would: pixels
by Pillow, predictions by onnxruntime, and what to do with a photo read from the file itself. Labels and probabilities
are the pipeline's own.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image
from sklearn.datasets import load_sample_images
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sktransfer import PretrainedFeatureExtractor, export_onnx


def prepare(photo, preprocessing):
    """Pixels of the network's size, by Pillow alone: the shorter side is resized, the centre cut out."""
    image = Image.fromarray(photo)
    shorter, (height, width) = preprocessing["resize"], preprocessing["crop"]
    factor = shorter / min(image.size)
    size = [shorter if side == min(image.size) else int(side * factor) for side in image.size]
    image = image.resize(size, Image.Resampling[preprocessing["resample"].upper()])
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    return np.asarray(image.crop((left, top, left + width, top + height)))


def main():
    china, flower = load_sample_images().images
    corners = [(x, y) for y in range(0, 300, 60) for x in range(0, 500, 60)]
    photos = [photo[y : y + 120, x : x + 140] for photo in (china, flower) for x, y in corners]
    labels = np.repeat(["temple", "flower"], len(corners))
    train = np.arange(len(photos)) % 2 == 0
    pipeline = make_pipeline(PretrainedFeatureExtractor(), StandardScaler(), LogisticRegression())
    pipeline.fit([photos[i] for i in np.flatnonzero(train)], labels[train])
    others = [photos[i] for i in np.flatnonzero(~train)]

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        report = export_onnx(pipeline, file, check=others)
        print(f"{file.stat().st_size / 1e6:.1f} MB; largest difference {report.max_difference:.0e}, "
              f"labels alike: {report.label_agreement:.0%}")  # fmt: skip

        session = onnxruntime.InferenceSession(file)
        stated = json.loads(session.get_modelmeta().custom_metadata_map["sktransfer"])
        pixels = np.stack([prepare(photo, stated["inputs"]["image"]["preprocessing"]) for photo in others])
        label, probabilities = session.run(["label", "probabilities"], {"image": pixels})
    print(
        f"{len(label)} patches, {np.mean(label == labels[~train]):.0%} right, backbone {stated['backbones'][0]['name']}"
    )
    print(f"the first: {label[0]}, {dict(zip(stated['classes'], map(float, probabilities[0].round(3)), strict=True))}")
    return np.mean(label == labels[~train]), np.abs(probabilities - pipeline.predict_proba(others)).max()


if __name__ == "__main__":
    main()
