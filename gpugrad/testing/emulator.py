"""Runs CUDA C++ kernels on the CPU: compiles the unchanged source with g++ and launches it on NumPy arrays.

Needs GCC 11 or newer (`g++`, or the one named by CXX) on Linux. `emulator.h` is what a kernel sees, `emulator.cpp` the
machine under it. `gpugrad.testing.check_kernel` runs a kernel in every way at once.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.array_utils import byte_bounds

from gpugrad.compiler import CompileError, build, find

HEADER = Path(__file__).with_name("emulator.h")
MACHINE = Path(__file__).with_name("emulator.cpp")
FREE, OUTPUT, CONSTANT = range(3)  # what a kernel does with an array, see emulator.h
compiler = find  # None: nothing can be emulated
POINTERS = "pcP"  # first letters of parameter kinds: pointer, to constants, to pointers
SCHEDULES = {"natural": 0, "reversed": 1, "random": 2}
FLAGS = ("-std=c++17", "-g1", "-gdwarf-4", "-fPIC", "-fno-strict-aliasing", "-ffp-contract=off", "-fno-gnu-unique",
         "-fvisibility=hidden", "-fstack-clash-protection", "-w")  # fmt: skip
MODES = {
    "plain": ("-O1",),
    "checked": ("-O1", "-fsanitize=thread,alignment,bounds,null,shift,signed-integer-overflow,integer-divide-by-zero",
                "--param=tsan-distinguish-volatile=1"),
}  # fmt: skip
DYNAMIC = re.compile(r"extern\s+__shared__\s+(?:__align__\(\d+\)\s*)?([\w\s:]+?)\s+(\w+)\s*\[\s*\]\s*;")
MISSING_HEADERS = re.compile(r"^[ \t]*#[ \t]*include[ \t]*<(cuda_fp16\.h|cuda_bf16\.h|math_constants\.h)>", re.M)


class EmulatorError(RuntimeError):
    """The kernel did what CUDA forbids or leaves undefined, or the launch does not fit its signature."""


class Range(ctypes.Structure):
    """Memory of an array argument, as emulator.h has it."""

    _fields_ = [("begin", ctypes.c_uint64), ("end", ctypes.c_uint64), ("element", ctypes.c_uint64),
                ("argument", ctypes.c_int), ("use", ctypes.c_int)]  # fmt: skip


class Launch(ctypes.Structure):
    """How to launch, as emulator.h has it."""

    _fields_ = [("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3), ("schedule", ctypes.c_int),
                ("reverse_blocks", ctypes.c_int), ("shared", ctypes.c_uint64), ("seed", ctypes.c_uint64),
                ("checked", ctypes.c_int), ("strict", ctypes.c_int), ("ranges", ctypes.c_uint64),
                ("range", ctypes.POINTER(Range))]  # fmt: skip


class Kernel:
    """One instantiation of a kernel, callable as `kernel(grid, block, args, shared_mem=0)` like CuPy's.

    schedule: 'natural', 'reversed' or 'random' order of the threads between waits; seed: of the random order;
    reverse_blocks: run the last block first. Arrays are NumPy arrays (or None for a null pointer, or np.uintp for any
    address), structs NumPy records or bytes of their size, scalars must be NumPy scalars of exactly the parameter's
    type. outputs: the numbers of the arguments that the kernel has to fill; one that leaves an element out, or reads an
    element before, is refused if the module is checked. Raises EmulatorError.
    """

    def __init__(self, module: Module, index: int, name: str) -> None:
        self.name, self.place, self._module = name, definition(module.source, name, module.filename), module
        self._launch = getattr(module.library, f"emu_launch_{index}")
        self._launch.restype = ctypes.c_char_p
        describe = getattr(module.library, f"emu_signature_{index}")
        describe.restype = ctypes.c_char_p
        self.signature: list[str] = describe().decode().split()

    def __call__(
        self, grid: Sequence[int], block: Sequence[int], args: Sequence[Any], shared_mem: int = 0, *,
        schedule: str = "natural", seed: int = 0, reverse_blocks: bool = False, outputs: Sequence[int] = (),
    ) -> None:  # fmt: skip
        if len(args) != len(self.signature):
            raise EmulatorError(f"[{self.name}] {self.place}: takes {len(self.signature)} arguments, got {len(args)}")
        boxes = [
            box(f"[{self.name}] {self.place}: argument {i}", a, kind)
            for i, (a, kind) in enumerate(zip(args, self.signature))
        ]
        pointers = (ctypes.c_void_p * max(1, len(boxes)))(*[ctypes.addressof(b) for b in boxes])
        ranges, strict = self.ranges(args, outputs)
        self.launch_pointers(
            grid, block, ctypes.addressof(pointers), shared_mem,
            schedule=schedule, seed=seed, reverse_blocks=reverse_blocks, ranges=ranges, strict=strict,
        )  # fmt: skip

    def ranges(self, args: Sequence[Any], outputs: Sequence[int]) -> tuple[list[Range], bool]:
        """The memory of array arguments, and whether it is all that the kernel can reach."""
        found, strict = [], True
        for i, (a, kind) in enumerate(zip(args, self.signature)):
            if isinstance(a, np.ndarray) and kind[0] in POINTERS:
                use = OUTPUT if i in outputs else CONSTANT if kind[0] == "c" else FREE
                found.append(Range(*byte_bounds(a), a.itemsize, i, use) if a.size else Range(0, 0, 1, i, FREE))
            elif isinstance(a, np.uintp) and a and kind[0] in "pc" and int(kind[1:]) > 8:  # one struct
                found.append(Range(int(a), int(a) + int(kind[1:]), 1, i, FREE))
            elif (isinstance(a, np.uintp) and a) or kind[0] == "P" or (kind[0] == "s" and holds_address(a)):
                strict = False  # it leads to memory that no argument tells of
        for r in found:
            shared = any(r.begin < s.end and s.begin < r.end and s.use != CONSTANT for s in found)
            if r.use == CONSTANT and (shared or not strict):
                r.use = FREE  # it may change, but not through this pointer
        return found, strict

    def launch_pointers(
        self, grid: Sequence[int], block: Sequence[int], pointers: int, shared_mem: int = 0, *,
        schedule: str = "natural", seed: int = 0, reverse_blocks: bool = False, ranges: Sequence[Range] = (),
        strict: bool = False,
    ) -> None:  # fmt: skip
        """Launch as cuLaunchKernel does: `pointers` is the address of an array of addresses, one an argument.

        ranges: what memory the arguments point to; strict: whether the kernel may touch no other.
        """
        how = Launch(
            (*grid, 1, 1, 1)[:3], (*block, 1, 1, 1)[:3], SCHEDULES[schedule], reverse_blocks, shared_mem, seed,
            self._module.mode == "checked", strict, len(ranges), (Range * len(ranges))(*ranges),
        )  # fmt: skip
        message = self._launch(ctypes.c_void_p(pointers), ctypes.byref(how)).decode()
        if message:
            extra = ", blocks reversed" if reverse_blocks else ""
            extra = f" (schedule {schedule}{f', seed {seed}' if schedule == 'random' else ''}{extra})"
            raise EmulatorError(
                f"[{self.name}] {self._module.symbolize(message.replace('@kernel@', self.place))}{extra}"
            )


def holds_address(record: Any) -> bool:
    """Whether any 8 bytes of a struct may be an address: sizes are smaller, double precision numbers larger."""
    data = record.tobytes()
    words = np.frombuffer(data[: len(data) // 8 * 8], np.uint64)
    return bool(((words > 2**40) & (words < 2**47)).any())


def box(label: str, value: Any, kind: str) -> Any:
    """An argument as C memory, refused unless it has the parameter's own type and width."""
    if kind[0] in POINTERS:
        if value is None or isinstance(value, np.uintp):  # an address by value, as CuPy takes a null pointer
            return ctypes.c_void_p(None if value is None else int(value))
        if not isinstance(value, np.ndarray):
            raise EmulatorError(f"{label} is {type(value).__name__}, expected an array")
        if kind[1:] != "1" and value.dtype.itemsize != int(kind[1:]):
            raise EmulatorError(f"{label} is an array of {value.dtype}, expected elements of {kind[1:]} bytes")
        return ctypes.c_void_p(value.ctypes.data)
    if kind[0] == "s" and isinstance(value, (np.void, np.ndarray)) and value.size == 1:  # a struct by value
        if value.nbytes != int(kind[1:]):
            raise EmulatorError(f"{label} is a struct of {value.nbytes} bytes, expected {kind[1:]}")
        return (ctypes.c_char * value.nbytes).from_buffer_copy(value.tobytes())
    if not isinstance(value, (np.generic, bool)):
        raise EmulatorError(
            f"{label} is {type(value).__name__}, expected a NumPy scalar; CuPy would pass 8 bytes"
            f" whatever the parameter's width ({kind})"
        )
    scalar = np.asarray(value)
    given = scalar.dtype.kind + str(scalar.dtype.itemsize)
    if given != kind:
        raise EmulatorError(f"{label} is {scalar.dtype} ({given}), the parameter is {kind}")
    return (ctypes.c_char * scalar.itemsize).from_buffer_copy(scalar.tobytes())


class Module:
    """A source text compiled for the CPU; `names` are kernels or template instantiations such as 'scale<float>'.

    mode: 'plain', or 'checked', which reports undefined operations (index, alignment, shift, overflow), memory outside
    of the arguments, reads of shared memory that nothing has written, and races within and between blocks, each with
    its line in the source, at about a tenth of the speed. The environment variable GPUGRAD_EMULATOR sets the default.
    Libraries are cached by the hash of everything that went in. Raises EmulatorError with the compiler's messages,
    whose line numbers are those of `source`.
    """

    def __init__(
        self, source: str, names: Sequence[str], *, filename: str = "kernel.cu", flags: Sequence[str] = (),
        mode: str | None = None,
    ) -> None:  # fmt: skip
        self.source, self.filename = source, filename
        self.mode = mode or os.environ.get("GPUGRAD_EMULATOR", "plain")
        if self.mode not in MODES:
            raise EmulatorError(f"[emulator] there is no mode {self.mode!r}; expected one of {', '.join(MODES)}")
        text = MISSING_HEADERS.sub("//", source)
        text = DYNAMIC.sub(r"\1* \2 = reinterpret_cast<\1*>(emu::here.dynamic_memory);", text)
        entries = "".join(f"EMU_ENTRY({i}, {name})\n" for i, name in enumerate(names))
        program = f'#include "emulator.h"\n#line 1 "{filename}"\n{text}\n#line 1 "entries"\n{entries}'
        self.machine = make(MACHINE.read_text(), ("-O2",), filename=MACHINE.name)
        self.path = make(program, (*MODES[self.mode], *flags), filename=filename, machine=self.machine)
        self.library = ctypes.PyDLL(str(self.path))  # keeps the GIL: the machine runs one kernel at a time
        self.kernels = {name: Kernel(self, i, name) for i, name in enumerate(names)}

    def __getitem__(self, name: str) -> Kernel:
        return self.kernels[name]

    def symbolize(self, message: str) -> str:
        """A message with each `@offset@` in it replaced by file and line."""
        return re.sub(r"@([0-9a-f]+)@", lambda m: line_of(self.path, m[1]), message)


def definition(source: str, name: str, filename: str) -> str:
    """'file:line' at which a kernel is defined, by the line numbers that the compiler gives."""
    line, start = 1, 0
    found = re.search(rf"__global__[^;{{]*?\b{re.escape(name.partition('<')[0])}\s*\(", source)
    above = source[: found.end() if found else 0]
    for mark in re.finditer(r'^#line (\d+) "([^"]*)"\n', above, re.M):
        line, filename, start = int(mark[1]), mark[2], mark.end()
    return f"{filename}:{line + above.count(chr(10), start)}"


def line_of(library: Path, offset: str) -> str:
    """'file:line' of an offset into a library, with the line that it was inlined at if that is in another file."""
    tool = shutil.which("addr2line")
    if tool is None:
        return f"offset 0x{offset} of {library}"
    found = subprocess.run([tool, "-i", "-e", str(library), f"0x{offset}"], capture_output=True, text=True).stdout
    frames = [re.sub(r" \(.*", "", f).rpartition("/")[2] for f in found.splitlines()]
    frames = [f for f in frames if not f.startswith(("emulator.", "?", "entries:"))] or ["an unknown line"]
    outer = next((f for f in frames if f.partition(":")[0] != frames[0].partition(":")[0]), None)
    return frames[0] + (f" (from {outer})" if outer else "")


def folder() -> Path:
    """Where compiled kernels are kept: GPUGRAD_EMULATOR_CACHE, or a folder of the user's among temporary files."""
    default = Path(tempfile.gettempdir()) / f"gpugrad-emulator-{os.getuid()}"
    return Path(os.environ.get("GPUGRAD_EMULATOR_CACHE", default))


def make(program: str, flags: Sequence[str], *, filename: str, machine: Path | None = None) -> Path:
    """The library made of a program; see `gpugrad.compiler.build`. Raises EmulatorError."""
    flags = (*FLAGS, *flags, f"-I{HEADER.parent}")
    try:
        return build(program, flags, folder(), name=filename, key=(HEADER.read_text(),), link=machine)
    except CompileError as error:
        raise EmulatorError(f"[emulator] {error}") from None
