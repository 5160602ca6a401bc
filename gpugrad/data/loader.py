"""Mini-batches of arrays that stay where they are, and batches of the host that are copied to a GPU beforehand."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

import gpugrad as gg
from gpugrad.errors import DomainError, ShapeError, fail


def permutation(n: int, seed: int, epoch: int) -> Any:
    """Order of an epoch, a function of (seed, epoch) alone: the ranks of n Philox words with that key."""
    key = np.array([seed % 2**64, epoch], np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(n), kind="stable")


class ArrayLoader:
    """Iterates over arrays in batches: each pass (an epoch) gives tuples of tensors, slices along axis 0.

    batch_size: None for the full batch, 1 for stochastic, n for mini-batches. shuffle: a new order every epoch, the
    same on every device and after a resume; without it batches are views. device: where the arrays are moved, once.
    drop_last: leave out a last batch that is smaller. A pass that was left early counts as an epoch. Raises
    ShapeError for arrays of different lengths, DomainError for a batch size below 1.
    """

    def __init__(
        self, *arrays: Any, batch_size: int | None = None, shuffle: bool = True, seed: int = 0,
        device: str | None = None, drop_last: bool = False,
    ) -> None:  # fmt: skip
        tensors = [gg.asarray(a) if device is None else gg.asarray(a).to(device=device) for a in arrays]
        self.arrays = tuple(t.detach() for t in tensors)
        if not tensors or any(t.ndim == 0 or t.shape[0] != tensors[0].shape[0] for t in tensors):
            raise fail(
                ShapeError, "ArrayLoader", f"arrays of shapes {[list(t.shape) for t in tensors]}, expected one length"
            )
        if batch_size is not None and batch_size < 1:
            raise fail(DomainError, "ArrayLoader", f"batch_size is {batch_size}, expected at least 1, or None for all")
        self.samples: int = tensors[0].shape[0]
        self.batch_size, self.shuffle, self.seed, self.drop_last = batch_size, shuffle, seed, drop_last
        self.epoch, self.position = 0, 0  # position: samples already given in this epoch
        self._resumed = False

    def __len__(self) -> int:
        """Batches in an epoch."""
        size = self.batch_size or max(self.samples, 1)
        return self.samples // size if self.drop_last else -(-self.samples // size)

    def __iter__(self) -> Iterator[tuple[gg.Tensor, ...]]:
        if self.position and not self._resumed:
            self.epoch, self.position = self.epoch + 1, 0
        self._resumed = False
        size = self.batch_size or max(self.samples, 1)
        end = min(len(self) * size, self.samples)
        order = None
        if self.shuffle and size < self.samples:
            order = gg.asarray(permutation(self.samples, self.seed, self.epoch)).to(device=self.arrays[0].device)
        for start in range(self.position, end, size):
            stop = min(start + size, end)
            self.position = stop
            if order is None:
                yield tuple(a[start:stop] for a in self.arrays)
            else:
                index = order[start:stop]
                yield tuple(gg.take(a, index, axis=0) for a in self.arrays)
        self.epoch, self.position = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        """Seed, epoch and position: the batch in hand counts as done."""
        done = self.position >= min(len(self) * (self.batch_size or self.samples), self.samples)
        epoch, position = (self.epoch + 1, 0) if done and self.position else (self.epoch, self.position)
        return {"seed": self.seed, "epoch": epoch, "position": position, "samples": self.samples}

    def load_state_dict(self, saved: Mapping[str, int]) -> None:
        """Continue where `state_dict` was taken: the next pass gives the rest of that epoch.

        Raises DomainError if it was taken with another number of samples.
        """
        if saved["samples"] != self.samples:
            raise fail(
                DomainError, "ArrayLoader", f"saved with {saved['samples']:,} samples, expected {self.samples:,}"
            )
        self.seed, self.epoch, self.position = saved["seed"], saved["epoch"], saved["position"]
        self._resumed = True

    def __repr__(self) -> str:
        shapes = ", ".join(f"{a.dtype}{list(a.shape)}" for a in self.arrays)
        return f"ArrayLoader({shapes}; batch_size={self.batch_size}, {len(self)} batches, epoch {self.epoch})"


class Prefetch:
    """Batches of a loader on a GPU, copied there while earlier ones are still computed with.

    loader: yields tuples of CPU tensors and has a length, such as an `ArrayLoader` of arrays that do not fit on the
    GPU. ahead: how many batches wait there for their turn. They are copied from pinned memory in a stream of their own;
    the current stream waits for a batch when it is given out. With device='cpu' batches come as they are. Its state is
    the loader's after the batch last given out. Raises DomainError for `ahead` below 1.
    """

    def __init__(self, loader: Any, device: str = "cuda", ahead: int = 2) -> None:
        if ahead < 1:
            raise fail(DomainError, "Prefetch", f"ahead is {ahead}, expected at least 1")
        self.loader, self.ahead = loader, ahead
        self._copies = gg.Stream(device)
        self.device = self._copies.device
        self._state: Mapping[str, Any] | None = None

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[gg.Tensor, ...]]:
        coming: deque[tuple[Any, gg.Event, Any]] = deque()
        for batch in self.loader:
            coming.append((*self._send(batch), self._read_state()))
            if len(coming) > self.ahead:
                yield self._take(*coming.popleft())
        while coming:
            yield self._take(*coming.popleft())

    def _send(self, batch: tuple[gg.Tensor, ...]) -> tuple[tuple[gg.Tensor, ...], gg.Event]:
        """Start the copies of a batch; the event is their end."""
        self._copies.wait(gg.current_stream(self.device))  # which may still read memory of a batch that was let go
        with self._copies:
            there = tuple(x.pin_memory().to(self.device, non_blocking=True) for x in batch)
            return there, self._copies.record()

    def _take(self, batch: tuple[gg.Tensor, ...], arrived: gg.Event, state: Any) -> tuple[gg.Tensor, ...]:
        """The batch, which the current stream may use."""
        gg.current_stream(self.device).wait(arrived)
        self._state = state
        return batch

    def _read_state(self) -> Any:
        return self.loader.state_dict() if hasattr(self.loader, "state_dict") else None

    def state_dict(self) -> Any:
        """The loader's state after the batch that was given out last."""
        return self._read_state() if self._state is None else self._state

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.loader.load_state_dict(saved)
        self._state = None
