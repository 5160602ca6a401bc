"""CUDA kernels by name, and the source text that the compiler gets. Imports nothing of CuPy."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gpugrad.errors import DeviceError, fail

ENTRY = re.compile(r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\s*\(([^)]*)\)")
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"[^\n]*\n', re.M)


@dataclass(frozen=True)
class Kernel:
    """A kernel of `kernels/<family>.cu`, for `cuda=` in an op's definition; see `kernel`."""

    family: str
    name: str
    call: Callable[..., Any] | None = None
    text: str | None = None  # of a user's kernel, in place of the family's file

    def code(self) -> str:
        """The text that the compiler gets."""
        return source(source_path(self.family)) if self.text is None else source_text(self.text, self.family)


def kernel(family: str, name: str, call: Callable[..., Any] | None = None) -> Kernel:
    """Name the kernel template `name` of a family as an op's CUDA implementation.

    call: `call(launch, *arrays, **attrs)` allocates, launches and returns the op's result; without it the kernel is
    elementwise, `name<T>(T* out, const T* in..., long long n)`. Where `call` returns NotImplemented (a dtype or layout
    without a kernel), the op's forward runs instead.
    """
    return Kernel(family, name, call)


def library(name: str, call: Callable[..., Any]) -> Kernel:
    """Name what `call(launch, *arrays, **attrs)` does with a library, such as `launch.gemm`, as `kernel` does."""
    return Kernel("", name, call)


@functools.cache
def find_kernels() -> Path:
    """The folder of the .cu files: inside an installed package, or beside it in a checkout. Raises DeviceError."""
    package = Path(__file__).parent
    places = (package / "_kernels", package.parent / "kernels")
    for place in places:
        if (place / "common.cuh").is_file():
            return place
    raise fail(DeviceError, "kernels", f"no kernel sources in {' or '.join(map(str, places))}; reinstall gpugrad")


def source_path(family: str) -> Path:
    """The .cu file of a family. Raises DeviceError if there is none."""
    path = find_kernels() / f"{family}.cu"
    if not path.is_file():
        raise fail(DeviceError, "kernels", f"{path} does not exist")
    return path


def source(path: Path, text: str | None = None) -> str:
    """A .cu file (or `text`, as if it stood there) with our headers put in place of their include lines, each once.

    CuPy's cache of compiled kernels is keyed by this text and knows nothing of files that it includes: a changed
    header has to change the text. `#line` keeps the compiler's messages true.
    """
    seen: set[Path] = set()

    def expand(file: Path, text: str | None = None) -> str:
        seen.add(file)
        if text is None:
            text = file.read_text(encoding="utf-8").replace("#pragma once\n", "\n")
        parts, done, line = [f'#line 1 "{file.name}"\n'], 0, 1
        for found in INCLUDE.finditer(text):
            parts.append(text[done : found.start()])
            line += text.count("\n", done, found.end())
            header, done = file.parent / found[1], found.end()
            parts.append((expand(header) if header not in seen else "") + f'#line {line} "{file.name}"\n')
        parts.append(text[done:])
        return "".join(parts)

    return expand(path, text)


def source_text(text: str, name: str = "kernel") -> str:
    """CUDA source given as a string, which may include our headers; the compiler's messages call it `name`.cu."""
    return source(find_kernels() / f"{name}.cu", text)


class Parameter(NamedTuple):
    """One declared parameter of a kernel: 'float*' and 'x' of `const float* x`, and whether it is const."""

    type: str
    name: str
    const: bool


@functools.lru_cache(256)
def signature(code: str, name: str) -> list[Parameter]:
    """The declared parameters of a kernel. Raises DeviceError if the source has no such kernel.

    Read from the text, so that a launch can give every number the width that the kernel expects.
    """
    for entry in ENTRY.finditer(code):
        if entry[1] == name:
            return [declared(parameter) for parameter in entry[2].split(",") if parameter.strip()]
    raise fail(DeviceError, "kernels", f"there is no kernel {name} in the source")


def declared(parameter: str) -> Parameter:
    """One entry of a parameter list."""
    words = re.sub(r"\b(const|__restrict__)\b|(\*)", r" \2 ", parameter).split()
    kind = " ".join(words[:-1]).replace(" *", "*")
    return Parameter(kind, words[-1], bool(re.search(r"\bconst\b", parameter)))
