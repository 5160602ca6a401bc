"""replay: what users call. All that it needs is imported at its first use, which keeps `import gpugrad` fast."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


def replay(
    f: Callable[..., Any] | None = None, *, verify: bool = True, compiled: bool = False, strict: bool = True
) -> Any:
    """f as a step that is traced once and then replayed without Python; also a decorator, with or without options.

    f: a function of Tensors, arrays, numbers and nested containers of those, which reads and updates tensors outside
    by gpugrad's operations: a training step. The first call is eager, the second traces, later ones run the program,
    with the same bits; random numbers and learning rates go on as in eager steps. Results are new arrays without a
    graph; the `.grad` of leaves lives in memory of the step, which the next call overwrites. Another shape, dtype,
    layout, setting or Python value traces anew. `.program` is the newest program, `.fused` the same as it runs,
    `.frozen` lists the Python values that it was traced with.

    verify: the first replay also runs eagerly, and compares all that is left behind bit for bit. compiled: elementwise
    runs become one generated kernel each on a GPU, and products take along their bias, activation and its slope; on a
    CPU with a C++ compiler such runs, row kernels and optimisers are compiled. Their bits may differ; `verify` then
    computes what every such call is to give in float64, and each element has to be within the rounding that the ops'
    published bounds allow (`gpugrad.accuracy`), carried through the call, sums with their textbook bound.
    Raises ReplayError, with the line, where a replay would go wrong: a value read on the host, a Python value that
    the step itself changes or that changes at every call, random numbers or arrays of NumPy's, a selection by a mask,
    a result that still has its graph, or a replay that does not match. strict=False: such a step goes on eagerly
    instead, after a warning that says why; `.refused` keeps the reason.
    """
    from gpugrad.recorded import Replay

    if f is None:
        return functools.partial(replay, verify=verify, compiled=compiled, strict=strict)
    return Replay(f, verify, compiled, strict)
