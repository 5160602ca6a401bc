"""Launch parameters chosen by measuring, and kept on disk: with GPUGRAD_TUNE=1.

Only for kernels whose results do not depend on their geometry, which are the generated ones of elementwise chains. A
choice belongs to a kernel's text, a device and a magnitude of sizes; another process finds it and measures nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gpugrad.compiler import host_folder

BLOCKS = (256, 128, 512)  # threads a block; the first is taken where nothing is measured
ROUNDS = 5

choices: dict[Path, dict[str, int]] = {}  # by the file they are kept in


def enabled() -> bool:
    """Whether kernels are measured at their first launch."""
    return os.environ.get("GPUGRAD_TUNE", "0") != "0"


def choose(backend: Any, text: str, size: int, run: Callable[[int], None], blocks: Sequence[int] = BLOCKS) -> int:
    """The threads a block with which `run(threads)` is fastest, from the file of choices if it is there.

    text, size: of the kernel and of the work. `run` is called several times. During a capture nothing can be measured.
    """
    if not enabled():
        return blocks[0]
    path = host_folder() / "tuned.json"
    device = backend.xp.cuda.runtime.getDeviceProperties(backend.xp.cuda.Device().id)["name"]
    key = hashlib.sha256(f"{text}\0{device!r}\0{size.bit_length()}\0{blocks}".encode()).hexdigest()[:24]
    if path not in choices:
        choices[path] = read(path)
    if key not in choices[path]:
        if backend.xp.cuda.get_current_stream().is_capturing():
            return blocks[0]
        times = measured(backend, run, blocks)
        choices[path][key] = min(blocks, key=times.__getitem__)
        write(path, choices[path])
    return choices[path][key]


def measured(backend: Any, run: Callable[[int], None], blocks: Sequence[int]) -> dict[int, float]:
    """Median device seconds of each candidate; the rounds take turns, so that a slow moment falls on all."""
    times: dict[int, list[float]] = {block: [] for block in blocks}
    for block in blocks:
        run(block)  # compiled and warm
    for _ in range(ROUNDS):
        for block in blocks:
            start = backend.moment()
            run(block)
            end = backend.moment()
            end.synchronize()
            times[block].append(backend.seconds(start, end))
    return {block: statistics.median(t) for block, t in times.items()}


def read(path: Path) -> dict[str, int]:
    """The choices in a file; none if it is missing or spoilt."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {str(k): int(v) for k, v in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def write(path: Path, found: dict[str, int]) -> None:
    """Add choices to a file; it is replaced as a whole, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        new = Path(scratch) / path.name
        new.write_text(json.dumps({**read(path), **found}, indent=0, sort_keys=True), encoding="utf-8")
        new.replace(path)
