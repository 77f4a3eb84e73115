"""Natural corruptions: each against its definition, and the published layouts as they are published."""

import io
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image

from bench.config.corruptions import BENCHMARK, COMPUTED, Corruptions
from bench.config.protocol import DatasetSettings
from bench.data import corrupted as corrupted_images
from bench.data.corrupted import check_corruptions, versions
from bench.data.corruptions import CORRUPTIONS, corrupted
from bench.data.dataset import ImageSet, dataset_of
from bench.errors import BenchError, NotFound

RANDOM = np.random.default_rng(0)
COLOUR = RANDOM.integers(256, size=(40, 3, 32, 32)).astype(np.uint8)
FLAT = np.full((10, 3, 32, 32), 100, np.uint8)


def test_every_corruption_is_there_with_five_severities():
    assert tuple(CORRUPTIONS) == COMPUTED
    assert {len(parameters) for _, parameters in CORRUPTIONS.values()} == {5}
    assert len(set(BENCHMARK)) == 15


@pytest.mark.parametrize("name", COMPUTED)
@pytest.mark.parametrize("pixels", [COLOUR[:4], COLOUR[:4, :1, :8, :8]], ids=["colour", "grey"])
def test_images_keep_their_shape_and_are_the_same_every_time(name, pixels):
    before = pixels.copy()
    one, again, other = (corrupted(pixels, name, severity) for severity in (3, 3, 5))
    assert (one.shape, one.dtype) == (pixels.shape, np.uint8)
    assert np.array_equal(one, again)
    assert not np.array_equal(one, pixels)
    assert not np.array_equal(one, other)
    assert np.array_equal(pixels, before)


def test_noise_has_the_stated_strength():
    for severity, scale in ((1, 0.04), (5, 0.1)):
        noise = corrupted(FLAT, "gaussian_noise", severity) / 255 - 100 / 255
        assert noise.std() == pytest.approx(scale, rel=0.03)
    shot = corrupted(FLAT, "shot_noise", 5) / 255
    assert shot.var() == pytest.approx(100 / 255 / 50, rel=0.05)  # of Poisson: mean / photons
    impulse = corrupted(FLAT, "impulse_noise", 5)
    assert set(np.unique(impulse)) == {0, 100, 255}
    assert (impulse != 100).mean() == pytest.approx(0.07, abs=0.01)
    assert (impulse == 0).sum() == pytest.approx((impulse == 255).sum(), rel=0.2)


@pytest.mark.parametrize("name", ["gaussian_blur", "defocus_blur", "motion_blur"])
def test_blurs_keep_what_is_flat_and_spread_a_point(name):
    assert np.abs(corrupted(FLAT, name, 5).astype(int) - 100).max() == 0
    point = np.zeros((1, 1, 32, 32), np.uint8)
    point[0, 0, 16, 16] = 255
    spread = corrupted(point, name, 5)[0, 0].astype(int)
    assert 200 < spread.sum() <= 255
    assert spread.max() < 255
    if name == "gaussian_blur":
        assert spread[16, 15] == int(255 * np.exp(-0.5) / 6.2832)
    if name == "motion_blur":  # a line, within 45 degrees of the horizontal, on one side of the point
        rows, columns = np.nonzero(spread)
        assert (abs(rows - 16) <= abs(columns - 16)).all()
        assert len({*columns}) > 3
        assert columns.max() == 16


def test_colours_are_changed_as_defined():
    x = np.array([[[[0]], [[51]], [[102]]], [[[0]], [[0]], [[0]]], [[[250]], [[125]], [[0]]]], np.uint8)
    brighter = corrupted(x, "brightness", 2)  # 25.5 more of value
    assert brighter[:, :, 0, 0].tolist() == [[0, 63, 127], [25, 25, 25], [255, 127, 0]]
    contrast = corrupted(COLOUR, "contrast", 5) / 255
    mean = (COLOUR / 255).mean((2, 3), keepdims=True)
    assert np.abs(contrast - ((COLOUR / 255 - mean) * 0.15 + mean)).max() <= 1 / 255


def test_pillow_changes_single_images():
    image = Image.fromarray(COLOUR[7].transpose(1, 2, 0))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=58)
    expected = np.asarray(Image.open(file)).transpose(2, 0, 1)
    assert np.array_equal(corrupted(COLOUR, "jpeg_compression", 3)[7], expected)
    expected = image.resize((20, 20), Image.Resampling.BOX).resize((32, 32), Image.Resampling.BOX)
    assert np.array_equal(corrupted(COLOUR, "pixelate", 5)[7], np.asarray(expected).transpose(2, 0, 1))


# --- published layouts ------------------------------------------------------------------------------------------------

LABELS = np.arange(20) % 10


@pytest.fixture
def cifar_c(tmp_path):
    """Four images in each severity, whose first pixel says which one it is."""
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    np.save(folder / "labels.npy", np.tile(LABELS[:4], 5))
    for number, name in enumerate(("fog", "snow")):
        pixels = np.zeros((20, 32, 32, 3), np.uint8)
        pixels[:, 0, 0, 2] = np.arange(20) + 100 * number
        np.save(folder / f"{name}.npy", pixels)
    return folder


def test_set(indices) -> ImageSet:
    return ImageSet(torch.zeros(len(indices), 3, 32, 32, dtype=torch.uint8), torch.tensor(LABELS[indices]))


test_set.__test__ = False


def read(root, settings: DatasetSettings, indices=(0, 1, 2, 3), **stated) -> Iterator:
    entry = Corruptions(**{"path": "CIFAR-10-C", "kinds": ("fog", "snow"), **stated})
    return versions(entry, dataset_of(settings), test_set(list(indices)), root)


def test_arrays_are_read_as_published(cifar_c, tmp_path):
    settings = DatasetSettings(name="cifar10")
    found = list(read(tmp_path, settings))
    assert [version.name for version in found][:6] == [*(f"fog {number}" for number in range(1, 6)), "snow 1"]
    (version,) = read(tmp_path, settings, severity=3, kinds=("snow",))
    assert version.images.pixels[:, :, 0, 0].tolist() == [[0, 0, 108 + image] for image in range(4)]
    assert version.images.labels.tolist() == [0, 1, 2, 3]
    subset = DatasetSettings.model_validate({"name": "cifar10", "subset": {"test": "1,3"}, "resize": 8})
    (version,) = read(tmp_path, subset, (1, 3), severity=1, kinds=("fog",))
    assert version.images.pixels.shape == (2, 3, 8, 8)
    assert version.images.labels.tolist() == [1, 3]
    before = version.sha256
    np.save(cifar_c / "fog.npy", np.ones((20, 32, 32, 3), np.uint8))
    (version,) = read(tmp_path, subset, (1, 3), severity=1, kinds=("fog",))
    assert version.sha256 != before


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda folder: (folder / "snow.npy").unlink(), "snow.npy does not exist; list the existing ones in 'kinds'"),
        (
            lambda folder: np.save(folder / "fog.npy", np.zeros((20, 32, 32, 3))),
            r"fog.npy has float64 \[20, 32, 32, 3\]",
        ),
        (lambda folder: np.save(folder / "fog.npy", np.zeros((19, 32, 32, 3), np.uint8)), "not uint8"),
        (lambda folder: np.save(folder / "labels.npy", np.zeros(3, int)), "labels.npy has int64 .*for each image"),
        (lambda folder: np.save(folder / "labels.npy", np.ones(20, int)), "labels are not those of the test images"),
        (lambda folder: np.save(folder / "fog.npy", np.array([{}]), allow_pickle=True), "fog.npy cannot be read"),
        (lambda folder: (folder / "fog.npy").write_bytes(b"x"), "fog.npy cannot be read"),
    ],
)
def test_other_files_are_refused(cifar_c, tmp_path, damage, problem):
    damage(cifar_c)
    with pytest.raises((BenchError, NotFound), match=problem):
        list(read(tmp_path, DatasetSettings(name="cifar10")))


def test_other_images_are_refused(cifar_c, tmp_path):
    with pytest.raises(NotFound, match="CIFAR-100-C does not exist"):
        list(read(tmp_path, DatasetSettings(name="cifar10"), path="CIFAR-100-C"))
    with pytest.raises(NotFound, match="no data root is given"):
        list(read(None, DatasetSettings(name="cifar10")))
    with pytest.raises(BenchError, match="has colour images of 32x32 pixels, unlike digits"):
        list(read(tmp_path, DatasetSettings(name="digits")))
    large = dataset_of(DatasetSettings(name="restricted_imagenet"))
    with pytest.raises(BenchError, match="at most 128x128 pixels, not 3x224x224"):
        check_corruptions(Corruptions(), large, None)


def test_folders_are_read_as_published(tmp_path, monkeypatch):
    monkeypatch.setattr(corrupted_images, "SYNSETS", ("n02", "n01"))  # the order of labels is not that of names
    settings = DatasetSettings(name="tiny_imagenet")
    dataset = dataset_of(settings)
    object.__setattr__(dataset, "classes", 2)
    for kind in ("fog", "snow"):
        for wnid, values in (("n01", (10, 20)), ("n02", (30,))):
            folder = tmp_path / "Tiny" / kind / "2" / wnid
            folder.mkdir(parents=True)
            for number, value in enumerate(values):
                Image.new("RGB", (64, 64), (value,) * 3).save(folder / f"val_{number}.JPEG")
    entry = Corruptions(path="Tiny", kinds=("fog", "snow"), severity=2)
    fog, snow = versions(entry, dataset, test_set([0]), tmp_path)
    assert fog.images.labels.tolist() == snow.images.labels.tolist() == [0, 1, 1]
    assert fog.images.pixels[:, 0, 0, 0].tolist() == [30, 10, 20]
    (tmp_path / "Tiny" / "snow" / "2" / "n01" / "val_1.JPEG").unlink()
    with pytest.raises(BenchError, match="'snow 2' has other images than those before it"):
        list(versions(entry, dataset, test_set([0]), tmp_path))
    (tmp_path / "Tiny" / "snow" / "2" / "n01").rename(tmp_path / "Tiny" / "snow" / "2" / "n03")
    with pytest.raises(BenchError, match="which are not the 2 of the dataset"):
        check_corruptions(entry, dataset, tmp_path)
    with pytest.raises(NotFound, match=r"fog.1 does not exist"):
        check_corruptions(Corruptions(path="Tiny", kinds=("fog",), severity=1), dataset, tmp_path)
