"""docs/ops is what `python -m tests.ops.pages` writes now, and its figures are those of docs/ops/measured.json."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("mpmath", reason="exact values come from mpmath")

from gpugrad.op import TABLE

from . import accuracy, pages, report, truth

BUILT = pages.build()


def test_there_is_a_page_for_every_op_and_no_other():
    assert {path.name for path in pages.DOCS.glob("*.md")} == set(BUILT), "run python -m tests.ops.pages"
    assert set(report.entries()) <= set(TABLE)


def written(text):
    """A page without what was measured when it was made: the Python frames of a call."""
    return re.sub(r"(?m)^- Cost: .*$", "- Cost", text)


@pytest.mark.parametrize("name", sorted(BUILT))
def test_page_is_current(name):
    page = (pages.DOCS / name).read_text(encoding="utf-8")
    assert written(page) == written(BUILT[name]), "run python -m tests.ops.pages"


@pytest.mark.parametrize("name", sorted(set(BUILT) - {"index.md"}))
def test_page_says_what_the_op_is(name):
    text, op = BUILT[name], TABLE[name[:-3]]
    assert text.splitlines()[2].strip(), "a sentence about the op"
    assert "## Source" in text or op.kind == "nondiff"
    for rule in (*op.vjps, op.joint):  # the line on which each rule begins stands on the page
        if rule is not None:
            assert re.search(r"lambda F|def \w+\(", text.partition("## Source")[2])


def test_every_op_that_can_be_has_been_measured():
    found = report.json.loads(report.MEASURED.read_text(encoding="utf-8"))["ops"]
    assert set(found) == set(report.entries()), "run python -m tests.ops.report --measure"
    assert all({"float32", "float64"} <= set(found[n]) for n in (*truth.CASES, *accuracy.CASES))
    assert max(row["float32"] for row in found.values() if row["kind"] == "elementwise") <= truth.LIMIT
