"""NVRTC through ctypes, from the wheels that MISSING names (or those of CUDA 13): no GPU, no CuPy."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

NO_TOOL = "cuobjdump is not installed: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm"
MISSING = "NVRTC or the CUDA headers are not installed: pip install nvidia-cuda-nvrtc-cu12 nvidia-cuda-runtime-cu12"


class Toolkit(NamedTuple):
    library: ctypes.CDLL
    includes: list[str]
    version: tuple[int, int]


@functools.cache
def toolkit() -> Toolkit | None:
    """The compiler library and header folders of the installed wheels, or None."""
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(p) for p in spec.submodule_search_locations] if spec and spec.submodule_search_locations else []
    libraries = [p for root in roots for p in sorted(root.glob("*/lib/libnvrtc.so.*"))]
    includes = sorted({str(p.parent) for root in roots for p in root.glob("*/include/cuda_fp16.h")})
    if not libraries or not includes:
        return None
    for builtins in libraries[0].parent.glob("libnvrtc-builtins.so*"):
        ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(str(libraries[0]))
    major, minor = ctypes.c_int(), ctypes.c_int()
    library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return Toolkit(library, includes, (major.value, minor.value))


def disassembler() -> str | None:
    """The path of cuobjdump, from its wheel or the PATH, or None."""
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(p) for p in spec.submodule_search_locations] if spec and spec.submodule_search_locations else []
    found = [str(p) for root in roots for p in root.glob("*/bin/cuobjdump")]
    return found[0] if found else shutil.which("cuobjdump")


def disassembled(cubin: bytes) -> dict[str, str]:
    """The machine code of each kernel in a cubin, by its mangled name."""
    tool = disassembler()
    assert tool is not None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([tool, "--dump-sass", file.name], capture_output=True, text=True, check=True)
    parts = re.split(r"^\s*Function : (\S+)$", done.stdout, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2]))


def compile_text(text: str, names: list[str], arch: str, options: tuple[str, ...] = ()) -> tuple[bytes, str]:
    """The cubin (arch 'sm_90') or PTX ('compute_90') of the instances, and the log. A RuntimeError carries the log."""
    kit = toolkit()
    assert kit is not None, MISSING
    lib, program = kit.library, ctypes.c_void_p()
    lib.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernel.cu", 0, None, None)
    try:
        for name in names:
            lib.nvrtcAddNameExpression(program, name.encode())
        given = [f"-arch={arch}", "-ftz=true", *options, *(f"-I{i}" for i in kit.includes)]
        status = lib.nvrtcCompileProgram(
            program, len(given), (ctypes.c_char_p * len(given))(*[o.encode() for o in given])
        )
        size = ctypes.c_size_t()
        lib.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        lib.nvrtcGetProgramLog(program, log)
        if status:
            raise RuntimeError(log.value.decode())
        kind = "CUBIN" if arch.startswith("sm_") else "PTX"
        getattr(lib, f"nvrtcGet{kind}Size")(program, ctypes.byref(size))
        made = ctypes.create_string_buffer(size.value)
        getattr(lib, f"nvrtcGet{kind}")(program, made)
        return made.raw, log.value.decode()
    finally:
        lib.nvrtcDestroyProgram(ctypes.byref(program))
