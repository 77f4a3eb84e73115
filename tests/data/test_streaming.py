import os
import time

import numpy as np
import pytest
import torch

from bench.data.readers import ArrayReader, FileReader
from bench.data.streaming import ImageStream
from bench.errors import BenchError

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 1, 5, 6), np.uint8)


class Slow:
    """A source that takes its time, longer for earlier images, and says which process read."""

    def __len__(self):
        return 40

    def load(self, index, progress=None):
        time.sleep(0.02 * (40 - index[0]) / 40)
        found = PIXELS[index].copy()
        found[:, 0, 0, :4] = np.frombuffer(np.uint32(os.getpid()).tobytes(), np.uint8)
        return found


def stream(source=None, workers=2):
    return ImageStream(source or ArrayReader(PIXELS), torch.arange(40), torch.arange(40), workers=workers)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_come_in_the_order_asked_for(workers):
    batches = torch.randperm(40, generator=torch.Generator().manual_seed(0)).split(7)
    for index, pixels in zip(batches, stream(workers=workers).read(batches), strict=True):
        assert pixels.dtype == torch.uint8
        assert torch.equal(pixels, torch.from_numpy(PIXELS)[index])


def test_worker_processes_decode_ahead_of_need():
    batches = torch.arange(40).split(2)
    read = list(stream(Slow()).read(batches))
    processes = {int(np.frombuffer(pixels[0, 0, 0, :4].numpy().tobytes(), np.uint32)[0]) for pixels in read}
    assert len(processes) == 2
    assert os.getpid() not in processes
    for index, pixels in zip(batches, read, strict=True):  # the faster worker does not overtake
        assert torch.equal(pixels[:, :, 1:], torch.from_numpy(PIXELS)[index][:, :, 1:])


def test_two_readers_at_once():
    one = stream()
    batches = torch.arange(40).split(8)
    for first, second in zip(one.read(batches), one.read(batches[::-1]), strict=True):
        assert first.shape == second.shape
    assert torch.equal(second, torch.from_numpy(PIXELS[:8]))


def test_a_reader_may_stop_early():
    for _ in stream(Slow()).read(torch.arange(40).split(2)):
        break


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_one_sentence(tmp_path, workers):
    (tmp_path / "broken.png").write_bytes(b"no image")
    source = FileReader([tmp_path / "broken.png"] * 40, (1, 5, 6))
    with pytest.raises(BenchError, match=rf"^image {tmp_path}/broken.png cannot be read: cannot identify"):
        list(stream(source, workers).read([torch.arange(3)]))


def test_nothing_to_read():
    assert list(stream().read([])) == []
