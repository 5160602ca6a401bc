"""What CuPy's functions take, read from the real CuPy, for its double to insist on.

python -m tests.cuda.signatures > gpugrad/testing/cupy_signatures.json      rewrites the table (needs no GPU)
"""

from __future__ import annotations

import functools
import inspect
import json
import re
import sys
from typing import Any

UFUNC = "(*args, out=0, where=0, dtype=0, casting=0)"
PLACES = (
    "",
    "linalg",
    "fft",
    "ndarray",
    "cuda",
    "cuda.Stream",
    "cuda.Graph",
    "cuda.MemoryPool",
    "cuda.driver",
    "cuda.runtime",
)


def parameters(f: Any, cupy: Any) -> str | None:
    """'(a, axis=0, *, copy=0)': names, kinds, and 0 where there is a default; None if CuPy does not tell."""
    if isinstance(f, cupy.ufunc):
        return UFUNC
    if isinstance(f, type):
        return None
    try:
        text = str(inspect.signature(f))
    except (TypeError, ValueError):
        first = (f.__doc__ or "").partition("\n")[0]
        found = re.match(r"[\w.]+(\(.*?\))(?: ->.*)?$", first)
        if found is None:
            return None
        text = found[1]
    return normal(text)


def normal(text: str) -> str:
    """A signature of Python or Cython without types, and with every default written 0."""
    parts = []
    for part in split(text[1 : text.rindex(")")]):
        name, default, _ = part.partition("=")
        name = name.partition(":")[0].split()[-1] if name.split() else ""
        if name not in ("self", "/", ""):
            parts.append(name + ("=0" if default else ""))
    return f"({', '.join(parts)})"


def split(text: str) -> list[str]:
    """At the commas outside brackets and quotes."""
    parts, depth = [""], 0
    for c in text:
        depth += (c in "([{") - (c in ")]}")
        if c == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += c
    return parts


def table(cupy: Any) -> dict[str, str | None]:
    """Every public function of the namespaces that the backend uses, by its dotted name."""
    found = {}
    for path in PLACES:
        place = functools.reduce(getattr, filter(None, path.split(".")), cupy)
        for name in dir(place):
            public = not name.startswith("_") or (path == "ndarray" and re.fullmatch(r"__\w+__", name))
            if public and callable(getattr(place, name)):
                found[f"{path}.{name}".lstrip(".")] = parameters(getattr(place, name), cupy)
    return dict(sorted(found.items()))


if __name__ == "__main__":
    import cupy

    json.dump(table(cupy), sys.stdout, indent=0)
    print()
