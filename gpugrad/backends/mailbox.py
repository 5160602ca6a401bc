"""Errors that kernels find: the first offender goes to pinned host memory, and is raised at the next host read.

A kernel cannot raise, and waiting for it would stop the host at every step. So it leaves a row and a value (`report`
in kernels/common.cuh), and whoever next copies values to the host, having waited anyway, looks here. The context
survives, and no copy or synchronisation is added.
"""

from __future__ import annotations

from collections.abc import Callable
from types import CodeType
from typing import Any, NamedTuple

import numpy as np

from gpugrad.errors import GpugradError, fail, place, user_frame

LAYOUT = np.dtype([("lock", "i4"), ("site", "i4"), ("row", "i8"), ("value", "i8")])  # struct Mailbox of common.cuh
BYTES = 64


class Site(NamedTuple):
    """A call that can find offenders: the exception to raise, its op, its message and the user's line."""

    kind: type[GpugradError]
    op: str
    message: str
    shape: tuple[int, ...] | None
    code: CodeType
    lasti: int


class Mailbox:
    """One letter box for all kernels of a backend; `address` is what kernels get.

    memory: pinned, the device writes to it directly, at the same address. settle: waits for all kernels.
    """

    def __init__(self, memory: Any, settle: Callable[[], None]) -> None:
        self.memory, self.settle = memory, settle
        self.letter = np.frombuffer(memory, LAYOUT, 1)
        self.letter[:] = np.zeros((), LAYOUT)
        self.occupied = self.letter["site"]
        self.address: int = self.letter.ctypes.data
        self.sites: list[Site] = []
        self.numbers: dict[Site, int] = {}

    def site(self, kind: type[GpugradError], op: str, message: str, shape: tuple[int, ...] | None = None) -> int:
        """The number, from 1, that stands for an error of this op at the user's current line.

        message: what to say, with `{row}` and `{value}` for what the kernel reports, `{real}` for a value that is a
        double's bits, `{at}` for the row as a position in `shape`.
        """
        site = Site(kind, op, message, shape, *user_frame())
        if site not in self.numbers:
            self.sites.append(site)
            self.numbers[site] = len(self.sites)
        return self.numbers[site]

    def check(self) -> None:
        """Raise what a kernel reported, and empty the box. Call it only after waiting for the device."""
        if self.occupied[0]:
            self.settle()  # another stream may be writing
            letter = self.letter[0].copy()
            self.letter[:] = np.zeros((), LAYOUT)
            site, row, value = self.sites[letter["site"] - 1], letter["row"], letter["value"]
            at = int(row) if site.shape is None else [int(i) for i in np.unravel_index(row, site.shape)]
            text = site.message.format(row=row, value=value, real=value.view("f8"), at=at)
            raise fail(site.kind, site.op, text, place(site.code, site.lasti))
