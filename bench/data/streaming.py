"""Images too large to live on the device: decoded ahead of need by worker processes, sent from pinned memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bench.data.readers import Source
from bench.errors import BenchError

AHEAD = 4  # batches that each worker keeps ready


class ImageStream:
    """Labelled images that are read when they are needed; `labels` (int64, [n]) live on the device.

    `index` ([n], on the host) says where each image stands in `source`.
    """

    def __init__(
        self,
        source: Source,
        index: Tensor,
        labels: Tensor,
        device: torch.device | str = "cpu",
        workers: int | None = None,
    ) -> None:
        """`workers`: processes that decode; default: as many as the threads of this process, 0 decodes in it."""
        self._source, self._index, self._device = source, index, torch.device(device)
        self.labels = labels.to(self._device)
        self._workers = torch.get_num_threads() if workers is None else workers

    def __len__(self) -> int:
        return len(self._index)

    def take(self, index: Tensor) -> ImageStream:
        """Return the images at `index` (int64, [k]), in that order."""
        return ImageStream(self._source, self._index[index.cpu()], self.labels[index], self._device, self._workers)

    def to(self, device: torch.device) -> ImageStream:
        """Return the same images, to be sent to `device`."""
        return ImageStream(self._source, self._index, self.labels, device, self._workers)

    def read(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the pixels of one batch after the other, on the device, given each batch's positions (int64, [k]).

        Batches come in the order asked for, whatever worker was first. Several readers may be open at once.

        Raises:
            BenchError: an image cannot be read.
        """
        if not batches:
            return
        positions = self._index[torch.cat(list(batches)).cpu()]  # one transfer from the device for all of them
        parts = torch.split(positions, [len(batch) for batch in batches])
        workers = min(self._workers, len(parts))
        loader: DataLoader[Tensor | str] = DataLoader(
            _Decoder(self._source, parts),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=AHEAD if workers else None,
            pin_memory=self._device.type == "cuda",
        )
        for pixels in loader:
            if isinstance(pixels, str):
                raise BenchError(pixels)
            yield pixels.to(self._device, non_blocking=True)


class _Decoder(Dataset[Tensor | str]):
    """Item i is the pixels of batch i, or the sentence that says why it cannot be read.

    A loader would bury an exception of a worker under tracebacks.
    """

    def __init__(self, source: Source, parts: Sequence[Tensor]) -> None:
        self._source, self._parts = source, parts

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, item: int) -> Tensor | str:
        try:
            return torch.from_numpy(self._source.load(self._parts[item].numpy()))
        except BenchError as error:
            return str(error)
