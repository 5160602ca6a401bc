"""The C++ compiler of this machine: finding it, running it, and keeping what it made.

Everything works without one: `find` is None then. Libraries are kept on disk by the hash of all that went into them.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpugrad.backends import threads
from gpugrad.kernel import find_kernels, source

BUDGET = 512 * 2**20  # bytes of libraries to keep in a folder
# True IEEE arithmetic: NaN, infinities and signed zeros as NumPy has them, no product fused into a sum.
HOST_FLAGS = (
    "-std=c++17", "-O3", "-march=native", "-fPIC", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math",
    "-ffp-contract=off", "-fno-strict-aliasing", "-fvisibility=hidden", "-w",
)  # fmt: skip


class CompileError(RuntimeError):
    """The compiler is missing or refuses a text; the message is the compiler's own."""


def find() -> str | None:
    """The C++ compiler: `g++`, or the one that the environment variable CXX names; None if there is none."""
    return shutil.which(os.environ.get("CXX", "g++"))


def build(
    program: str, flags: Sequence[str], folder: Path, *, name: str = "unit", key: Sequence[str] = (),
    link: Path | None = None,
) -> Path:  # fmt: skip
    """The shared library made of a C++ text, from `folder` if it is there. Several processes may do this at once.

    key: whatever else decides the result, such as the text of headers. link: a library of the same folder to link to.
    Raises CompileError.
    """
    cxx = find()
    if cxx is None:
        raise CompileError("no C++ compiler found; install g++ or set CXX")
    parts = [program, identity(cxx), link.name if link else "", *key, *flags]
    target = folder / f"{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:24]}.so"
    with contextlib.suppress(OSError):
        os.utime(target)  # in use: not to be removed first
        return target
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        (Path(scratch) / "unit.cpp").write_text(program, encoding="utf-8")
        libraries = [f"-L{link.parent}", f"-l:{link.name}", "-Wl,-rpath,$ORIGIN"] if link else []
        for command in (  # apart, because linking with -fsanitize would bring the sanitizers' own libraries
            [cxx, *flags, "-c", "unit.cpp", "-o", "unit.o"],
            [cxx, "-shared", "unit.o", "-o", "unit.so", *libraries],
        ):
            done = subprocess.run(command, capture_output=True, text=True, cwd=scratch)
            if done.returncode:
                raise CompileError(f"{name} does not compile:\n{done.stderr}")
        (Path(scratch) / "unit.so").replace(target)
    trim(folder)
    return target


@functools.lru_cache(8)
def identity(cxx: str) -> str:
    """What tells this compiler from an updated one, and this processor, for which it optimises, from another."""
    program = os.stat(os.path.realpath(cxx))
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        features = next((line for line in file if line.startswith(("flags", "Features"))), "")
        return f"{cxx} {program.st_size} {program.st_mtime_ns} {features}"
    return f"{cxx} {program.st_size} {program.st_mtime_ns} {platform.machine()} {platform.processor()}"


def trim(cache: Path) -> None:
    """Remove the libraries that were not used for longest while there are more than BUDGET bytes."""
    known = []
    for path in cache.glob("*.so"):
        with contextlib.suppress(OSError):
            known.append((path.stat().st_mtime, path.stat().st_size, path))
    spare = BUDGET
    for _, size, path in sorted(known, reverse=True):
        spare -= size
        if spare < 0:
            path.unlink(missing_ok=True)


# --- code for the CPU -----------------------------------------------------------------------------------------


def enabled() -> bool:
    """Whether code may be compiled for the CPU: there is a compiler, and GPUGRAD_CPU_JIT is not 0."""
    return os.environ.get("GPUGRAD_CPU_JIT", "1") != "0" and find() is not None


@functools.cache
def wide() -> bool:
    """Whether this processor has vectors of 64 bytes, with which products of ours are as fast as a BLAS's."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        return " avx512f " in next((line for line in file if line.startswith("flags")), "")
    return False


def host_folder() -> Path:
    """Where code for the CPU is kept: GPUGRAD_CACHE, or gpugrad in the user's folder of caches."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("GPUGRAD_CACHE") or Path(base) / "gpugrad")


def pool_text() -> str:
    """The source of the threads."""
    return (find_kernels() / "host" / "pool.cpp").read_text(encoding="utf-8")


@functools.cache
def pool(folder: Path) -> tuple[Path, ctypes.CDLL]:
    """The library of the threads that all compiled code shares; they sleep while there is nothing to do."""
    path = build(pool_text(), (*HOST_FLAGS, "-pthread"), folder, name="pool.cpp")
    library = ctypes.CDLL(str(path))
    library.gg_threads(threads.count())
    return path, library


def set_threads(n: int) -> None:
    """Let compiled code use n threads, the caller's own among them; results are the same bits for any n."""
    pool(host_folder())[1].gg_threads(n)


def host_text(body: str) -> str:
    """What the compiler gets for the CPU: our headers, then `body`."""
    return source(
        find_kernels() / "host" / "unit.cpp",
        '#include "loops.h"\n#include "rows.h"\n#include "attention.h"\n#include "conv.h"\n' + body,
    )


functions: dict[Path, Any] = {}  # by the file that stands for each


@functools.lru_cache(8)
def surroundings(cxx: str | None) -> str:
    """The hash of what all code for the CPU is compiled and linked with, but for its own text."""
    if cxx is None:
        raise CompileError("no C++ compiler found; install g++ or set CXX")
    return hashlib.sha256("\0".join([host_text(""), pool_text(), *HOST_FLAGS, identity(cxx)]).encode()).hexdigest()


def host_functions(sources: Sequence[str]) -> list[Any]:
    """Each source's function `NAME`, compiled for the CPU below the headers of `kernels/host`.

    What was ever compiled on this machine is found on disk, function by function; the others are compiled in one run.
    All None, after a warning, if that fails.
    """
    if not sources:
        return []
    folder = host_folder()
    try:
        common = surroundings(find())
        places = [folder / f"gg_{hashlib.sha256((common + text).encode()).hexdigest()[:24]}" for text in sources]
        new = {p: t for p, t in zip(places, sources) if p not in functions and not found_on_disk(p)}
        if new:
            body = "".join(text.replace("NAME", place.name) for place, text in new.items())
            path = build(host_text(body), HOST_FLAGS, folder, link=pool(folder)[0])
            library = ctypes.CDLL(str(path))
            for place in new:
                functions[place] = getattr(library, place.name)
                point(place, path)
    except (CompileError, OSError) as error:
        warn_once(str(error))
        return [None] * len(sources)
    return [functions[place] for place in places]


def found_on_disk(place: Path) -> bool:
    """Load the library that holds a function, if there is one."""
    if not place.exists():
        return False
    with contextlib.suppress(OSError, AttributeError):  # removed, or cut short, by another process
        library = place.resolve()
        os.utime(library)
        pool(place.parent)
        functions[place] = getattr(ctypes.CDLL(str(library)), place.name)
        return True
    return False


def point(place: Path, library: Path) -> None:
    """Let a function's file lead to its library; another process may do the same."""
    with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
        link = Path(scratch) / "link"
        link.symlink_to(library.name)
        link.replace(place)


@functools.cache
def warn_once(reason: str) -> None:
    """Say that NumPy does the work because compiling failed."""
    message = f"gpugrad: compiling for the CPU failed, NumPy is used instead: {reason}"
    warnings.warn(message, RuntimeWarning, stacklevel=4)
