"""Small trees of images, and the folders of real ones."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.config.protocol import DatasetSettings
from bench.data.dataset import dataset_of


@pytest.fixture
def draw():
    """Write an image of noise, and return what Pillow reads from it: uint8, [channels, height, width]."""

    def draw(path, size=(6, 6), mode="RGB"):
        """`size`: (width, height)."""
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(len(str(path)) * 1000 + sum(map(ord, path.name)))
        shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
        image = Image.fromarray(noise.integers(0, 256, shape, np.uint8))
        image.convert(mode).save(path, format="JPEG" if path.suffix.lower() in {".jpg", ".jpeg"} else "PNG")
        with Image.open(path) as written:
            pixels = np.asarray(written.convert("RGB" if mode == "RGB" else "L"))
        return pixels.reshape(size[1], size[0], -1).transpose(2, 0, 1)

    return draw


@pytest.fixture
def pets(tmp_path, draw):
    """The root of an image folder `pets`: 2 classes, 5 training and 2 test images of each, 6x6 pixels."""
    for part, count in (("train", 5), ("test", 2)):
        for name in ("cat", "dog"):
            for number in range(count):
                draw(tmp_path / "pets" / part / name / f"{number}.png")
    return tmp_path


@pytest.fixture
def own():
    """Return a dataset of own files: `own("image_folder", path="pets", shape=(3, 6, 6))`."""

    def own(name="image_folder", path="pets", shape=(3, 6, 6), classes=2, test=None, **settings):
        files = {"path": path, "shape": shape, "classes": classes, "test": test}
        return dataset_of(DatasetSettings.model_validate({"name": name, "files": files, "validation": 2, **settings}))

    return own


@pytest.fixture
def real(tmp_path):
    """Link a folder of real images into an empty root, under a name of choice, and return that root."""

    def real(folder, name=None):
        place = Path(os.environ.get("BENCH_DATA", "nowhere")) / folder
        if not place.is_dir():
            pytest.skip(f"no {folder} below BENCH_DATA")
        root = tmp_path / "root"
        root.mkdir(exist_ok=True)
        (root / (name or folder)).symlink_to(place.resolve(), target_is_directory=True)
        return root

    return real
