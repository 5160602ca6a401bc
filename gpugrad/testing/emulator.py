"""Runs CUDA C++ kernels on the CPU: compiles the unchanged source with g++ and launches it on NumPy arrays.

Needs a C++17 compiler (`g++`, or the one named by CXX). See `emulator.h` for what is emulated.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

HEADER = Path(__file__).with_name("emulator.h")
SCHEDULES = {"natural": 0, "reversed": 1, "random": 2}
FLAGS = ("-std=c++17", "-O1", "-g", "-fPIC", "-shared", "-fno-strict-aliasing", "-ffp-contract=off", "-fno-gnu-unique",
         "-fvisibility=hidden", "-w")  # fmt: skip
DYNAMIC = re.compile(r"extern\s+__shared__\s+(?:__align__\(\d+\)\s*)?([\w\s:]+?)\s+(\w+)\s*\[\s*\]\s*;")
MISSING_HEADERS = re.compile(r"^[ \t]*#[ \t]*include[ \t]*<(cuda_fp16\.h|cuda_bf16\.h|math_constants\.h)>", re.M)


class EmulatorError(RuntimeError):
    """The kernel did what CUDA forbids or leaves undefined, or the launch does not fit its signature."""


def compiler() -> str | None:
    """The C++ compiler to use, or None."""
    return shutil.which(os.environ.get("CXX", "g++"))


class Kernel:
    """One instantiation of a kernel, callable as `kernel(grid, block, args, shared_mem=0)` like CuPy's.

    schedule: 'natural', 'reversed' or 'random' order of the threads between waits; seed: of the random order;
    reverse_blocks: run the last block first. Arrays are NumPy arrays (or None for a null pointer), scalars must be
    NumPy scalars or ctypes values of exactly the parameter's type. Raises EmulatorError.
    """

    def __init__(self, library: ctypes.CDLL, index: int, name: str) -> None:
        self.name = name
        self._launch = getattr(library, f"emu_launch_{index}")
        self._launch.restype = ctypes.c_char_p
        describe = getattr(library, f"emu_signature_{index}")
        describe.restype = ctypes.c_char_p
        self.signature: list[str] = describe().decode().split()

    def __call__(
        self, grid: Sequence[int], block: Sequence[int], args: Sequence[Any], shared_mem: int = 0, *,
        schedule: str = "natural", seed: int = 0, reverse_blocks: bool = False,
    ) -> None:  # fmt: skip
        if len(args) != len(self.signature):
            raise EmulatorError(f"[{self.name}] takes {len(self.signature)} arguments, got {len(args)}")
        boxes = [box(self.name, i, a, kind) for i, (a, kind) in enumerate(zip(args, self.signature))]
        pointers = (ctypes.c_void_p * max(1, len(boxes)))(*[ctypes.addressof(b) for b in boxes])
        how: dict[str, Any] = {"schedule": schedule, "seed": seed, "reverse_blocks": reverse_blocks}
        self.launch_pointers(grid, block, ctypes.addressof(pointers), shared_mem, **how)

    def launch_pointers(
        self, grid: Sequence[int], block: Sequence[int], pointers: int, shared_mem: int = 0, *,
        schedule: str = "natural", seed: int = 0, reverse_blocks: bool = False,
    ) -> None:  # fmt: skip
        """Launch as cuLaunchKernel does: `pointers` is the address of an array of addresses, one an argument."""
        dims = [(ctypes.c_uint * 3)(*(*d, 1, 1, 1)[:3]) for d in (grid, block)]
        message = self._launch(
            ctypes.c_void_p(pointers),
            dims[0],
            dims[1],
            ctypes.c_size_t(shared_mem),
            SCHEDULES[schedule],
            ctypes.c_uint64(seed),
            int(reverse_blocks),
        ).decode()
        if message:
            extra = f" (schedule random, seed {seed})" if schedule == "random" else ""
            raise EmulatorError(f"[{self.name}] {message}{extra}")


def box(name: str, i: int, value: Any, kind: str) -> Any:
    """An argument as C memory, refused unless it has the parameter's own type and width."""
    if kind[0] == "p":
        if value is None or isinstance(value, np.uintp):  # an address by value, as CuPy takes a null pointer
            return ctypes.c_void_p(None if value is None else int(value))
        if not isinstance(value, np.ndarray):
            raise EmulatorError(f"[{name}] argument {i} is {type(value).__name__}, expected an array")
        if kind != "p1" and value.dtype.itemsize != int(kind[1:]):
            raise EmulatorError(
                f"[{name}] argument {i} is an array of {value.dtype}, expected elements of {kind[1:]} bytes"
            )
        return ctypes.c_void_p(value.ctypes.data)
    if kind[0] == "s" and isinstance(value, (np.void, np.ndarray)) and value.size == 1:  # a struct by value
        if value.nbytes != int(kind[1:]):
            raise EmulatorError(f"[{name}] argument {i} is a struct of {value.nbytes} bytes, expected {kind[1:]}")
        return (ctypes.c_char * value.nbytes).from_buffer_copy(value.tobytes())
    if not isinstance(value, (np.generic, bool)):
        raise EmulatorError(
            f"[{name}] argument {i} is {type(value).__name__}, expected a NumPy scalar; CuPy would pass 8 bytes"
            f" whatever the parameter's width ({kind})"
        )
    scalar = np.asarray(value)
    given = scalar.dtype.kind + str(scalar.dtype.itemsize)
    if given != kind:
        raise EmulatorError(f"[{name}] argument {i} is {scalar.dtype} ({given}), the parameter is {kind}")
    return (ctypes.c_char * scalar.itemsize).from_buffer_copy(scalar.tobytes())


class Module:
    """A source text compiled for the CPU; `names` are kernels or template instantiations such as 'scale<float>'.

    Libraries are cached by the hash of everything that went in. Raises EmulatorError with the compiler's messages,
    whose line numbers are those of `source`.
    """

    def __init__(
        self, source: str, names: Sequence[str], *, filename: str = "kernel.cu", flags: Sequence[str] = ()
    ) -> None:
        cxx = compiler()
        if cxx is None:
            raise EmulatorError("[emulator] no C++ compiler found; install g++ or set CXX")
        text = DYNAMIC.sub(r"\1* \2 = reinterpret_cast<\1*>(emu::dynamic_memory);", MISSING_HEADERS.sub("//", source))
        entries = "".join(f"EMU_ENTRY({i}, {name})\n" for i, name in enumerate(names))
        program = f'#include "{HEADER}"\n#line 1 "{filename}"\n{text}\n#line 1 "entries"\n{entries}'
        key = hashlib.sha256("\0".join([program, HEADER.read_text(), cxx, *FLAGS, *flags]).encode()).hexdigest()[:24]
        folder = Path(
            os.environ.get("GPUGRAD_EMULATOR_CACHE", Path(tempfile.gettempdir()) / f"gpugrad-emulator-{os.getuid()}")
        )
        target = folder / f"{key}.so"
        if not target.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as build:
                unit, made = Path(build) / "unit.cpp", Path(build) / "unit.so"
                unit.write_text(program)
                done = subprocess.run([cxx, *FLAGS, *flags, str(unit), "-o", str(made)], capture_output=True, text=True)
                if done.returncode:
                    raise EmulatorError(f"[emulator] {filename} does not compile:\n{done.stderr}")
                made.replace(target)
        library = ctypes.CDLL(str(target))
        self.kernels = {name: Kernel(library, i, name) for i, name in enumerate(names)}

    def __getitem__(self, name: str) -> Kernel:
        return self.kernels[name]
