"""Mini-batches of arrays that stay where they are: no workers, no copies between host and device per batch."""

from __future__ import annotations

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
