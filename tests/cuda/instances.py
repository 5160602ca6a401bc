"""Every kernel in kernels/ with every dtype it is launched with, read from the sources themselves."""

from __future__ import annotations

import re
from pathlib import Path

from gpugrad.backends.cuda import FLOATS, TYPES
from gpugrad.kernel import find_kernels

ENTRY = re.compile(r"template <([^>]*)>\s*__global__ void (\w+)\(")
FLOAT_NAMES = [TYPES[d] for d in FLOATS]


def families() -> list[Path]:
    return sorted(find_kernels().glob("*.cu"))


def instances(path: Path) -> list[str]:
    """Name expressions: T over the floating types, L (labels) over the class number types and T."""
    found = []
    for parameters, name in ENTRY.findall(path.read_text()):
        variables = [p.split()[-1] for p in parameters.split(",")]
        assert variables in (["T"], ["T", "L"]), f"{path.name}: {name} has template parameters {variables}"
        labels = (TYPES["int32"], TYPES["int64"], None) if len(variables) == 2 else (None,)
        for t in FLOAT_NAMES:
            found += [f"{name}<{', '.join([t, x or t][: len(variables)])}>" for x in labels]
    assert len({i.split("<")[0] for i in found}) == path.read_text().count("__global__"), (
        f"{path.name}: an entry is missed"
    )
    return found
