"""The kernels under GCC's address and undefined-behaviour sanitizers: out-of-bounds and misaligned access."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpugrad.testing.emulator import compiler

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler")

ROOT = Path(__file__).parent.parent.parent
FLAGS = "-fsanitize=address,alignment,bounds,shift,signed-integer-overflow -fno-sanitize-recover=all"
BROKEN = """
import numpy as np
from gpugrad.testing.emulator import Module
kernel = Module("__global__ void k(float* y, int i) {{ {body} }}", ["k"], flags="{flags}".split())["k"]
kernel((1,), (1,), (np.zeros(4000, "float32"), np.int32({i})))
"""


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Python with the sanitizer's library loaded first, as it demands."""
    library = subprocess.run([compiler(), "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    if not os.path.isabs(library):
        pytest.skip("the compiler has no address sanitizer")
    settings = {
        "LD_PRELOAD": library, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc", "GPUGRAD_TEST_FLAGS": FLAGS,
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env={**os.environ, **settings}, cwd=ROOT
    )


@pytest.mark.parametrize(
    "body, i, said",
    [
        ("y[i] = 1;", 4000, "heap-buffer-overflow"),
        ("*(float4*)(y + i) = float4();", 1, "misaligned address"),
        ("y[i] = 1;", 3999, None),
    ],
    ids=["outside", "misaligned", "fine"],
)
def test_the_sanitizers_see_seeded_faults(body, i, said):
    done = run("-c", BROKEN.format(body=body, i=i, flags=FLAGS))
    assert (done.returncode != 0) == (said is not None), done.stderr
    assert (said or "") in done.stderr


def test_kernels_stay_inside_their_arrays():
    chosen = "misaligned or scatter and natural or xent_sizes and natural or out_of_range or dropout_keeps"
    only = f"emulator and ({chosen}) and not float16 and not float64"
    done = run(
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        *sorted(map(str, Path(__file__).parent.glob("test_kernels*.py"))),
        "-k",
        only,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " passed" in done.stdout
