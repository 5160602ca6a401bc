"""Compiling ahead of time: every kernel of a device, so that the first step of a training does not wait for a compiler.

What is compiled stays in the caches on disk, CuPy's for CUDA and ours for the CPU.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gpugrad.optim  # noqa: F401  its ops are in the table
from gpugrad import backends, compiler, jit
from gpugrad.backends.launch import FLOATS, OPTIONS, TYPES
from gpugrad.errors import DTypeError, fail
from gpugrad.kernel import find_kernels, source
from gpugrad.launch.activation import AFTER_BIAS

ENTRY = re.compile(r"template <([^>]*)>\s*__global__ void (?:__launch_bounds__\([^)]*\)\s*)?(\w+)\(")
PLAIN = re.compile(r"^__global__ void (?:__launch_bounds__\([^)]*\)\s*)?(\w+)\(", re.M)
FUNCTORS = (
    "Sgd", "Momentum", "Adagrad", "Adadelta", "RmsProp", "RmsPropMomentum", "RmsPropCentered", "RmsPropBoth", "Adam",
    "AmsGrad", "Adamax", "Nadam", "Average", "Clamp",
)  # fmt: skip

Say = Callable[[str], Any]


def families() -> list[Path]:
    """The .cu files."""
    return sorted(find_kernels().glob("*.cu"))


def instances(path: Path, dtypes: Sequence[str] = FLOATS) -> list[str]:
    """Name expressions of every kernel of a file, over what its template parameters stand for.

    T: the floating types. L: class numbers, or soft labels of type T. I: index types. Anything else is listed in the
    file, by a line such as `// F: Gelu, Silu` or `// D: 64, 128`.
    """
    text, found = path.read_text(encoding="utf-8"), []
    listed = {m[1]: m[2].split(", ") for m in re.finditer(r"^// ([A-Z]\w*): (\S.*)$", text, re.M)}
    integers = [TYPES["int32"], TYPES["int64"]]
    for parameters, name in ENTRY.findall(text):
        variables = [p.split()[-1] for p in parameters.split(",")]
        values = {"T": [TYPES[d] for d in dtypes], "I": integers, "L": [*integers, "T"]}
        missing = [v for v in variables if v not in values and v not in listed]
        assert not missing, f"{path.name}: say what {missing} of {name} stand for, as in // {missing[0]}: A, B"
        for chosen in itertools.product(*(listed.get(v) or values[v] for v in variables)):
            t = dict(zip(variables, chosen)).get("T", "T")
            found.append(f"{name}<{', '.join(t if c == 'T' else c for c in chosen)}>")
    templated = {i.split("<")[0] for i in found}
    found += [n for n in PLAIN.findall(text) if n not in templated]
    assert len({i.split("<")[0] for i in found}) == text.count("__global__"), f"{path.name}: an entry is missed"
    return found


def warm(device: str, dtypes: Sequence[str] = ("float32",), only: Sequence[str] = (), say: Say = lambda _: None) -> int:
    """Compile the kernels of `device` ('cpu' or 'cuda') for these dtypes; the number of them, 0 without a compiler.

    only: families, such as 'loss'; all by default. Raises DTypeError for a dtype without kernels, DeviceError.
    """
    wanted = FLOATS if device != "cpu" else ("float32", "float64")
    if strange := sorted(set(dtypes) - set(wanted)):
        raise fail(DTypeError, "warmup", f"there are no kernels of {', '.join(strange)}; expected {', '.join(wanted)}")
    if device == "cpu":
        return warm_host(dtypes, say)
    backend, count = backends.get(device), 0
    for path in families():
        if only and path.stem not in only:
            continue
        names = instances(path, dtypes)
        say(f"{path.stem}: {len(names)}")
        for name in names:  # as a launch does it: one module an instance
            backend.xp.RawModule(code=source(path), options=OPTIONS, name_expressions=[name]).get_function(name)
        count += len(names)
    return count


def host_sources(dtypes: Sequence[str]) -> Iterator[str]:
    """Every function of kernels/host/rows.h."""
    for kind in (jit.C_TYPES[d] for d in dtypes):
        for name, form in sorted({(name, form) for name, form, _ in jit.ROWS.values()}):
            for functor in AFTER_BIAS.values() if form == "BiasAct" else [None]:
                yield jit.entry(name, form, kind, *([functor] if functor else []))
        for functor in FUNCTORS:
            yield jit.entry("update", "Update", kind, functor)


def warm_host(dtypes: Sequence[str], say: Say) -> int:
    """Row kernels and optimiser steps; chains are a program's own."""
    if not compiler.enabled():
        say("no C++ compiler, or GPUGRAD_CPU_JIT=0: NumPy does the work")
        return 0
    sources = list(host_sources(dtypes))
    say(f"rows: {len(sources)}")
    return sum(f is not None for f in compiler.host_functions(sources))
