"""The environment card: what a run's numbers depend on besides its configuration."""

from __future__ import annotations

import datetime
import functools
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

import gpugrad as gg
from gpugrad.train.extras import require

FLAGS = ("GPUGRAD_", "CUDA_", "CUPY_", "OMP_", "OPENBLAS_", "MKL_", "BLIS_", "NVIDIA_TF32", "PYTHONHASHSEED")


def environment(device: str = "cpu") -> dict[str, Any]:
    """The card as JSON-ready values; `gpu` is None unless the device is a GPU."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["gpugrad", *sys.argv[1:]]),
        "gpugrad": gg.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "cpu": {"model": cpu_model(), "cores": usable_cores()},
        "blas": blas(),
        "device": device,
        "gpu": gpu(device) if device.startswith("cuda") else None,
        "flags": {k: v for k, v in sorted(os.environ.items()) if k.startswith(FLAGS)},
    }


def output_of(*command: str) -> str | None:
    """What a program prints, or None where it is absent or fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def commit() -> str | None:
    """The commit of the checkout that the package is imported from ('+changes' where it differs), or None."""
    package = Path(gg.__file__).resolve().parent
    root = output_of("git", "-C", str(package), "rev-parse", "--show-toplevel")
    if root is None or Path(root).resolve() != package.parent:  # an installed copy inside somebody's repository
        return None
    head = output_of("git", "-C", root, "rev-parse", "HEAD")
    changed = output_of("git", "-C", root, "status", "--porcelain", "--untracked-files=no")
    return f"{head}+changes" if head and changed else head


def cpu_model() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


Job = TypeVar("Job", bound=Callable[..., Any])


def one_blas_thread(job: Job) -> Job:
    """The job with BLAS held to one thread.

    Products of these networks are too small to gain from a second one, whose spinning makes a step twenty times slower
    beside a busy neighbour; and the bits no longer depend on how many cores there are.
    """

    @functools.wraps(job)
    def run(*args: Any, **kwargs: Any) -> Any:
        with require("threadpoolctl").threadpool_limits(1, user_api="blas"):
            return job(*args, **kwargs)

    return run  # type: ignore[return-value]


def blas() -> dict[str, Any]:
    """Name and version of the BLAS that NumPy was built with, and its threads where threadpoolctl can tell."""
    built = np.show_config(mode="dicts")["Build Dependencies"]["blas"]  # type: ignore[index, call-overload]
    card = {"name": built.get("name"), "version": built.get("version")}
    try:
        import threadpoolctl
    except ImportError:
        return card
    pools = [p for p in threadpoolctl.threadpool_info() if p["user_api"] == "blas"]
    return card | ({"threads": pools[0]["num_threads"]} if pools else {})


def gpu(device: str) -> dict[str, Any]:
    """Name, driver, memory and compute capability by nvidia-smi, and the CuPy in use."""
    fields = ("name", "driver_version", "memory.total", "compute_cap")
    index = device.partition(":")[2] or "0"
    row = output_of("nvidia-smi", f"--id={index}", f"--query-gpu={','.join(fields)}", "--format=csv,noheader")
    values = [v.strip() for v in row.splitlines()[0].split(",")] if row else [None] * len(fields)
    return dict(zip(fields, values)) | {"cupy": cupy_version()}


def cupy_version() -> str | None:
    """The installed CuPy distribution and its version, or None."""
    found = (d for name in ("cupy-cuda13x", "cupy-cuda12x", "cupy") for d in metadata.distributions(name=name))
    cupy = next(found, None)
    return None if cupy is None else f"{cupy.name} {cupy.version}"
