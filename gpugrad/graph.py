"""How a Program runs on a GPU: as one CUDA graph."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from gpugrad import backends, proof
from gpugrad.backends.cublaslt import mask_of
from gpugrad.chain import picked
from gpugrad.chain_cuda import STATES
from gpugrad.epilogues import Product, join
from gpugrad.execute import Runner
from gpugrad.fuse import fuse
from gpugrad.op import TABLE
from gpugrad.program import Call, Program, Slot, bind, copies, execute, without_copies

WARP = 32  # threads of the smallest team that reduces a row


class Graph(Runner):
    """A program as a CUDA graph: arguments are copied to where it reads them, results from where it leaves them.

    What it cannot capture it runs call by call; `reason` then says why. `kept` and `compiled` as for `Host`: products
    take along what finishes them, and runs of elementwise calls become one generated kernel each.
    """

    def __init__(
        self, program: Program, kept: frozenset[int], like: list[Any], backend: Any, compiled: bool = False
    ) -> None:
        self.logical, self.backend, self.kept, self.compiled = program, backend, kept, compiled
        self.program = without_copies(program)
        if compiled:
            self.program = fuse(join(self.program, self.does), launchable, tuple(STATES))
        self.given = [a.copy() for a in like]
        self.written = [program.inputs.index(i) for i in program.written() if i in program.inputs]
        self.results: list[Any] = []
        self.reason, self.stream = "", backend.xp.cuda.get_current_stream()
        for n, call in enumerate(self.program.calls):  # compiles, which no capture may
            if call.op in self.program.chains and (run := self.standin(n, call)) is not None:
                run(*(self.blank(self.program.slots[r]) for r in call.reads()))
        try:
            with backend.capture() as self.graph:
                self.results = self.program.run(*self.given, perform=self.perform)
            program.planned_bytes = self.graph.pool.total_bytes()
        except Exception as error:
            self.reason = str(error)
        self.parts = list(enumerate(self.program.calls))
        if not self.reason:
            left = [program.inputs[i] for i in self.written] + [r for r in program.results if r not in kept]
            self.parts = [(-1, copies("arguments", program.inputs)), *self.parts, (-1, copies("results", left))]

    def blank(self, slot: Slot) -> Any:
        """Zeros that lie in memory as a value does."""
        xp, itemsize = self.backend.xp, slot.dtype.itemsize
        if 0 in slot.shape or any(s < 0 or s % itemsize for s in slot.strides):
            return xp.zeros(slot.shape, slot.dtype)
        extent = 1 + sum((n - 1) * s // itemsize for n, s in zip(slot.shape, slot.strides))
        return xp.lib.stride_tricks.as_strided(xp.zeros(extent, slot.dtype), slot.shape, slot.strides)

    def does(self, product: Product, operands: list[Slot]) -> bool:
        """Whether cuBLASLt does a product with its epilogue. It is done: a capture could not look for an algorithm."""
        gemm = self.backend.gemm
        before = gemm.composed
        product(gemm, [self.blank(s) for s in operands])
        return bool(gemm.composed == before)

    def perform(self, call: Call, values: dict[int, Any]) -> Any:
        """One call; a chain as one kernel, a joined product as one of cuBLASLt's."""
        run = self.standin(0, call)
        return execute(call, values) if run is None else tuple(run(*(values[r] for r in call.reads())))

    def standin(self, n: int, call: Call) -> Callable[..., Any] | None:
        """A chain's kernel, or a product with its epilogue."""
        chain, slots = self.program.chains.get(call.op), self.program.slots
        if chain is None:
            return None
        if isinstance(chain, Product):
            shapes = [slots[m].shape for m in call.makes()]
            return lambda *ins: [o.reshape(s) for o, s in zip(chain(self.backend.gemm, ins), shapes)]

        def run(*ins: Any) -> list[Any]:
            outs = [self.backend.xp.empty(slots[m].shape, slots[m].dtype) for m in call.makes()]
            return outs if chain.launch_cuda(outs, ins) else self.one_by_one(call, ins)

        return run

    def one_by_one(self, call: Call, ins: Any) -> list[Any]:
        """A chain's ops one after the other."""
        chain, values = self.program.chains[call.op], list(ins)

        def perform(op: str, operands: list[Any], attrs: dict[str, Any]) -> Any:
            first = next(a for a in operands if hasattr(a, "dtype"))
            return TABLE[op].impls[backends.of(first).array_type](*operands, **attrs)

        for step in chain.steps:
            values.append(perform(step.op, picked(values, step), dict(step.attrs)))
        outs = [values[o] for o in chain.outputs]
        for end in chain.ends:
            x = values[end.operand]
            outs.append(perform(end.op, [x], {"axis": tuple(range(x.ndim - end.axes, x.ndim)), "keepdims": False}))
        return [o.reshape(self.program.slots[m].shape) for o, m in zip(outs, call.makes())]

    def reference(self, n: int, call: Call, args: list[Any], values: dict[int, Any]) -> Any:
        """Op by op."""
        if call.op in TABLE:
            return execute(call, values)
        chain, known = self.program.chains[call.op], dict(values)
        if not isinstance(chain, Product):
            return tuple(self.one_by_one(call, args))
        for c in chain.calls:
            bind(c.outs, execute(c, known), known)
        made, slots = call.makes(), self.program.slots
        known = {m: known[m] if m in known else mask_of(self.backend.xp, known[made[0]]) for m in made}
        return tuple(known[m].reshape(slots[m].shape) for m in made)

    def needs(self, call: Call) -> list[int]:
        """Of a product also what its epilogue finishes."""
        calls = getattr(self.program.chains.get(call.op), "calls", ())
        made = {m for c in calls for m in c.makes()}
        return call.reads() + [r for c in calls for r in c.reads() if r not in made]

    def verdict(self, n: int, call: Call, got: list[Any], args: list[Any], values: dict[int, Any]) -> tuple[int, int]:
        """Of a chain's kernel, or a product with its epilogue; what a mask of bits does is seen where it is read."""
        joined = self.program.chains[call.op]
        if isinstance(joined, Product):
            return proof.joined(joined.calls, dict(zip(call.makes(), got)), values)
        return proof.chain(joined, got, args)

    @property
    def exact(self) -> Callable[..., list[Any]]:
        """What runs the program with the bits of the eager step."""
        return self.logical.run if self.compiled else self.run

    def run(self, *given: Any) -> list[Any]:
        """One launch, on arrays like those of the trace."""
        self.stream = self.backend.follow(self.stream)  # two streams shall not share the program's memory at once
        if self.reason:
            return self.program.run(*given, perform=self.perform)
        for place, a in zip(self.given, given):
            place[...] = a
        self.graph.launch()
        for i in self.written:
            given[i][...] = self.given[i]
        return [a if r in self.kept else a.copy() for r, a in zip(self.logical.results, self.results)]

    def timed(self, now: Callable[[], Any], keep: Callable[[Any], None], *given: Any) -> list[Any]:
        """The calls one by one between the same copies: how long each takes within a graph nobody can tell."""

        def perform(call: Call, values: dict[int, Any]) -> Any:
            made = self.perform(call, values)
            keep(now())
            return made

        self.stream = self.backend.follow(self.stream)
        keep(now())
        if self.reason:
            return self.program.run(*given, perform=perform)
        for place, a in zip(self.given, given):
            place[...] = a
        keep(now())
        results = self.program.run(*self.given, perform=perform)
        for i in self.written:
            given[i][...] = self.given[i]
        results = [a if r in self.kept else a.copy() for r, a in zip(self.logical.results, results)]
        keep(now())
        return results


def launchable(chain: Any, dtypes: list[Any], shape: tuple[int, ...]) -> bool:
    """Whether a chain can be one CUDA kernel, and saves a launch. Rows that it reduces have to keep a warp busy."""
    wide = all(math.prod(shape[len(shape) - e.axes :]) >= WARP for e in chain.ends)
    return len(chain.steps) + len(chain.ends) > 1 and wide and chain.source("cuda", dtypes) is not None
