"""What the compiler is given, and that it follows every change of a header."""

from __future__ import annotations

import re

import pytest

import gpugrad.kernel as kernel_module
from gpugrad.errors import DeviceError
from gpugrad.kernel import Kernel, find_kernels, kernel, source, source_path
from gpugrad.op import TABLE

from .instances import families, instances


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A package folder of its own for `find_kernels` to look from."""
    package = tmp_path / "site" / "gpugrad"
    package.mkdir(parents=True)
    monkeypatch.setattr(kernel_module, "__file__", str(package / "kernel.py"))
    find_kernels.cache_clear()
    yield package
    find_kernels.cache_clear()


def put(folder):
    folder.mkdir()
    (folder / "common.cuh").write_text("")
    return folder


def test_descriptor_is_plain_data():
    assert kernel("activation", "relu_bwd") == Kernel("activation", "relu_bwd", None)
    assert hash(kernel("a", "b")) == hash(kernel("a", "b"))


def test_kernels_are_found_in_a_wheel_and_in_a_checkout(elsewhere):
    with pytest.raises(DeviceError, match="reinstall"):
        find_kernels()
    checkout = put(elsewhere.parent / "kernels")
    assert find_kernels() == checkout
    installed = put(elsewhere / "_kernels")
    find_kernels.cache_clear()
    assert find_kernels() == installed


def test_a_missing_family_is_named():
    with pytest.raises(DeviceError, match=r"nosuch\.cu does not exist"):
        source_path("nosuch")


def test_headers_are_put_in_place_once_with_true_lines(tmp_path):
    (tmp_path / "a.cuh").write_text("#pragma once\nint a;\n")
    (tmp_path / "b.cuh").write_text('#pragma once\n#include "a.cuh"\nint b;\n')
    (tmp_path / "k.cu").write_text('// top\n#include "b.cuh"\n#include "a.cuh"\n#include <cuda_fp16.h>\nint k;\n')
    text = source(tmp_path / "k.cu")
    assert text.count("int a;") == text.count("int b;") == 1
    assert '#include "' not in text
    assert "#include <cuda_fp16.h>" in text
    at = {}
    file = line = None
    for row in text.splitlines():
        found = re.fullmatch(r'#line (\d+) "(.*)"', row)
        if found:
            file, line = found[2], int(found[1])
        else:
            at[row] = (file, line)
            line += 1
    assert at["int a;"] == ("a.cuh", 2)
    assert at["int b;"] == ("b.cuh", 3)
    assert at["int k;"] == ("k.cu", 5)


def test_a_changed_header_changes_the_text(tmp_path):
    (tmp_path / "a.cuh").write_text("#define X 1\n")
    (tmp_path / "k.cu").write_text('#include "a.cuh"\n')
    before = source(tmp_path / "k.cu")
    (tmp_path / "a.cuh").write_text("#define X 2\n")
    assert source(tmp_path / "k.cu") != before


def test_the_tables_kernels_exist():
    named = [op.impls.special["cuda"] for op in TABLE.values() if isinstance(op.impls.special.get("cuda"), Kernel)]
    named = [k for k in named if k.family]  # the others name a library's routine
    assert named
    for k in named:
        assert {k.name, f"{k.name}<float"} & {re.split("[,>]", i)[0] for i in instances(source_path(k.family))}


@pytest.mark.parametrize("path", families(), ids=lambda p: p.stem)
def test_house_style(path):
    text = path.read_text()
    assert text.startswith("// ")
    family = path.stem.partition("_")[0]
    assert f"gpugrad/ops/{family}.py" in text.split("#include")[0]  # the header says who launches it
    assert len(text.splitlines()) <= 120
    code = re.sub(r"//[^\n]*", "", source(path))
    banned = ["INFINITY", "FLT_MAX", "uint32_t", "int64_t", "<cstdint>", "<math.h>", "atomicAdd", "printf"]
    assert not [w for w in banned if re.search(rf"(?<!\w){re.escape(w)}(?!\w)", code)]
