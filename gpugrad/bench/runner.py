"""Runs the workloads: a process a framework, gate first, then rounds in turn while the others sleep."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import selectors
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gpugrad as gg
from gpugrad.bench import gate, workloads
from gpugrad.bench.peers import PEERS, REFERENCE, Entry, cores
from gpugrad.bench.workloads import Workload
from gpugrad.train.environment import environment

Row = dict[str, Any]
LIMITS = {("quick", "cpu"): 110.0, ("full", "cpu"): 2400.0, ("quick", "cuda"): 150.0, ("full", "cuda"): 450.0}
SETTLE = 0.05  # seconds of rest between two measurements: threads that spin go to sleep


@dataclass
class Options:
    """How to measure. limit: seconds in all. seconds: of one measurement. threads: of every framework alike."""

    device: str = "cpu"
    suite: str = "quick"
    limit: float = 110.0
    rounds: int = 7
    seconds: float = 0.1
    warm: float = 0.2
    threads: int = field(default_factory=lambda: len(cores()))
    say: Callable[[str], None] = lambda _: None


class Process:
    """A worker and its answers."""

    def __init__(self, entry: Entry, workload: Workload, options: Options, dtype: str, caches: str) -> None:
        self.noise = tempfile.TemporaryFile("w+")  # noqa: SIM115 - lives as long as the process
        threads = min(2, options.threads) if workload.busy else options.threads
        self.cores = cores()[:threads]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gpugrad.bench.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self.noise, env=surroundings(entry, threads, caches), preexec_fn=lambda: pin(self.cores),
        )  # fmt: skip
        job = {"spec": entry.spec, "package": entry.package, "workload": workload.name, "device": options.device,
               "dtype": dtype, "threads": threads}  # fmt: skip
        self.pending = b""
        self.send(job)

    def send(self, message: Row) -> None:
        """One line."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its end shows when the answer is awaited
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()

    def ask(self, do: str, limit: float, **given: Any) -> Row:
        """Send a command and wait for the answer; 'late' or 'failed' where none comes, and then the process is gone."""
        self.send({"do": do, **given})
        return self.receive(limit)

    def receive(self, limit: float) -> Row:
        """The next answer."""
        assert self.process.stdout is not None
        end = time.monotonic() + limit
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self.pending:
                if not selector.select(max(0.0, end - time.monotonic())):
                    self.close()
                    return {"state": "late", "why": f"out of time: no answer within {limit:.0f} s"}
                piece = os.read(self.process.stdout.fileno(), 1 << 16)
                if not piece:
                    self.close()
                    return {"state": "failed", "why": self.last_words()}
                self.pending += piece
        line, _, self.pending = self.pending.partition(b"\n")
        return json.loads(line)  # type: ignore[no-any-return]

    def last_words(self) -> str:
        """What is known of a process that ended."""
        self.noise.seek(0)
        said = [line.strip() for line in self.noise.read().splitlines() if line.strip()]
        return f"its process ended with {self.process.returncode}" + (f": {said[-1][:200]}" if said else "")

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()


def pin(places: Iterable[int]) -> None:
    """Hold this process and its threads to some cores, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, places)


def surroundings(entry: Entry, threads: int, caches: str) -> dict[str, str]:
    """The environment of a worker: threads alike for all, compilers' caches empty at the start of a run."""
    counts = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "NPROC", "CPU_COUNT",
              "GPUGRAD_THREADS")  # fmt: skip
    folders = {"XDG_CACHE_HOME": "any", "GPUGRAD_CACHE": "gpugrad", "TORCHINDUCTOR_CACHE_DIR": "inductor",
               "CUPY_CACHE_DIR": "cupy"}  # fmt: skip
    root = str(Path(gg.__file__).resolve().parent.parent)
    return {
        **os.environ,
        **dict.fromkeys(counts, str(threads)),
        **{name: str(Path(caches, folder)) for name, folder in folders.items()},
        "PYTHONPATH": os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH", "")) if p),
        "PYTHONHASHSEED": "0", "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", ""),
        "TF_CPP_MIN_LOG_LEVEL": "3", "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        **entry.environment,
    }  # fmt: skip


@contextlib.contextmanager
def neighbour(places: Iterable[int]) -> Iterator[None]:
    """A process that never rests, on those cores."""
    spin = subprocess.Popen([sys.executable, "-c", "while True: pass"], preexec_fn=lambda: pin(places))
    try:
        yield
    finally:
        spin.kill()
        spin.wait()


def run(names: list[str], peers: list[str], options: Options) -> Row:
    """Measure the workloads of these names with these peers; everything that is known afterwards, ready for JSON."""
    end = time.monotonic() + options.limit
    chosen = [workloads.find(name) for name in names]
    card = environment(options.device)
    del card["command"]
    found: Row = {
        "schema": 1,
        "suite": options.suite,
        "device": options.device,
        "threads": options.threads,
        **card,
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else 0.0,
    }
    with tempfile.TemporaryDirectory() as caches:
        found["frameworks"] = frameworks(peers, options, end)
        found["rates"] = rates(peers, chosen[0], options, caches)
        found["workloads"] = []
        for i, workload in enumerate(chosen):
            share = (end - time.monotonic()) / (len(chosen) - i)
            options.say(f"{workload.name}: {workload.title}")
            found["workloads"].append(Session(workload, peers, options, caches, share).measure())
        if options.suite == "full":  # a machine may have been slow for a moment at the start
            again = rates(peers, chosen[0], options, caches)
            found["rates"] = {
                key: max((found["rates"], again), key=lambda r: r[key.removesuffix("_by")] or 0)[key]
                for key in found["rates"]
            }
    rooflines(found)
    found["seconds"] = options.limit - (end - time.monotonic())
    return found


class Session:
    """One workload."""

    def __init__(self, workload: Workload, peers: list[str], options: Options, caches: str, share: float) -> None:
        self.workload, self.peers, self.options, self.caches = workload, peers, options, caches
        self.end, self.share = time.monotonic() + share, share
        self.rows: dict[str, Row] = {}
        self.processes: dict[str, Process] = {}

    def left(self, kept: float = 0.0) -> float:
        """Seconds that may still be used, with a share of the whole kept back for later."""
        return max(1.0, self.end - time.monotonic() - kept * self.share)

    def measure(self) -> Row:
        """Reference, gate, rounds; a row a peer, also for those that could not be measured."""
        try:
            self.start()
            reference, by = self.reference()
            waiting = list(self.processes)
            for name in waiting:
                self.admit(name, reference, 1.0 if name == waiting[-1] else 0.5)
            if not self.workload.memory:
                self.time()
            for name in list(self.processes):
                answer = self.processes[name].ask("finish", self.left() + 10)
                if answer["state"] != "ok" and "step_s" in self.rows[name]:  # it has been timed: that stands
                    self.rows[name]["unfinished"] = answer["why"]
                else:
                    self.note(name, answer)
        finally:
            for process in self.processes.values():
                process.close()
        w = self.workload
        known = {k: getattr(w, k) for k in ("name", "title", "kind", "samples", "flops", "bytes", "floor", "tolerance")}
        for name in self.peers:
            row = self.rows[name]
            self.options.say(f"    {name:18} {summary(row)}")
        return {**known, "reference": by, "rows": {name: self.rows[name] for name in self.peers}}

    def note(self, name: str, answer: Row) -> bool:
        """Write an answer into the row; whether the peer goes on."""
        state = answer.pop("state")
        row = self.rows.setdefault(name, {"state": "ok"})
        if state != "ok":
            row.clear()
            row.update({"state": state, "why": answer["why"]})
            self.processes.pop(name).close()
            return False
        row.update(answer)
        return True

    def start(self) -> None:
        """Processes of all that are there; they import side by side."""
        for name in self.peers:
            entry = PEERS[name]
            why = entry.missing
            if why or self.options.device.partition(":")[0] not in entry.devices:
                self.rows[name] = {"state": "missing" if why else "n/a", "why": why or f"not on {self.options.device}"}
                continue
            self.processes[name] = Process(entry, self.workload, self.options, self.workload.dtype, self.caches)
            self.processes[name].send({"do": "load"})
        for name in list(self.processes):
            self.note(name, self.processes[name].receive(self.left(0.4)))

    def reference(self) -> tuple[list[Any], str]:
        """The digests that the peers are held to, and whose they are. On the CPU, in float64."""
        host = Options(device="cpu", threads=self.options.threads)
        why = ""
        for name in REFERENCE:
            process = Process(PEERS[name], self.workload, host, "float64", self.caches)
            process.ask("load", self.left(0.2))
            steps = gate.steps(self.workload)
            once = self.workload.kind != "train"  # every step would be the same
            answer = process.ask("first", self.left(0.2), steps=[1] if once else steps)
            process.close()
            if answer["state"] == "ok":
                return answer["digests"] * (len(steps) if once else 1), name
            why = answer["why"]
        for name in self.processes:
            self.rows[name] = {"state": "failed", "why": f"there is no reference: {why}"}
            self.processes[name].close()
        self.processes.clear()
        return [], ""

    def admit(self, name: str, reference: list[Any], part: float) -> None:
        """The first steps, for which there is a part of the time left, and the gate."""
        answer = self.processes[name].ask("first", part * self.left(0.4), steps=gate.steps(self.workload))
        digests = answer.pop("digests", [])
        if not self.note(name, answer):
            return
        apart = gate.difference(self.workload, reference, digests)
        if apart:
            self.note(name, {"state": "refused", "why": f"refused: {apart}"})

    def time(self) -> None:
        """Warm up, then rounds in turn, each beginning with another peer; again beside a neighbour if that is asked."""
        for name in list(self.processes):
            self.note(name, self.processes[name].ask("warm", self.left(0.2), seconds=self.options.warm))
        quiet = self.rounds(self.options.rounds)
        for name, seen in quiet.items():
            self.rows[name].update(statistic(seen))
            self.rows[name]["samples_s"] = self.workload.samples / self.rows[name]["step_s"]
        if self.workload.busy and self.processes:
            with neighbour(next(iter(self.processes.values())).cores):
                for name, seen in self.rounds(self.options.rounds).items():
                    busy = statistic(seen)
                    self.rows[name].update(busy=busy, beside=busy["step_s"] / self.rows[name]["step_s"])

    def rounds(self, count: int) -> dict[str, list[Row]]:
        """The measurements of every peer that finished at least one."""
        seen: dict[str, list[Row]] = {}
        for i in range(count):
            turn = list(self.processes)
            for name in turn[i % max(1, len(turn)) :] + turn[: i % max(1, len(turn))]:
                if i >= 3 and time.monotonic() > self.end:
                    return seen
                time.sleep(SETTLE)
                answer = self.processes[name].ask("round", self.left() + 10, seconds=self.options.seconds)
                if answer["state"] == "ok":
                    seen.setdefault(name, []).append(answer)
                else:
                    self.note(name, answer)
                    seen.pop(name, None)
        return seen


def rooflines(result: Row) -> None:
    """Put into every row the share that copies and products at full rate would have of its time."""
    copy, product = result["rates"]["copy"], result["rates"]["product"]
    for workload in result["workloads"]:
        for row in workload["rows"].values():
            if "step_s" in row:
                least = max(workload["bytes"] / copy, workload["flops"] / product) if copy and product else 0.0
                row["roofline"] = least / (row["device_s"] or row["step_s"]) or None


def statistic(seen: list[Row]) -> Row:
    """Median and quartiles of the seconds a step."""
    times = sorted(r["wall"] for r in seen)
    low, median, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    on_device = [r["device"] for r in seen if r["device"] is not None]
    return {
        "step_s": median, "low_s": low, "high_s": high, "rounds": len(times), "all_s": [r["wall"] for r in seen],
        "device_s": statistics.median(on_device) if on_device else None,
    }  # fmt: skip


def summary(row: Row) -> str:
    """A row in a few words."""
    if row["state"] != "ok":
        return f"{row['state']}: {row['why']}" if row["state"] != "refused" else str(row["why"])
    if "step_s" not in row:
        return f"{row['host_bytes'] / 1e6:.0f} MB at most, {row['steady_bytes'] / 1e6:.0f} MB in later steps"
    more = f", {row['beside']:.1f} times that beside a neighbour" if "beside" in row else ""
    return f"{row['step_s'] * 1e3:.4g} ms a step ({row['low_s'] * 1e3:.4g} to {row['high_s'] * 1e3:.4g}){more}"


# --- what is known of a framework itself --------------------------------------------------------------------------


def frameworks(peers: list[str], options: Options, end: float) -> Row:
    """Version, import seconds and installed megabytes of every package, or why it is missing."""
    found: Row = {}
    for name in peers:
        entry = PEERS[name]
        if entry.package in found:
            continue
        if entry.missing:
            found[entry.package] = {"missing": entry.missing}
            continue
        times = 3 if (options.suite, options.device) == ("full", "cpu") else 1
        found[entry.package] = {
            "version": version(entry.package), "import_s": import_seconds(entry.package, times, end),
            "installed_mb": round(installed(entry.package) / 1e6, 1),
        }  # fmt: skip
    return found


def version(package: str) -> str | None:
    """Of the distribution, or of the module that runs here."""
    if package == "gpugrad":
        return gg.__version__
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def import_seconds(package: str, times: int, end: float) -> float | None:
    """The median of some fresh interpreters' `import`, NumPy included; the files have been read before."""
    code = f"import time; t = time.perf_counter(); import {package}; print(time.perf_counter() - t)"
    root = str(Path(gg.__file__).resolve().parent.parent)
    seen = []
    for _ in range(times + 1):
        try:
            done = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root,
                timeout=max(1.0, end - time.monotonic()),
            )  # fmt: skip
        except subprocess.SubprocessError:
            return None
        seen.append(float(done.stdout.split()[-1]))
    return statistics.median(seen[1:])


def installed(package: str) -> int:
    """Bytes of a package's files and of all that it requires."""
    total, todo, done = 0, [package], set()
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in done:
            continue
        done.add(name)
        if name == "gpugrad":  # a checkout has no list of files
            total += sum(p.stat().st_size for p in Path(gg.__file__).parent.rglob("*") if p.is_file())
            todo.append("numpy")
            continue
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform
        files = (Path(str(f.locate())) for f in distribution.files or [])
        total += sum(f.stat().st_size for f in files if f.is_file())
        needed = (r for r in distribution.requires or [] if "extra ==" not in r)
        todo += [re.split(r"[^\w.-]", r, maxsplit=1)[0] for r in needed]
    return total


def rates(peers: list[str], workload: Workload, options: Options, caches: str) -> Row:
    """The most that any of these reaches: bytes a second of a large copy, float32 operations of a product."""
    best: Row = {"copy": None, "product": None, "copy_by": None, "product_by": None}
    for name in dict.fromkeys([*(["numpy"] if options.device == "cpu" else ["gpugrad"]), *peers]):
        entry = PEERS[name]
        if (
            name not in ("numpy", "torch", "gpugrad")
            or entry.missing
            or (name == "gpugrad" and options.device == "cpu")
        ):
            continue
        process = Process(entry, workload, options, "float32", caches)
        process.ask("load", 60)
        answer = process.ask("rates", 60)
        process.close()
        for key in ("copy", "product"):
            if answer["state"] == "ok" and answer[key] and answer[key] > (best[key] or 0):
                best[key] = answer[key]
                best[f"{key}_by"] = name
    return best
