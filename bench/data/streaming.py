"""Images too large for the device's memory: worker processes decode them ahead of need."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bench.data.readers import Reader
from bench.errors import BenchError

PREFETCHED = 4  # batches per worker


class ImageStream:
    """Labelled images that are read on demand; `labels` (int64, [n]) are on the device.

    `index` (int64, [n], on the host) holds each image's position in `reader`.
    """

    def __init__(
        self,
        reader: Reader,
        index: Tensor,
        labels: Tensor,
        device: torch.device | str = "cpu",
        workers: int | None = None,
    ) -> None:
        """`workers`: processes that decode; default: the threads of this process. 0 decodes in this process."""
        self._reader, self.index, self._device = reader, index, torch.device(device)
        self.labels = labels.to(self._device)
        self._workers = torch.get_num_threads() if workers is None else workers

    def __len__(self) -> int:
        return len(self.index)

    def take(self, index: Tensor) -> ImageStream:
        """Return the images at `index` (int64, [k]), in that order."""
        return ImageStream(self._reader, self.index[index.cpu()], self.labels[index], self._device, self._workers)

    def to(self, device: torch.device) -> ImageStream:
        """Return the same images for `device`."""
        return ImageStream(self._reader, self.index, self.labels, device, self._workers)

    def read(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the pixels of one batch after the other, on the device, given each batch's positions (int64, [k]).

        Batches keep the order of `batches`. Several iterators may be open at once.

        Raises:
            BenchError: an image cannot be read.
        """
        if not batches:
            return
        positions = self.index[torch.cat(list(batches)).cpu()]  # one transfer from the device for all batches
        split = torch.split(positions, [len(batch) for batch in batches])
        workers = min(self._workers, len(split))
        loader: DataLoader[Tensor | str] = DataLoader(
            _Decoder(self._reader, split),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=PREFETCHED if workers else None,
            pin_memory=self._device.type == "cuda",
        )
        for pixels in loader:
            if isinstance(pixels, str):
                raise BenchError(pixels)
            yield pixels.to(self._device, non_blocking=True)


class _Decoder(Dataset[Tensor | str]):
    """Item i is the pixels of batch i, or the error message if they cannot be read.

    `DataLoader` would wrap an exception of a worker in tracebacks.
    """

    def __init__(self, reader: Reader, batches: Sequence[Tensor]) -> None:
        self._reader, self._batches = reader, batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, item: int) -> Tensor | str:
        try:
            return torch.from_numpy(self._reader.load(self._batches[item].numpy()))
        except BenchError as error:
            return str(error)
