"""gpugrad: eager, replayed, and replayed with its elementwise loops compiled."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gpugrad as gg
from gpugrad import backends
from gpugrad.bench.peers import BATCH, Arrays, Step, Unable
from gpugrad.bench.peers.functional import Functional
from gpugrad.bench.workloads import Workload
from gpugrad.nn import functional as F

STEPS, PROFILED = 50, 0.2  # at most so many steps, or seconds, are profiled
ROWS = 12  # of a profile that are kept


class Eager(Functional):
    """Op by op."""

    F = F

    def __init__(self, device: str, dtype: str, threads: int) -> None:
        super().__init__(device, dtype, threads)
        if device != "cpu":
            gg.synchronize(device)

    def put(self, arrays: Arrays) -> Arrays:
        """On the device."""
        return [gg.asarray(a).to(device=self.device) for a in arrays]

    def leaves(self, arrays: Arrays) -> Arrays:
        """Copies on the device, to be differentiated."""
        return [gg.tensor(a, device=self.device, requires_grad=True) for a in arrays]

    def prepared(self, workload: Workload, step: Step) -> Step:
        """The step as it is timed."""
        return step

    def train(self, workload: Workload, parameters: Arrays, batch: Arrays) -> Step:
        """Forward, backward, update."""
        p, batch = self.leaves(parameters), self.put(batch)
        kind = {"sgd": gg.optim.SGD, "adam": gg.optim.Adam}[workload.optimizer]
        optimizer = kind(p, **dict(workload.rates))

        def step() -> Arrays:
            loss = workload.loss(self, p, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return [loss.detach()]

        return self.prepared(workload, step)

    def gradient(self, workload: Workload, parameters: Arrays, batch: Arrays) -> Step:
        """Forward and backward."""
        p, batch = self.leaves(parameters), self.put(batch)

        def step() -> Arrays:
            loss = workload.loss(self, p, batch)
            return [loss.detach(), *gg.gradients(loss, p)]

        return self.prepared(workload, step)

    def hvp(self, workload: Workload, parameters: Arrays, batch: Arrays) -> Step:
        """Forward over reverse."""
        p, v, batch = self.put(parameters), self.put([0.5 * a for a in parameters]), self.put(batch)

        def loss(*p: Any) -> Any:
            return workload.loss(self, list(p), batch)

        return self.prepared(workload, lambda: list(gg.hvp(loss, tuple(p), tuple(v))))

    def epoch(self, workload: Workload, parameters: Arrays, batch: Arrays) -> Step:
        """One pass of ArrayLoader."""
        loader = gg.data.ArrayLoader(*batch, batch_size=BATCH, device=self.device)

        def step() -> Arrays:
            total: Any = 0
            for images, labels in loader:
                images.data[0, 0, 0, 0]
                total = labels.sum() + total
            return [total]

        return step

    def numpy(self, array: Any) -> Any:
        """Waits."""
        return array.numpy()

    def synchronize(self, outputs: Arrays) -> None:
        """Of the whole device."""
        if self.device != "cpu":
            gg.synchronize(self.device)

    def device_seconds(self, run: Callable[[], None]) -> float | None:
        """CUDA events on the current stream."""
        if self.device == "cpu":
            return super().device_seconds(run)
        backend: Any = backends.get(self.device)
        start = backend.moment()
        run()
        end = backend.moment()
        backend.synchronize()
        return float(backend.seconds(start, end))

    def peak(self) -> int | None:
        """What the pool has reserved, which it does not give back."""
        return None if self.device == "cpu" else gg.memory(self.device)["reserved"]

    def launches(self, step: Step) -> int | None:
        """Of kernels of ours, which leaves out the library's products."""
        if self.device == "cpu":
            return None
        backend: Any = backends.get(self.device)
        before = backend.launches
        step()
        return int(backend.launches - before)

    def products(self) -> list[str] | None:
        """Types and cuBLASLt's compute types, of all products of this process."""
        return None if self.device == "cpu" else backends.get(self.device).gemm.computed()  # type: ignore[attr-defined]

    def profile(self, step: Step) -> list[dict[str, Any]] | None:
        """What a step's time goes to, the slowest first; seconds, bytes and flops are those of one step."""
        steps, start = 0, time.perf_counter()
        with gg.profile(self.device) as found:
            while not steps or (steps < STEPS and time.perf_counter() - start < PROFILED):
                step()
                steps += 1
        rows = [r for r in found.rows if r.phase != "prepared"]  # a replay, to be timed
        whole = found.outside + sum(r.seconds for r in rows)
        shown = [
            {"op": r.op, "phase": r.phase, "share": r.seconds / whole, "seconds": r.seconds / steps,
             "calls": r.calls // steps, "bytes": r.bytes // steps, "flops": r.flops // steps}
            for r in rows[:ROWS]
        ]  # fmt: skip
        return [*shown, {"op": "outside the ops", "phase": "", "calls": 1, "share": found.outside / whole}]

    def rates(self) -> tuple[float, float] | None:
        """Of the device; on the CPU NumPy speaks for us."""
        if self.device == "cpu":
            return None
        a, m = gg.ones(1 << 26, device=self.device), gg.ones((4096, 4096), device=self.device)
        xp = backends.get(self.device).xp
        b = xp.empty_like(a.data)
        return 2 * b.nbytes / self.fastest(lambda: xp.copyto(b, a.data)), 2 * 4096**3 / self.fastest(lambda: m @ m)

    def fastest(self, work: Callable[[], Any]) -> float:
        """Seconds of the best of ten, by events."""
        work()
        return min(self.device_seconds(work) or 1e9 for _ in range(10))


class Replay(Eager):
    """Traced once, then replayed."""

    compiled = False

    def prepared(self, workload: Workload, step: Step) -> Step:
        """Through `gg.replay`."""
        if workload.eager:
            raise Unable("a program of that many operations is not unrolled")
        return gg.replay(step, compiled=self.compiled)  # type: ignore[no-any-return]

    def launches(self, step: Step) -> int | None:
        """A captured step counts as one."""
        found = super().launches(step)
        return None if found is None else max(1, found)

    def epoch(self, workload: Workload, parameters: Arrays, batch: Arrays) -> Step:
        """The same as eager."""
        raise Unable("a loader is not replayed")


class Compiled(Replay):
    """Replayed, on the CPU by loops that the C++ compiler makes of the kernels' functors, on a GPU by fused kernels."""

    compiled = True

    def prepared(self, workload: Workload, step: Step) -> Step:
        """On the CPU it needs a compiler."""
        from gpugrad import compiler

        if self.device == "cpu" and not compiler.enabled():
            raise Unable("no C++ compiler was found")
        return super().prepared(workload, step)
