"""The exception classes, and provenance: from a recorded call site to the user's file, line and column."""

from __future__ import annotations

import linecache
import os
import sys
import warnings
from types import CodeType, FrameType
from typing import Any

PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep
OUTSIDE = tuple(PACKAGE + name + os.sep for name in ("testing", "bench"))  # these use gpugrad as its users do


class GpugradError(Exception):
    """Base class of every error that gpugrad raises on purpose."""


class ShapeError(GpugradError, ValueError):
    """Operand shapes, axes or lengths do not fit the operation."""


class DTypeError(GpugradError, TypeError):
    """An operand's data type (or Python type) is not accepted here."""


class DeviceError(GpugradError, RuntimeError):
    """Operands live on different devices, or a device cannot be used."""


class GraphError(GpugradError, RuntimeError):
    """The recorded graph cannot be differentiated as asked."""


class DomainError(GpugradError, ValueError):
    """A value lies outside the operation's domain (a label, a probability, a hyper-parameter)."""


class NumberError(GpugradError, OverflowError):
    """A Python number does not fit the data type that it meets."""


class ReplayError(GpugradError, RuntimeError):
    """A step cannot be replayed as it is written, or a replay did not do what the step does."""


class RangeError(GpugradError, IndexError):
    """An index or label is out of range."""


class OutOfMemoryError(GpugradError, MemoryError):
    """An op got no memory for its result; the message lists what holds the rest."""


class _Internal(dict[str, bool]):
    """Whether a source file belongs to gpugrad itself; filled on first sight of each file name."""

    def __missing__(self, filename: str) -> bool:
        inside = self[filename] = filename.startswith(PACKAGE) and not filename.startswith(OUTSIDE)
        return inside


INTERNAL = _Internal()


def user_frame(frame: FrameType | None = None) -> tuple[CodeType, int]:
    """The innermost frame outside gpugrad, as (code object, instruction offset)."""
    f: FrameType = frame or sys._getframe(1)
    while INTERNAL[f.f_code.co_filename] and f.f_back is not None:
        f = f.f_back
    return f.f_code, f.f_lasti


def locate(code: CodeType, lasti: int) -> tuple[str, int, int]:
    """File, line and column (both from 1; column 0 when the interpreter does not know) of an instruction."""
    line, column = code.co_firstlineno, 0
    if hasattr(code, "co_positions"):  # Python 3.11 and later
        for i, (start, _, col, _) in enumerate(code.co_positions()):
            if i == lasti // 2:
                line, column = start or line, 0 if col is None else col + 1
                break
    else:
        for begin, end, number in code.co_lines():
            if begin <= lasti < end and number is not None:
                line = number
    return code.co_filename, line, column


def place(code: CodeType, lasti: int) -> str:
    """'file.py:12:5: the source line', as error messages print it."""
    filename, line, column = locate(code, lasti)
    source = linecache.getline(filename, line).strip()
    spot = f"{filename}:{line}" + (f":{column}" if column else "")
    return f"{spot}: {source}" if source else spot


def here() -> str:
    """The user's current line, formatted by `place`."""
    return place(*user_frame(sys._getframe(1)))


def fail(kind: type[GpugradError], op: str, message: str, where: str | None = None) -> GpugradError:
    """An error in the house form: '[op] message', then the user's line."""
    return kind(f"[{op}] {message}\n  at {where or here()}")


def describe(x: Any) -> str:
    """Shape and dtype of an operand, or its Python type."""
    if hasattr(x, "shape") and hasattr(x, "dtype"):
        return f"{x.dtype}{list(x.shape)}"
    return repr(x) if isinstance(x, (bool, int, float, complex)) else type(x).__name__


class GpugradWarning(UserWarning):
    """Something that is not an error, and seldom meant."""


def notice(op: str, message: str) -> None:
    """Warn in the house form; by default once for each of the user's lines."""
    code, lasti = user_frame(sys._getframe(1))
    filename, line, _ = locate(code, lasti)
    text = f"[{op}] {message}\n  at {place(code, lasti)}"
    warnings.warn_explicit(text, GpugradWarning, filename, line, registry=_noticed)


_noticed: dict[Any, Any] = {}
