"""The README's Python blocks run and print exactly what it shows."""

from __future__ import annotations

import contextlib
import io
import linecache
import re
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", README, re.S)


def test_every_python_block_shows_its_output():
    assert len(BLOCKS) == README.count("```python") >= 4


@pytest.mark.parametrize("code, shown", BLOCKS)
def test_block(code, shown):
    if "data.digits" in code:
        pytest.importorskip("sklearn", reason="the digits come with scikit-learn: gpugrad[train]")
    linecache.cache["README.md"] = (len(code), None, code.splitlines(keepends=True), "README.md")
    if sys.version_info < (3, 11):  # which knows no columns
        shown = re.sub(r"(README\.md:\d+):\d+", r"\1", shown)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert printed.getvalue() == shown
