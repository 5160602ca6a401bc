"""Every kernel in kernels/ with every dtype it is launched with, read from the sources themselves."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from gpugrad.backends.launch import FLOATS, TYPES
from gpugrad.kernel import find_kernels

ENTRY = re.compile(r"template <([^>]*)>\s*__global__ void (?:__launch_bounds__\([^)]*\)\s*)?(\w+)\(")
PLAIN = re.compile(r"^__global__ void (?:__launch_bounds__\([^)]*\)\s*)?(\w+)\(", re.M)
FLOAT_NAMES = [TYPES[d] for d in FLOATS]


def families() -> list[Path]:
    return sorted(find_kernels().glob("*.cu"))


def instances(path: Path) -> list[str]:
    """Name expressions of every kernel of a file, over what its template parameters stand for.

    T: the floating types. L: class numbers, or soft labels of type T. I: index types. Anything else is listed in the
    file, by a line such as `// F: Gelu, Silu` or `// D: 64, 128`.
    """
    text, found = path.read_text(), []
    listed = {m[1]: m[2].split(", ") for m in re.finditer(r"^// ([A-Z]\w*): (\S.*)$", text, re.M)}
    integers = [TYPES["int32"], TYPES["int64"]]
    for parameters, name in ENTRY.findall(text):
        variables = [p.split()[-1] for p in parameters.split(",")]
        values = {"T": FLOAT_NAMES, "I": integers, "L": [*integers, "T"]}
        missing = [v for v in variables if v not in values and v not in listed]
        assert not missing, f"{path.name}: say what {missing} of {name} stand for, as in // {missing[0]}: A, B"
        for chosen in itertools.product(*(listed.get(v) or values[v] for v in variables)):
            t = dict(zip(variables, chosen)).get("T", "T")
            found.append(f"{name}<{', '.join(t if c == 'T' else c for c in chosen)}>")
    templated = {i.split("<")[0] for i in found}
    found += [n for n in PLAIN.findall(text) if n not in templated]
    assert len({i.split("<")[0] for i in found}) == text.count("__global__"), f"{path.name}: an entry is missed"
    return found
