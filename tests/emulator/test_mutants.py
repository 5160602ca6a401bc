"""The tests of kernels against small faults put into our kernels one at a time: each must make some test fail.

A mutant lacks one `__syncthreads` or `__syncwarp`, or has one loop or row bound shifted by one. The tests of the
kernel's family then run instrumented on the emulator; a mutant that they pass survives, and has to be in SURVIVORS with
the reason why it computes the same. A sample is tried by default; GPUGRAD_MUTANTS=all tries every one.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from gpugrad.kernel import find_kernels
from gpugrad.testing.emulator import compiler

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler")

ROOT = Path(__file__).parent.parent.parent
TESTS = ROOT / "tests" / "cuda"
SAMPLE = 5
PATIENCE = 600  # seconds, for tests that take some twenty
BOUND = re.compile(r"\b(?:for|if|while) \(.*?\)(?: \{|;|$| [a-z_*])")
SIGNS = {" < ": " <= ", " >= ": " > "}

# 'file: line of code [occurrence]': why nothing can be seen
PAST = "what a thread would reach there is past the row, which is asked next"
SPARE = "state arrays have a slot to spare, because there are no arrays of length 0"
TILE = "a tile past the last one: every element of it is masked"
SURVIVORS = {
    "attention.cu: for (int start = 0; start <= end; start += KEYS) {": TILE,
    "attention_bwd.cu: for (int start = 0; start <= end; start += KEYS) {": TILE,
    "attention_bwd.cu: for (int start = z.causal ? first / QUERIES * QUERIES : 0; start <= z.queries; start += QUERIES) {": TILE,  # noqa: E501
    "attention.cuh: for (int c = 0; c <= D / 8; c++) {": "columns from D on are past the width, which is asked next",
    "chain.cuh: for (int o = 0; o <= OUTS; o++) packets = packets && aligned(out[o].at);": "it may cost the packets",
    "chain.cuh: for (long long first = begin / SPAN * SPAN + team.rank * SPAN; first <= end; first += team.size * SPAN) {": "no element is before end",  # noqa: E501
    "chain.cuh: if (packets && first > begin && first + SPAN <= end) {": "it costs a packet, not its values",
    "common.cuh: if (letter->site == 0 || (letter->site == site && row <= letter->row)) {": "the same row again",
    "index.cu: for (int k = 0; k <= N; k++)": "element N is past the step, which is asked next",
    "normalize.cuh: for (int e = 0; e <= S; e++)": PAST,
    "normalize.cuh: for (int e = 0; e <= S; e++) [2]": PAST,
    "normalize.cuh: for (int j = 0; j <= K; j++)": PAST,
    "normalize.cuh: for (int j = 0; j <= K; j++) [2]": PAST,
    "optim.cu: for (int r = 0; r <= S; r++) all = all && aligned(s[r]);": f"{SPARE}; it may cost the packets",
    "optim.cu: for (int r = 0; r <= S; r++) m[r] = z[r].v[j];": SPARE,
    "optim.cu: for (int r = 0; r <= S; r++) s[r] = own_array<Acc<T>>(table, F::param + F::grad + r, i);": SPARE,
    "optim.cu: for (int r = 0; r <= S; r++) z[r].v[j] = m[r];": SPARE,
    "random.cu: for (long long block = team.rank; block * 8 <= n; block += team.size) {": "no element of it is below n",
    "reduce.cu: if (from + k * step <= cols) origins[k] = F::origin(widen(v[k * step]));": (
        "an element of the second row, of which there is always one; nothing uses it"
    ),
    "softmax.cuh: for (int j = 0; j <= K; j++) {": "element j of a thread is past the row, which is asked next",
}

RUN = """
import sys
from pathlib import Path
import gpugrad.kernel
gpugrad.kernel.find_kernels = lambda: Path(sys.argv[1])
import pytest
sys.exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", "emulator", *sys.argv[2:]]))
"""


class Mutant(NamedTuple):
    """A file with one place changed."""

    file: str
    text: str
    kind: str
    name: str


def mutants() -> list[Mutant]:
    """Every mutant of every kernel file."""
    found = []
    for path in sorted(find_kernels().glob("*.cu*")):
        seen: dict[str, int] = {}
        offset, text = 0, path.read_text()
        for line in text.splitlines(keepends=True):
            code = line.partition("//")[0]
            places = [(m.start(), m.end(), "") for m in re.finditer(r"__sync(?:threads|warp)\(\);", code)]
            places += [
                (condition.start() + m.start(), condition.start() + m.end(), SIGNS[m[0]])
                for condition in BOUND.finditer(code)
                for m in re.finditer("|".join(SIGNS), condition[0])
            ]
            for start, end, new in sorted(places):
                changed = (
                    f"{path.name}: {(line[:start] + new + line[end:]).strip() if new else 'without ' + line[start:end]}"
                )
                seen[changed] = seen.get(changed, 0) + 1
                name = changed if seen[changed] == 1 else f"{changed} [{seen[changed]}]"
                rest = text[: offset + start] + new + text[offset + end :]
                found.append(Mutant(path.name, rest, "bound" if new else "barrier", name))
            offset += len(line)
    return found


def files_of(file: str) -> list[str]:
    """The test files of a kernel file's family; all for what is common to them, first one that uses most of it."""
    family = file.partition(".")[0].partition("_")[0]
    own = TESTS / f"test_kernels_{family}.py"
    every = sorted(TESTS.glob("test_kernels_*.py"), key=lambda path: (path.stem != "test_kernels_loss", path))
    return [str(path) for path in ([own] if own.exists() else every)]


def killed(mutant: Mutant, folder: Path) -> bool:
    """Whether a test fails with the mutant."""
    for path in find_kernels().glob("*.cu*"):
        (folder / path.name).write_text(mutant.text if path.name == mutant.file else path.read_text())
    command = [sys.executable, "-c", RUN, str(folder), *files_of(mutant.file)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "GPUGRAD_EMULATOR": "checked"},
            timeout=PATIENCE,
        )  # fmt: skip
    except subprocess.TimeoutExpired:  # a loop without end
        return True
    assert done.returncode <= 1, done.stdout[-2000:] + done.stderr[-2000:]  # negative: it overwrote what is Python's
    return done.returncode != 0


ALL = mutants()
CHOSEN = ALL if os.environ.get("GPUGRAD_MUTANTS") == "all" else random.Random(3).sample(ALL, min(SAMPLE, len(ALL)))


@pytest.mark.parametrize("mutant", CHOSEN, ids=lambda m: m.name)
def test_mutant_is_killed_or_explained(mutant, tmp_path):
    dead = killed(mutant, tmp_path)
    assert dead != (mutant.name in SURVIVORS), "killed, and listed as a survivor" if dead else "survived"


def test_survivors_exist():
    assert set(SURVIVORS) <= {m.name for m in ALL}


def test_there_are_mutants_of_both_kinds():
    kinds = [m.kind for m in ALL]
    assert kinds.count("barrier") >= 10
    assert kinds.count("bound") >= 50


def test_kernels_without_a_change_are_not_killed(tmp_path):
    path = find_kernels() / "index.cu"
    assert not killed(Mutant(path.name, path.read_text(), "none", ""), tmp_path)
