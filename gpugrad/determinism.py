"""What is promised about the bits of results."""

from __future__ import annotations

import re

from gpugrad.kernel import Kernel
from gpugrad.op import TABLE

UNORDERED = re.compile(r"\batomic(?:Add|Sub)\s*\(")  # in whatever order the threads come


def nondeterministic_ops() -> list[str]:
    """Names of the ops whose results may differ from run to run: none, as long as this list is empty.

    Promised: one program with one seed gives the same bits on one device with one set of libraries, forward and
    backward, however threads and blocks are scheduled. No kernel adds with atomics, and sums are formed in an order
    that follows from the sizes alone. The list is read from the kernels' sources.

    Not promised: equal bits on a CPU and a GPU, on two models of GPU or with two versions of CuPy or NumPy (random
    numbers are equal everywhere); which value stays where `x.at[i].set(v)` names an element twice on a GPU; and what a
    kernel of your own does (`cuda_op`).
    """
    import gpugrad.ops.optim  # noqa: F401 - fills the table, which happens at first use otherwise

    found = {name: op.impls.special.get("cuda") for name, op in TABLE.items()}
    kernels = {name: k for name, k in found.items() if isinstance(k, Kernel) and k.family}
    return sorted(name for name, k in kernels.items() if UNORDERED.search(k.code()))
