"""Every kernel compiles for every dtype and architecture with the backend's options, without spilling registers."""

from __future__ import annotations

import re

import pytest

from gpugrad.backends.launch import OPTIONS
from gpugrad.kernel import source

from .instances import families, instances
from .nvrtc import MISSING, NO_TOOL, compile_text, disassembled, disassembler, toolkit

pytestmark = pytest.mark.skipif(toolkit() is None, reason=MISSING)

BOUNDS = re.compile(r"__global__ void (?:__launch_bounds__\(([^,)]+)[^)]*\)\s*)?(\w+)\(")


def threads(path, mangled):
    """The largest block that a kernel may be launched with: what it declares (0 if by a formula, which the compiler
    keeps to), else 512 for teams a row and 256 for maps."""
    text = path.read_text()
    for bound, name in BOUNDS.findall(text):
        if re.match(rf"_Z{len(name)}{name}(?=[IPEv])", mangled) or mangled == name:
            body = text[text.index(f"{name}(") :].partition("\n}")[0]
            return (
                (int(bound) if bound.isdecimal() else 0)
                if bound
                else 512
                if "row_number" in body or "row_team" in body
                else 256
            )
    raise AssertionError(f"{mangled} is no kernel of {path.name}")


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
    assert len(spills) >= len(names)  # double pow is a function of its own
    assert set(spills) == {("0", "0")}, log
    stacks = re.findall(r"(\d+) bytes stack frame", log)
    assert set(stacks) == {"0"}, log
    for kernel, used in re.findall(r"Compiling entry function '(\w+)'(?:.|\n)*?Used (\d+) registers", log):
        assert int(used) * threads(path, kernel) <= 65536, f"{kernel}: {used} registers a thread, too many to launch"


# 16-byte loads and stores in the machine code of each kernel that is bound by bandwidth: so many at least
PACKETS = {
    "relu_bwd": (2, 1), "activation": (1, 1), "activation_bwd": (2, 1), "bias_act": (1, 1), "bias_act_bwd": (2, 1),
    "absorbed": (2, 1), "dropout": (1, 1), "assert_finite": (1, 0), "softmax": (1, 1), "softmax_bwd": (2, 1),
    "logsumexp_bwd": (1, 1),
    "softmax_xent": (1, 0), "softmax_xent_bwd": (1, 1), "reduce_rows": (1, 0), "reduce_columns": (1, 0),
    "masked_softmax": (1, 1), "rotary": (4, 2), "update": (1, 1), "norm_parts": (1, 0), "scale_into": (1, 1),
    "unscale_into": (1, 1), "layer_norm": (1, 1), "layer_norm_bwd": (2, 1), "cell_moments": (1, 0), "cell_sums": (2, 0),
    "normalize_cells": (1, 1), "normalize_cells_bwd": (2, 1), "gather": (1, 1), "scatter_rows": (1, 1),
}  # fmt: skip
# Why the others move single elements.
SINGLE = {
    "reduce_finish": "adds up a few partial results", "sum_slices": "adds up a few partial results",
    "softmax_strided": "neighbours in memory belong to different rows",
    "softmax_strided_bwd": "neighbours in memory belong to different rows",
    "logsumexp_strided_bwd": "neighbours in memory belong to different rows",
    "im2col": "neighbours come from any offset", "col2im": "neighbours come from any offset",
    "max_pool2d": "windows", "max_pool2d_bwd": "windows", "max_pool2d_pick": "windows", "avg_pool2d": "windows",
    "avg_pool2d_bwd": "windows", "adaptive_avg_pool2d": "windows", "adaptive_avg_pool2d_bwd": "windows",
    "attention": "bound by arithmetic", "attention_dq": "bound by arithmetic",
    "attention_dkv": "bound by arithmetic", "attention_slopes": "a small part of the materialised path",
    "scatter_long": "adds up a few partial results", "place": "index arrays", "layer_norm_sums": "adds up a few rows",
    "merge_moments": "adds up a few partial results", "merge_sums": "adds up a few partial results",
    "norm_total": "adds up a few partial results", "next_scale": "one thread",
}  # fmt: skip


@pytest.mark.skipif(disassembler() is None, reason=NO_TOOL)
@pytest.mark.parametrize("path", families(), ids=lambda p: p.stem)
def test_machine_code_moves_packets_and_keeps_to_registers(path):
    names = [n for n in instances(path) if "double" not in n]
    cubin, _ = compile_text(source(path), names, "sm_90", OPTIONS)
    code = disassembled(cubin)
    assert len(code) == len(names)
    for mangled, text in code.items():
        kernel = next(k for k in {n.partition("<")[0] for n in names} if re.match(rf"_Z{len(k)}{k}(?=[IPEv])", mangled))
        assert not re.findall(r"\b(?:LDL|STL)\b", text), f"{mangled} spills to local memory"
        assert (kernel in PACKETS) != (kernel in SINGLE), f"{kernel}: say whether it moves packets"
        loads, stores = PACKETS.get(kernel, (0, 0))
        assert len(re.findall(r"\bLDG\.E(?:\.\w+)*\.128\b", text)) >= loads, f"{mangled}: loads"
        assert len(re.findall(r"\bSTG\.E(?:\.\w+)*\.128\b", text)) >= stores, f"{mangled}: stores"


def test_no_kernel_is_listed_that_is_not_there():
    there = {n.partition("<")[0] for path in families() for n in instances(path)}
    assert {*PACKETS, *SINGLE} <= there


def test_a_changed_header_gives_another_text_and_another_cubin(tmp_path):
    """CuPy's cache on disk is keyed by the text: the old machine code cannot come back."""
    (tmp_path / "a.cuh").write_text("#pragma once\n#define SCALE 2\n")
    (tmp_path / "k.cu").write_text('#include "a.cuh"\nextern "C" __global__ void k(float* y) { y[0] *= SCALE; }\n')
    made = []
    for scale in (2, 3):
        (tmp_path / "a.cuh").write_text(f"#pragma once\n#define SCALE {scale}\n")
        text = source(tmp_path / "k.cu")
        made.append((text, compile_text(text, [], "sm_90", OPTIONS)[0]))
    assert made[0][0] != made[1][0]
    assert made[0][1] != made[1][1]


def test_errors_name_the_file_and_line_of_a_header(tmp_path):
    (tmp_path / "a.cuh").write_text("#pragma once\n\nint broken = undeclared;\n")
    (tmp_path / "k.cu").write_text('#include "a.cuh"\n__global__ void k() {}\n\nint also = missing;\n')
    with pytest.raises(RuntimeError) as caught:
        compile_text(source(tmp_path / "k.cu"), [], "sm_90", OPTIONS)
    assert "a.cuh(3)" in str(caught.value)
    assert "k.cu(4)" in str(caught.value)
