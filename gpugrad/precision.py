"""How exactly a GPU multiplies float32 matrices: a setting of the process, and of a block of code in one thread."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from gpugrad.errors import DomainError, fail

PRECISIONS = ("highest", "tf32", "bf16", "fp16")


class Setting(threading.local):
    """What `matmul_precision` chose in this thread; None: what the process has."""

    chosen: str | None = None


process = ["highest"]
setting = Setting()


def get_matmul_precision() -> str:
    """The precision that a float32 matrix product would have here."""
    return setting.chosen or process[0]


def set_matmul_precision(precision: str) -> None:
    """Choose how GPUs multiply float32 matrices, in the whole process.

    precision: 'highest' (the default) is true float32; 'tf32', 'bf16' and 'fp16' round each factor to 11, 8 or 11
    significant bits (fp16 with its short exponent) for the tensor cores, and add the products in float32. Other types
    are not concerned: float64 computes in float64, float16 and bfloat16 always add in float32. On the CPU it has no
    effect. A captured graph keeps the precision that it was captured with. Raises DomainError for another name.
    """
    process[0] = checked(precision)


@contextlib.contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """`set_matmul_precision` for a block of code, in this thread only; a backward pass counts where it runs."""
    before, setting.chosen = setting.chosen, checked(precision)
    try:
        yield
    finally:
        setting.chosen = before


def checked(precision: str) -> str:
    """The name, if it is one."""
    if precision not in PRECISIONS:
        raise fail(DomainError, "matmul_precision", f"{precision!r} is no precision; expected one of {PRECISIONS}")
    return precision
