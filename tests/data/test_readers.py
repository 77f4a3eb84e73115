import numpy as np
import pytest
from PIL import Image

from bench.data.readers import ArrayReader, AveragingReader, FileReader
from bench.errors import BenchError

RANDOM = np.random.default_rng(0)
ALL = np.arange(40)


def write(folder, count=40, size=(6, 5), mode="RGB", suffix="png"):
    """Write images of noise, and return their paths."""
    folder.mkdir(exist_ok=True)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    paths = [folder / f"{number}.{suffix}" for number in range(count)]
    for path in paths:
        Image.fromarray(RANDOM.integers(0, 256, shape, np.uint8), mode).save(path)
    return paths


@pytest.mark.parametrize("count", [3, 40])
@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
def test_files_are_decoded_as_pillow_does(tmp_path, mode, channels, count):
    paths = write(tmp_path, count, mode=mode)
    found = FileReader(paths, (channels, 5, 6)).load(np.arange(count)[::-1])
    for path, pixels in zip(reversed(paths), found, strict=True):
        theirs = np.asarray(Image.open(path)).reshape(5, 6, channels)
        assert np.array_equal(pixels.transpose(1, 2, 0), theirs)


def test_grey_images_become_colour_where_the_dataset_is_colour(tmp_path):
    (path,) = write(tmp_path, 1, mode="L")
    pixels = FileReader([path], (3, 5, 6)).load(np.array([0]))[0]
    assert np.array_equal(pixels, np.stack([np.asarray(Image.open(path))] * 3))


def test_progress_is_told(tmp_path):
    told = []
    FileReader(write(tmp_path), (3, 5, 6)).load(ALL, lambda done, of: told.append((done, of)))
    assert told == [(done, 40) for done in range(1, 41)]


@pytest.mark.parametrize(("size", "scaled"), [((40, 20), (32, 16)), ((20, 40), (16, 32)), ((16, 16), (16, 16))])
def test_large_images_are_scaled_by_their_shorter_side_and_the_middle_is_cut(tmp_path, size, scaled):
    (path,) = write(tmp_path, 1, size=size)
    pixels = FileReader([path], (3, 12, 12), shorter_side=16).load(np.array([0]))[0]
    whole = np.asarray(Image.open(path).resize(scaled, Image.Resampling.BILINEAR))
    top, left = (scaled[1] - 12) // 2, (scaled[0] - 12) // 2
    assert np.array_equal(pixels.transpose(1, 2, 0), whole[top : top + 12, left : left + 12])


def test_the_middle_is_that_of_torchvision(tmp_path):
    transforms = pytest.importorskip("torchvision.transforms")
    theirs = transforms.Compose([transforms.Resize(16), transforms.CenterCrop(14)])
    for number, size in enumerate([(41, 23), (19, 50), (17, 16), (100, 33)]):
        (path,) = write(tmp_path / str(number), 1, size=size)
        pixels = FileReader([path], (3, 14, 14), shorter_side=16).load(np.array([0]))[0]
        assert np.array_equal(pixels.transpose(1, 2, 0), np.asarray(theirs(Image.open(path))))


@pytest.mark.parametrize("count", [1, 40])
def test_what_is_wrong_with_a_file_names_it(tmp_path, count):
    good, (large,) = write(tmp_path / "good"), write(tmp_path / "large", 1, size=(7, 5))
    text = tmp_path / "text.png"
    text.write_text("no image")
    cut = tmp_path / "cut.png"
    cut.write_bytes(good[0].read_bytes()[:-40])
    sentences = {
        large: r"has 7x5 pixels \(width x height\), not 6x5$",
        text: "cannot be read: cannot identify",
        cut: "cannot be read: ",
        tmp_path / "none.png": ": no such file",
    }
    for path, sentence in sentences.items():
        with pytest.raises(BenchError, match=f"^image {path}.*{sentence}"):
            FileReader([*good[1:], path][-count:], (3, 5, 6)).load(np.arange(count))


def test_a_bomb_is_refused(tmp_path, monkeypatch):
    (path,) = write(tmp_path, 1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(BenchError, match="cannot be read: .*decompression bomb"):
        FileReader([path], (3, 5, 6)).load(np.array([0]))


def test_formats_are_told_by_content(tmp_path):
    (path,) = write(tmp_path, 1, suffix="jpeg")
    path = path.rename(tmp_path / "0.png")
    assert FileReader([path], (3, 5, 6)).load(np.array([0])).shape == (1, 3, 5, 6)
    with pytest.raises(BenchError, match=f"^image {path} cannot be read: cannot identify"):
        FileReader([path], (3, 5, 6), formats=("PNG",)).load(np.array([0]))


def test_pixels_of_more_than_8_bits_are_refused(tmp_path):
    Image.fromarray(np.full((5, 6), 1000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(BenchError, match=r"deep.png cannot be read: its pixels have more than 8 bits \(mode I;16\)$"):
        FileReader([tmp_path / "deep.png"], (1, 5, 6)).load(np.array([0]))


def test_an_array_gives_copies():
    pixels = np.zeros((4, 1, 2, 2), np.uint8)
    ArrayReader(pixels).load(np.array([1, 1]))[:] = 9
    assert not pixels.any()


def test_averages_round_halves_up():
    pixels = np.array([[[[0, 1, 255, 255], [1, 0, 255, 254]]] * 1], np.uint8).reshape(1, 1, 2, 4)
    square = np.concatenate([pixels, pixels], axis=2)
    assert AveragingReader(ArrayReader(square), 2).load(np.array([0])).ravel().tolist() == [1, 255, 1, 255]
    three = np.arange(81, dtype=np.uint8).reshape(1, 1, 9, 9)
    means = three.reshape(1, 1, 3, 3, 3, 3).astype(float).mean(axis=(3, 5))
    assert np.array_equal(AveragingReader(ArrayReader(three), 3).load(np.array([0])), np.floor(means + 0.5))
