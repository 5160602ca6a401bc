"""docs/errors.md names every error class there is, and its programs raise what it says, in the words it shows."""

from __future__ import annotations

import importlib
import linecache
import pkgutil
import re
import sys
import warnings
from pathlib import Path

import pytest

import gpugrad
from gpugrad.errors import GpugradError, GpugradWarning

PAGE = (Path(__file__).parent.parent / "docs" / "errors.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))
BLOCK = r"```python\n(.*?)```\n(?:\n```text\n(.*?)\n```)?"
PROGRAMS = [pytest.param(name, *block, id=name) for name, text in SECTIONS.items()
            for block in re.findall(BLOCK, text, re.S)]  # fmt: skip


def classes():
    """Every class of error or warning in the package."""
    for info in pkgutil.walk_packages(gpugrad.__path__, "gpugrad."):
        if not info.name.startswith(("gpugrad.testing", "gpugrad.__main__", "gpugrad.bench")):
            importlib.import_module(info.name)
    found, stack = {GpugradWarning}, [GpugradError]
    while stack:
        for cls in stack.pop().__subclasses__():
            if cls.__module__.startswith("gpugrad"):
                found.add(cls)
                stack.append(cls)
    return {cls.__name__: cls for cls in found}


CLASSES = classes()


def test_every_class_has_a_section_that_says_what_else_it_is():
    assert set(SECTIONS) == set(CLASSES)
    for name, text in SECTIONS.items():
        also = next(base for base in CLASSES[name].__mro__ if base.__module__ == "builtins")
        assert re.match(rf"\nAn? `{also.__name__}`[:,]", text), f"{name} is a {also.__name__}"
        assert CLASSES[name].__doc__.strip()


@pytest.mark.parametrize("name, code, shown", PROGRAMS)
def test_program(name, code, shown):
    linecache.cache["errors.md"] = (len(code), None, code.splitlines(keepends=True), "errors.md")
    if sys.version_info < (3, 11):  # which knows no columns
        shown = re.sub(r"(errors\.md:\d+):\d+", r"\1", shown)
    program = compile(code, "errors.md", "exec")
    if issubclass(CLASSES[name], Warning):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            exec(program, {"__name__": "page"})
        assert CLASSES[name] in [w.category for w in seen]
        return
    with pytest.raises(GpugradError) as caught:
        exec(program, {"__name__": "page"})
    assert type(caught.value) is CLASSES[name]
    assert not shown or str(caught.value) == shown
    assert re.search(r"errors\.md:\d+", str(caught.value)), "the user's line"
