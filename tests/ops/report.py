"""How much of the op table is proved: the number of ops, and of the checks that pass.

    python -m tests.ops.report              run all checks, print the counts; exit status 1 if one fails
    python -m tests.ops.report --collect    the same text without running: what it says if all pass
    python -m tests.ops.report --measure    write docs/ops/measured.json: the errors that this machine makes

The README shows this text between `<!-- proof -->` and `<!-- /proof -->`.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import importlib
import io
import json
import pkgutil
import platform
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpugrad as gg
import gpugrad.ops
from gpugrad.op import TABLE, Op
from gpugrad.tensor import Tensor

ROOT = Path(__file__).resolve().parents[2]
MEASURED = ROOT / "docs" / "ops" / "measured.json"
FILES = ("test_table.py", "test_proof.py")

# what each line of the report counts
CHECKS = {
    "values against exact arithmetic": (
        "test_elementwise_values_within_4_ulp", "test_other_values_within_their_published_bound",
    ),
    "values in float32, inputs unmodified": ("test_forward_keeps_inputs_and_dtype",),
    "vjp against differences": ("test_vjp_matches_numeric",),
    "jvp against differences, adjoint": ("test_jvp_matches_numeric_and_adjoint",),
    "jvp against the complex step": ("test_jvp_equals_the_complex_step",),
    "second order": ("test_second_order_matches_numeric",),
    "third order": ("test_third_order_matches_numeric",),
    "0-d, empty and size 1": ("test_elementwise_on_small_shapes",),
    "memory layouts, read-only": ("test_layout_makes_no_difference",),
    "half precision kept": ("test_half_precision_is_kept",),
}  # fmt: skip
OTHERS = "everything else about the table"


def entries() -> dict[str, Op]:
    """The whole table: every family is loaded, and no op that a test has made."""
    for info in pkgutil.iter_modules(gpugrad.ops.__path__):
        importlib.import_module(f"gpugrad.ops.{info.name}")
    return {name: op for name, op in sorted(TABLE.items()) if family(op)}


def family(op: Op) -> str:
    """The file in gpugrad/ops that defines an op, without its ending; empty for one from elsewhere."""
    from .pages import pieces

    return next((p.stem for p, _ in pieces(op)), "")


# --- counting -------------------------------------------------------------------------------------------------------


class Counter:
    """A pytest plugin: tests by line of the report, and how many of them passed."""

    def __init__(self) -> None:
        self.total: collections.Counter[str] = collections.Counter()
        self.passed: collections.Counter[str] = collections.Counter()

    def line(self, nodeid: str) -> str:
        function = nodeid.split("::")[1].partition("[")[0]
        return next((label for label, names in CHECKS.items() if function in names), OTHERS)

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        self.total.update(self.line(item.nodeid) for item in items)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" and report.passed:
            self.passed[self.line(report.nodeid)] += 1


def count(run: bool) -> Counter:
    """Collect the checks, and run them."""
    counter, chatter = Counter(), io.StringIO()
    with redirect_stdout(chatter):
        pytest.main(
            ["-q", "-p", "no:cacheprovider", *([] if run else ["--collect-only"])]
            + [str(Path(__file__).with_name(f)) for f in FILES],
            plugins=[counter],
        )
    if run and counter.passed != counter.total:
        print(chatter.getvalue(), file=sys.stderr)
    return counter


def summary(total: dict[str, int], passed: dict[str, int]) -> str:
    """The text of the report."""
    table = entries()
    kinds = collections.Counter(op.kind for op in table.values())
    able = sum(op.differentiable for op in table.values())
    lines = [
        f"{len(table)} ops: {able} differentiable, {kinds['nondiff']} that have no derivative, "
        f"{kinds['update']} updates in place"
    ]
    lines += [f"{label + ' ':.<40} {passed[label]}/{total[label]}" for label in (*CHECKS, OTHERS)]
    lines.append(f"{'all ':.<40} {sum(passed.values())}/{sum(total.values())}")
    found = json.loads(MEASURED.read_text(encoding="utf-8"))["ops"]
    for dtype in ("float32", "float64"):
        error, name = max((row[dtype], n) for n, row in found.items() if row["kind"] == "elementwise" and dtype in row)
        lines.append(f"largest error of an elementwise op in {dtype}: {error:.1f} ulp ({name})")
    return "\n".join(lines)


# --- measuring ------------------------------------------------------------------------------------------------------


def rounding(name: str, samples: list[Any]) -> float | None:
    """The largest difference between the op in float32 and in float64, in ulp of each output's largest value."""
    op, worst = TABLE[name], None
    for sample in samples:
        outs = []
        for dtype in ("float32", "float64"):
            # the same numbers for both
            args = [
                Tensor(a.astype("float32").astype(dtype)) if getattr(a, "dtype", None) == np.float64
                else Tensor(np.asarray(a)) if isinstance(a, (np.ndarray, np.generic)) else a
                for a in sample.args
            ]  # fmt: skip
            out = op.call(*args, **sample.attrs)
            outs.append(out if isinstance(out, tuple) else (out,))
        for single, double in zip(*outs):
            if single.dtype == np.float32 and double.dtype == np.float64 and double.size:
                unit = np.spacing(np.float32(np.abs(double.data).max()))
                error = float(np.abs(single.data - double.data).max() / unit)
                worst = error if worst is None else max(worst, error)
    return worst


def measure() -> dict[str, Any]:
    """The errors of every op, and where they were measured."""
    import mpmath

    from . import accuracy, truth
    from .samples import collect

    samples, found = collect(), {}
    for name, op in entries().items():
        row: dict[str, Any] = {"kind": op.kind}
        cases = truth if name in truth.CASES else accuracy if name in accuracy.CASES else None
        if cases is not None:
            row |= {dtype: round(cases.worst(name, dtype)[0], 2) for dtype in ("float32", "float64")}
            row["bound"] = truth.LIMIT if cases is truth else accuracy.CASES[name][0].bound
        elif op.differentiable and (error := rounding(name, samples[name])) is not None:
            row["rounding"] = round(error, 2)
        found[name] = row
    return {
        "date": datetime.date.today().isoformat(), "machine": platform.machine(), "python": platform.python_version(),
        "numpy": np.__version__, "mpmath": mpmath.__version__, "gpugrad": gg.__version__, "ops": found,
    }  # fmt: skip


def main() -> int:
    """Print the report; 1 if a check fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collect", action="store_true")
    parser.add_argument("--measure", action="store_true")
    options = parser.parse_args()
    if options.measure:
        MEASURED.parent.mkdir(parents=True, exist_ok=True)
        MEASURED.write_text(json.dumps(measure(), indent=1) + "\n", encoding="utf-8")
        return 0
    counter = count(not options.collect)
    passed = counter.total if options.collect else counter.passed
    print(summary(counter.total, passed))
    return int(passed != counter.total)


if __name__ == "__main__":
    sys.exit(main())
