"""The README shows what `python -m tests.ops.report` prints."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

pytest.importorskip("mpmath", reason="exact values come from mpmath")

from . import report


def test_the_readme_shows_the_counts():
    """The numbers of ops and checks, which the suite runs one by one, and the errors of docs/ops/measured.json."""
    readme = (report.ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- proof -->\n+```text\n(.*?)\n```\n+<!-- /proof -->", readme, re.S)
    assert block, "README.md has no block between <!-- proof --> and <!-- /proof -->"
    done = subprocess.run(
        [sys.executable, "-m", "tests.ops.report", "--collect"], cwd=report.ROOT, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(report.ROOT)}, check=True,
    )  # fmt: skip
    assert block[1] == done.stdout.rstrip("\n")


def test_a_failing_check_is_counted_as_such(tmp_path, monkeypatch):
    """Two tests of a file of ours, one of which fails, make 1/2, and the command reports it."""
    (tmp_path / "test_table.py").write_text(
        "import pytest\n\n@pytest.mark.parametrize('ok', [True, False])\n"
        "def test_vjp_matches_numeric(ok):\n    assert ok\n"
    )  # fmt: skip
    (tmp_path / "test_proof.py").write_text("")
    monkeypatch.setattr(report, "__file__", str(tmp_path / "report.py"))
    counter = report.count(run=True)
    label = "vjp against differences"
    assert (counter.passed[label], counter.total[label]) == (1, 2)
    assert f"{label + ' ':.<40} 1/2" in report.summary(counter.total, counter.passed)
