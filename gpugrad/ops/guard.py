"""Guards: identities that object to what passes through them, without making the host wait for a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpugrad.define import general
from gpugrad.errors import DomainError, fail
from gpugrad.launch import guard as launch

__all__ = ["assert_finite"]

MESSAGE = "{what} is {value} at {at}; expected finite numbers"


def _assert_finite(xp: Any, x: Any, what: str) -> Any:
    """On a GPU a kernel looks and reports; where there is none for the dtype, nothing does."""
    if xp is np and not np.isfinite(x).all():
        at = [int(i) for i in np.argwhere(~np.isfinite(x))[0]]
        raise fail(DomainError, "assert_finite", MESSAGE.format(what=what, value=x[tuple(at)], at=at))
    return x


_finite = general(
    "assert_finite", _assert_finite, lambda F, t, _out, _x, what: t, jvp=lambda F, ts, _out, _x, what: ts[0],
    cuda=launch.assert_finite,
)  # fmt: skip


def assert_finite(x: Any, what: str = "the value") -> Any:
    """x itself, if all of it is finite; its gradient passes unchanged.

    what: how the message calls it. On the CPU this raises DomainError at once, naming the first element that is NaN or
    infinite. On a GPU a kernel looks, nobody waits, and the next read of any value by the host raises the same error.
    """
    return _finite(x, what=what)
