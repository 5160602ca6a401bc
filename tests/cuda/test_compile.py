"""Every kernel compiles for every dtype and architecture with the backend's options, without spilling registers."""

from __future__ import annotations

import re

import pytest

from gpugrad.backends.launch import OPTIONS
from gpugrad.kernel import source

from .instances import families, instances
from .nvrtc import MISSING, compile_text, toolkit

pytestmark = pytest.mark.skipif(toolkit() is None, reason=MISSING)

ARCHITECTURES = [70, 75, 80, 86, 89, 90, 100, 120]


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("path", families(), ids=lambda p: p.stem)
def test_compiles_without_spills(path, arch):
    if arch < 75 and toolkit().version >= (13, 0):
        pytest.skip(f"sm_{arch} needs CUDA 12")
    names = instances(path)
    cubin, log = compile_text(source(path), names, f"sm_{arch}", (*OPTIONS, "--ptxas-options=-v"))
    assert cubin[:4] == b"\x7fELF"
    assert log.count("Compiling entry function") == len(names)
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    assert len(spills) == len(names)
    assert set(spills) == {("0", "0")}, log
    stacks = re.findall(r"(\d+) bytes stack frame", log)
    assert set(stacks) == {"0"}, log


@pytest.mark.parametrize("dtype", ["float", "double", "__half", "__nv_bfloat16"])
def test_maps_move_sixteen_bytes_at_once(dtype):
    (path,) = (p for p in families() if p.stem == "activation")
    ptx, _ = compile_text(source(path), [f"relu_bwd<{dtype}>"], "compute_90", OPTIONS)
    width = r"v2\.(?:f64|b64|u64)|v4\.(?:f32|b32|u32)|v8\.\w+"
    assert len(re.findall(rf"ld\.global(?:\.nc)?\.(?:{width})", ptx.decode())) >= 2
    assert len(re.findall(rf"st\.global\.(?:{width})", ptx.decode())) >= 1


def test_errors_name_the_file_and_line_of_a_header(tmp_path):
    (tmp_path / "a.cuh").write_text("#pragma once\n\nint broken = undeclared;\n")
    (tmp_path / "k.cu").write_text('#include "a.cuh"\n__global__ void k() {}\n\nint also = missing;\n')
    with pytest.raises(RuntimeError) as caught:
        compile_text(source(tmp_path / "k.cu"), [], "sm_90", OPTIONS)
    assert "a.cuh(3)" in str(caught.value)
    assert "k.cu(4)" in str(caught.value)
