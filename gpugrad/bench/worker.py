"""One framework on one workload in a process of its own: `python -m gpugrad.bench.worker`.

The first line of stdin is the job, every further one a command; each is answered by one line of JSON on stdout.
Between commands the process sleeps. What libraries print goes to stderr.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy.random  # noqa: F401  NumPy loads it when it is first asked for, which is no framework's memory

from gpugrad.bench import gate, workloads
from gpugrad.bench.peers import Arrays, Entry, Unable

Answer = dict[str, Any]
COMMANDS = ("load", "first", "warm", "round", "finish", "rates")
LEARNED = 3  # steps after which whatever is traced or compiled has been


class Worker:
    """A peer, its step, and how long a step takes."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.workload = workloads.find(job["workload"])
        self.outputs: Arrays = []
        self.estimate = 0.0

    def load(self) -> Answer:
        """Import the framework."""
        entry = Entry(self.job["spec"], self.job["package"], "")
        self.peer = entry.load()(self.job["device"], self.job["dtype"], self.job["threads"])
        return {}

    def first(self, steps: list[int]) -> Answer:
        """Make the step and run it: the digests of these steps, the seconds of the first and of the first three.

        The latter includes what happens before: arrays are handed over, parameters copied. The arrays themselves
        were made earlier. For a memory workload a tiny twin runs first, so that the peak holds no library's start.
        """
        if self.workload.memory:
            tiny = workloads.find(f"{self.workload.family}:8")
            warm = self.peer.step(tiny, *tiny.arrays(self.job["dtype"]))
            for _ in range(LEARNED):
                self.peer.synchronize(warm())
            del warm
            gc.collect()
        self.before = resident()
        arrays = self.workload.arrays(self.job["dtype"])
        reset_peak()
        start = time.perf_counter()
        self.step = self.peer.step(self.workload, *arrays)
        found, spent = [], [0.0]
        for k in range(1, max(steps) + 1):
            self.outputs = self.step()
            self.peer.synchronize(self.outputs)
            spent.append(time.perf_counter() - start)
            if k in steps:
                found.append([gate.digest(self.peer.numpy(a)) for a in self.outputs])
            start += time.perf_counter() - start - spent[-1]  # the digest does not count
        return {"digests": found, "first_s": spent[1], "learned_s": spent[min(LEARNED, len(spent) - 1)]}

    def warm(self, seconds: float) -> Answer:
        """Run until the time is up; how long a step takes then."""
        done, n, end = 0.0, 1, time.perf_counter() + seconds
        while not done or time.perf_counter() < end:
            done = self.timed(n)["wall"]
            n = max(1, min(2 * n, int(0.5 * seconds / max(done, 1e-9))))
        self.estimate = done
        return {"step_s": done}

    def round(self, seconds: float) -> Answer:
        """One measurement."""
        gc.collect()
        return self.timed(max(1, round(seconds / self.estimate)))

    def timed(self, steps: int) -> Answer:
        """Seconds a step on the host's clock, read with nothing under way, and between two events on a device."""

        def run() -> None:
            for _ in range(steps):
                self.outputs = self.step()

        self.peer.synchronize(self.outputs)
        start = time.perf_counter()
        device = self.peer.device_seconds(run)
        self.peer.synchronize(self.outputs)
        wall = (time.perf_counter() - start) / steps
        return {"wall": wall, "device": None if device is None else device / steps, "steps": steps}

    def finish(self) -> Answer:
        """Peak bytes of the host (over what was there before the data) and the device, launches, where the time goes.

        steady_bytes: the host's peak in later steps alone, when whatever is traced or compiled has been. products: what
        matrix products were computed in.
        """
        whole = highest()
        reset_peak()
        self.timed(LEARNED)
        steady = highest()
        return {
            "host_bytes": max(whole, steady) - self.before,
            "steady_bytes": max(0, steady - self.before),
            "device_bytes": self.peer.peak(), "launches": self.peer.launches(self.step),
            "products": self.peer.products(), "profile": self.peer.profile(self.step),
        }  # fmt: skip

    def rates(self) -> Answer:
        """What a copy and a product reach."""
        found = self.peer.rates()
        return {"copy": found and found[0], "product": found and found[1]}


def resident() -> int:
    """Bytes of this process in memory now."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return highest()


def reset_peak() -> None:
    """Forget the highest value of `resident`, where the system lets us."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def highest() -> int:
    """The largest value of `resident` since the reset, or since the start."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def answer(worker: Worker, do: str, **given: Any) -> Answer:
    """What a command gives, or why it does not."""
    try:
        if do not in COMMANDS:
            raise ValueError(f"no command is called {do!r}")
        return {"state": "ok", **getattr(worker, do)(**given)}
    except Unable as reason:
        return {"state": "n/a", "why": str(reason)}
    except Exception as error:  # whatever a framework does, the report says it
        first = str(error).strip().partition("\n")[0]
        return {"state": "failed", "why": f"{type(error).__name__}: {first}"[:300]}


def main() -> None:
    """Obey until stdin ends."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # so that nobody else writes there
    worker = Worker(json.loads(sys.stdin.readline()))
    for line in sys.stdin:
        print(json.dumps(answer(worker, **json.loads(line))), file=out, flush=True)


if __name__ == "__main__":
    main()
