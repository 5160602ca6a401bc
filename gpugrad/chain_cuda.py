"""Chains as CUDA kernels: the source, on kernels/chain.cuh, and the launch."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpugrad import backends, tuning
from gpugrad.backends.launch import FLOATS, Launch
from gpugrad.chain import DROPOUT, Chain, body, common_shape, drop_factor, merged, real_type, strides_in
from gpugrad.kernel import Kernel
from gpugrad.launch.reduce import STATE, STORED, WIDEST, plan, tile

PLACES = 6  # dimensions of struct Layout in kernels/chain.cuh
FULL, ONE, PLACED = "full", "one", "placed"  # how an input lies in the common shape: as it is, one element, broadcast
STATES = {"sum": "Sum", "mean": "Sum", "max": "Largest"}  # of kernels/reduce.cuh, by the ops that may end a chain


def cuda_source(chain: Chain, given: Sequence[Any], forms: Sequence[str] = ()) -> str | None:
    """A chain as the CUDA kernel template `chain` on kernels/chain.cuh; None if it cannot be one.

    forms: FULL, ONE or PLACED for every input, FULL by default (a counter is none of them).
    """
    lines, dtype, dtypes = body(chain, given), real_type(chain, given), chain.dtypes(given)
    drops = [s for s in chain.steps if s.op == DROPOUT]
    counters = [s.operands[1] for s in drops]
    if (
        lines is None
        or dtype is None
        or dtype.name not in FLOATS
        or chain.order
        or len({e.axes for e in chain.ends}) > 1
    ):
        return None
    if any(dtypes[e.operand] != dtype or e.op not in STATES for e in chain.ends):
        return None
    forms = forms or [FULL] * chain.inputs
    inputs = [i for i in range(chain.inputs) if i not in counters]
    full = [i for i in inputs if forms[i] == FULL]
    masks = {i for i, d in enumerate(dtypes) if d.kind == "b"}
    stored = {i: "unsigned long long" if i in counters else "bool" if i in masks else "T" for i in range(len(dtypes))}
    names = [f"x{v}" if v < chain.inputs else f"v{v - chain.inputs}" for v in range(len(dtypes))]
    parameters = [f"{stored[v]}* y{k}" for k, v in enumerate(chain.outputs)]
    parameters += [f"void* e{k}" for k in range(len(chain.ends))]
    parameters += [f"const {stored[i]}* p{i}" for i in range(chain.inputs)]
    sizes = ["rows", "cols", "slices", "span"] if chain.ends else ["n"]
    parameters += [*(f"long long {s}" for s in sizes), *["int form"][: len(chain.ends)]]
    parameters += [f"Layout at{i}" for i in inputs if forms[i] == PLACED]
    kind = {i: "bool" if i in masks else "A" for i in inputs}
    opened = [f"{kind[i]} x{i} = widen(p{i}[0]);" for i in inputs if forms[i] == ONE]
    reads = [f"{kind[i]} x{i} = widen(p{i}[at{i}(i)]);" for i in inputs if forms[i] == PLACED]
    for k, counter in enumerate(counters):
        parameters += [f"unsigned long long {word}{k}" for word in ("key_a", "key_b", "keep")] + [f"Acc<T> scale{k}"]
        opened.append(f"Dropped<A> drop{k}(p{counter}, key_a{k}, key_b{k}, keep{k}, scale{k}, first);")
        reads.append(f"A m{k} = drop{k}[k];")
    leaving = (*chain.outputs, *(e.operand for e in chain.ends))
    stores = [f"r[{k}] = {names[v]};" for k, v in enumerate(leaving)]
    outputs = ", ".join(f"{{y{k}, {str(v in masks).lower()}}}" for k, v in enumerate(chain.outputs))
    before, takes, after = ["Team team = whole_grid();"], [], []
    begin, end = "0", "n"
    if chain.ends:
        before = ["Slice part(rows, cols, slices, span);", "if (part.number < 0) return;", "Team team = row_team();"]
        begin, end = "part.begin", "part.end"
    for k, e in enumerate(chain.ends):
        divisor = "cols" if e.op == "mean" else "1"
        before += [
            f"Reduction<T, {STATES[e.op]}> end{k}{{A({divisor}), A(1), form}};",
            f"States<T> s{k}(end{k}.none());",
        ]
        takes.append(f"s{k}.v[place] = end{k}(s{k}.v[place], r[{len(chain.outputs) + k}]);")
        after.append(f"conclude(end{k}, s{k}, e{k}, part.number);")
    span = "8" if drops else "Packet<T>::N"

    def block(statements: Sequence[str], indent: int) -> str:
        return ("\n" + " " * indent).join(statements)

    return f"""#include "chain.cuh"

template <class T> __global__ void __launch_bounds__(512, 1) chain({", ".join(parameters)}) {{
    using A = Acc<T>;
    {block(before, 4)}
    const Output out[] = {{{outputs or "{nullptr, false}"}}};
    auto start = [=](long long first) {{
        {block(opened, 8)}
        return [=](A* r, long long i, int k{"".join(f", {kind[i]} x{i}" for i in full)}) {{
            {block([*reads, *lines, *stores], 12)}
        }};
    }};
    auto take = [&](const A* r, int place) {{ {" ".join(takes)} }};
    compute<T, {span}, {len(chain.outputs)}, {len(leaving)}>(team, {begin}, {end}, start, take, out{
        "".join(f", p{i}" for i in full)
    });
    {block(after, 4)}
}}
"""


def once(a: Any) -> Any:
    """The elements of a broadcast array, each once: axes that repeat them have length 1."""
    return a[tuple(slice(0, 1) if s == 0 else slice(None) for s in a.strides)] if 0 in a.strides else a


def form_of(a: Any, shape: tuple[int, ...]) -> str:
    """How an array lies in the common shape."""
    return FULL if a.shape == shape else ONE if a.size == 1 else PLACED


def place(own: tuple[int, ...], shape: tuple[int, ...]) -> bytes | None:
    """struct Layout of a contiguous array of shape `own` in the common shape; None if that takes too many axes."""
    model = np.lib.stride_tricks.as_strided(np.empty(1, "i1"), own, [math.prod(own[i + 1 :]) for i in range(len(own))])
    axes = merged(shape, [model])
    if len(axes) > PLACES:
        return None
    strides = strides_in(model, shape)
    rest = [0] * (PLACES - len(axes))
    words = [len(axes), *(n for n, _ in axes), *rest, *(strides[d] for _, d in axes), *rest]
    return np.array(words, np.int64).tobytes()


@functools.lru_cache(1024)
def cuda_launch(chain: Chain, given: tuple[np.dtype[Any], ...], forms: tuple[str, ...], backend: Any) -> Launch | None:
    """The launch of a chain's kernel; one for each way in which its inputs lie."""
    text = cuda_source(chain, given, forms)
    return None if text is None else Launch(backend, Kernel("chain", "chain", None, text), None)


@functools.lru_cache(8)
def finish(backend: Any) -> Launch:
    """The launch of what merges the slices of a row."""
    return Launch(backend, Kernel("reduce", "reduce_finish"), None)


def launch_cuda(chain: Chain, outs: Sequence[Any], ins: Sequence[Any]) -> bool:
    """See `Chain.launch_cuda`."""
    many, shape, drops = len(chain.outputs), common_shape(chain, ins), [s for s in chain.steps if s.op == DROPOUT]
    counters, ins = {s.operands[1] for s in drops}, list(map(once, ins))
    forms = tuple(FULL if i in counters else form_of(a, shape) for i, a in enumerate(ins))
    launch = cuda_launch(chain, tuple(a.dtype for a in ins), forms, backends.of(outs[0]))  # type: ignore[arg-type]
    places = [place(a.shape, shape) for a, form in zip(ins, forms) if form == PLACED]
    fit = all(o.flags.c_contiguous for o in outs) and all(o.shape == shape for o in outs[:many])
    if launch is None or None in places or not fit or (chain.ends and 0 in shape):
        return False
    dtype = real_type(chain, [a.dtype for a in ins])
    numbers: list[Any] = []
    for step in drops:
        attrs = dict(step.attrs)
        factor = float(drop_factor(attrs["p"], dtype))  # type: ignore[arg-type]
        numbers += [*attrs["key"], round((1.0 - attrs["p"]) * 2**32), factor]
    if chain.ends:
        launch_rows(chain, launch, dtype, shape, outs, ins, [*places, *numbers])
        return True
    size, backend = outs[0].size, launch.backend
    pieces = -(-size // (8 if drops else 16 // dtype.itemsize))  # type: ignore[union-attr]
    args = (*outs, *ins, size, *places, *numbers)

    def run(threads: int) -> None:
        grid = (min(-(-pieces // threads), 32 * 256 // threads * backend.processors),)
        launch.tiles("chain", (dtype,), args, grid, (threads,))

    if size:
        again = not {o.data.ptr for o in outs} & {a.data.ptr for a in ins}  # it may be run more than once
        run(tuning.choose(backend, str(launch.kernel.text), size, run) if again else tuning.BLOCKS[0])
    return True


def launch_rows(
    chain: Chain, launch: Launch, dtype: Any, shape: tuple[int, ...], outs: Sequence[Any], ins: Sequence[Any],
    more: list[Any],
) -> None:  # fmt: skip
    """A chain with ends, cut as kernels/reduce.cu cuts rows: from the sizes alone, for the same sums everywhere."""
    many, inner = len(chain.outputs), chain.ends[0].axes
    rows, cols = math.prod(shape[: len(shape) - inner]), math.prod(shape[len(shape) - inner :])
    cut, results = plan(cols, 1, dtype.itemsize), outs[many:]
    states, form = results, STORED
    if cut.slices > 1:
        wide = "float64" if dtype.itemsize == 8 else "float32"
        states, form = [launch.xp.empty(rows * cut.slices, wide) for _ in results], STATE
    args = (*outs[:many], *states, *ins, rows, cols, cut.slices, cut.span, form, *more)
    launch.rows("chain", (dtype,), args, rows * cut.slices, min(cols, cut.span, WIDEST))
    if cut.slices > 1:
        for end, out, parts in zip(chain.ends, results, states):
            args = (out, parts, cut.slices, 1, float(cols) if end.op == "mean" else 1.0, 1.0, STORED)
            finish(launch.backend).tiles("reduce_finish", (dtype, STATES[end.op]), args, (rows,), tile(1))
