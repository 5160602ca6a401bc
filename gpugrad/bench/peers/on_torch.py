"""PyTorch: eager, torch.compile, and on a GPU eager steps in a CUDA graph."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from gpugrad.bench.peers import BATCH, Arrays, Step, Unable
from gpugrad.bench.peers.functional import Functional
from gpugrad.bench.workloads import Workload


class Torch(Functional):
    """Op by op, with the default optimisers; true float32."""

    F = F

    def __init__(self, device: str, dtype: str, threads: int) -> None:
        super().__init__(device, dtype, threads)
        torch.set_num_threads(threads)
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        if device != "cpu" and not torch.cuda.is_available():
            raise Unable("this build of torch, or this machine, has no CUDA")

    def put(self, arrays: Arrays) -> Arrays:
        """On the device."""
        return [self.tensor(a).to(self.device) for a in arrays]

    def tensor(self, array: Any) -> Any:
        """Shares the memory of what NumPy has itself; bfloat16 it has not."""
        own = array.dtype.name != "bfloat16"
        return torch.from_numpy(array) if own else torch.from_numpy(array.astype("float32")).bfloat16()

    def leaves(self, arrays: Arrays) -> Arrays:
        """Copies, to be differentiated."""
        return [t.clone().requires_grad_() for t in self.put(arrays)]

    def compiled(self, workload: Workload, function: Callable[..., Any]) -> Callable[..., Any]:
        """What torch.compile would be applied to."""
        return function

    def prepared(self, step: Step) -> Step:
        """The step as it is timed."""
        return step

    def optimizer(self, workload: Workload, p: Arrays) -> Any:
        """The default implementation."""
        kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[workload.optimizer]
        return kind(p, **dict(workload.rates))

    def train(self, workload: Workload, parameters: Arrays, batch: Arrays) -> Step:
        """Forward, backward, update."""
        p, batch = self.leaves(parameters), self.put(batch)
        optimizer = self.optimizer(workload, p)
        loss_of = self.compiled(workload, lambda p, batch: workload.loss(self, p, batch))
        update = self.compiled(workload, optimizer.step)

        def step() -> Arrays:
            optimizer.zero_grad()
            loss = loss_of(p, batch)
            loss.backward()
            update()
            return [loss.detach()]

        return self.prepared(step)

    def gradient(self, workload: Workload, parameters: Arrays, batch: Arrays) -> Step:
        """Forward and backward."""
        p, batch = self.leaves(parameters), self.put(batch)
        loss_of = self.compiled(workload, lambda p, batch: workload.loss(self, p, batch))

        def step() -> Arrays:
            loss = loss_of(p, batch)
            return [loss.detach(), *torch.autograd.grad(loss, p)]

        return self.prepared(step)

    def hvp(self, workload: Workload, parameters: Arrays, batch: Arrays) -> Step:
        """Reverse over reverse."""
        p, v, batch = self.leaves(parameters), self.put([0.5 * a for a in parameters]), self.put(batch)

        def step() -> Arrays:
            grads = torch.autograd.grad(workload.loss(self, p, batch), p, create_graph=True)
            return list(torch.autograd.grad(grads, p, v))

        return self.prepared(step)

    def epoch(self, workload: Workload, parameters: Arrays, batch: Arrays) -> Step:
        """DataLoader without workers: with them it is slower here."""
        data = torch.utils.data.TensorDataset(*(torch.from_numpy(a) for a in batch))
        loader = torch.utils.data.DataLoader(data, batch_size=BATCH, shuffle=True, pin_memory=self.device != "cpu")

        def step() -> Arrays:
            total: Any = 0
            for images, labels in loader:
                images, labels = images.to(self.device), labels.to(self.device)
                images[0, 0, 0, 0]
                total = total + labels.sum()
            return [total]

        return step

    def numpy(self, array: Any) -> Any:
        """Waits."""
        return np.asarray(array.detach().cpu().float() if array.dtype == torch.bfloat16 else array.detach().cpu())

    def synchronize(self, outputs: Arrays) -> None:
        """Of the whole device."""
        if self.device != "cpu":
            torch.cuda.synchronize()

    def device_seconds(self, run: Callable[[], None]) -> float | None:
        """CUDA events."""
        if self.device == "cpu":
            return super().device_seconds(run)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    def peak(self) -> int | None:
        """What the caching allocator reserved at most."""
        return None if self.device == "cpu" else int(torch.cuda.max_memory_reserved())

    def launches(self, step: Step) -> int | None:
        """Kernels in a trace of the profiler."""
        if self.device == "cpu":
            return None
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            step()
            torch.cuda.synchronize()
        names = [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        return sum(not name.startswith(("Memcpy", "Memset")) for name in names) or None

    def rates(self) -> tuple[float, float] | None:
        """A copy and a product."""
        n = 1024 if self.device == "cpu" else 4096
        a, m = torch.ones(1 << 26, device=self.device), torch.ones(n, n, device=self.device)
        b = torch.zeros_like(a)
        return 2 * 4 * a.numel() / self.fastest(lambda: b.copy_(a)), 2 * n**3 / self.fastest(lambda: m @ m)

    def fastest(self, work: Callable[[], Any]) -> float:
        """Seconds of the best of ten."""
        seen = []
        for _ in range(11):
            start = time.perf_counter()
            on_device = self.device_seconds(work)
            seen.append(time.perf_counter() - start if on_device is None else on_device)
        return min(seen[1:])


class Compiled(Torch):
    """torch.compile of the loss, with its backward, and of the optimiser's step."""

    def compiled(self, workload: Workload, function: Callable[..., Any]) -> Callable[..., Any]:
        """With the default mode."""
        if workload.eager:
            raise Unable("a program of that many operations is not unrolled")
        return torch.compile(function)  # type: ignore[no-any-return]

    def hvp(self, workload: Workload, parameters: Arrays, batch: Arrays) -> Step:
        """Not offered."""
        raise Unable("torch.compile does not differentiate its backward")

    def epoch(self, workload: Workload, parameters: Arrays, batch: Arrays) -> Step:
        """Nothing to compile."""
        raise Unable("a loader is not compiled")


class Graph(Torch):
    """Three eager steps on a stream of their own, then the captured one."""

    def optimizer(self, workload: Workload, p: Arrays) -> Any:
        """Adam's step count has to live on the device."""
        if workload.optimizer == "adam":
            return torch.optim.Adam(p, **dict(workload.rates), capturable=True)
        return super().optimizer(workload, p)

    def prepared(self, step: Step) -> Step:
        """As torch's notes on CUDA graphs have it."""
        graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        done, outputs = 0, []

        def run() -> Arrays:
            nonlocal done, outputs
            done += 1
            if done <= 3:
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    outputs = step()
                torch.cuda.current_stream().wait_stream(side)
                return outputs
            if done == 4:
                with torch.cuda.graph(graph):
                    outputs = step()
            graph.replay()
            return outputs

        return run

    def epoch(self, workload: Workload, parameters: Arrays, batch: Arrays) -> Step:
        """Nothing to capture."""
        raise Unable("a loader is not captured")
