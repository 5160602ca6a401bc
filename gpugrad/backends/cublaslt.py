"""Matrix products by cuBLASLt, bound through ctypes: true precision by choice, legal in a CUDA graph, fused epilogues.

CuPy's own matmul refuses to run during capture, copies transposed operands of a stack and has no bfloat16 there.
Here a product is described once: descriptors, the heuristic's algorithm and a block of arguments make a `Plan`, kept
by what the operands look like; every later product like it is one foreign call with other addresses.

Our arrays are row-major, the library is column-major: D = A B is computed as D^T = B^T A^T, so the library's A is our
b, its m our columns, and its bias, along the rows of its D, runs along our last axis.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import threading
import weakref
from ctypes import c_double, c_float, c_int, c_int32, c_int64, c_uint32, c_uint64, c_void_p
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gpugrad.dtypes import promote
from gpugrad.errors import DeviceError, DomainError, ShapeError, describe, fail
from gpugrad.precision import get_matmul_precision

if TYPE_CHECKING:
    from gpugrad.backends.cuda import CUDABackend

# --- the library's numbers (cublasLt.h, cublas_api.h, library_types.h) ----------------------------------------------

DATA_TYPE = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14}  # cudaDataType_t
COMPUTE_32F, COMPUTE_64F = 68, 70  # cublasComputeType_t
COMPUTE_FLOAT32 = {"highest": COMPUTE_32F, "fp16": 74, "bf16": 75, "tf32": 77}
COMPUTE_NAME = {68: "32F", 70: "64F", 74: "32F_FAST_16F", 75: "32F_FAST_16BF", 77: "32F_FAST_TF32"}
TRANSA, TRANSB, EPILOGUE, BIAS_POINTER, AUX_POINTER, AUX_LD = 3, 4, 7, 8, 11, 12  # cublasLtMatmulDescAttributes_t
BATCH_COUNT, BATCH_STRIDE = 5, 6  # cublasLtMatrixLayoutAttribute_t
MAX_WORKSPACE, REDUCTIONS, ALIGNMENT_A, ALIGNMENT_B, ALIGNMENT_C, ALIGNMENT_D = 1, 3, 5, 6, 7, 8  # ...Preference...
REDUCE_IN_COMPUTE_TYPE = 2  # of cublasLtReductionScheme_t: parts of a split sum are added in float, never in half
ALGO_ID = 0  # cublasLtMatmulAlgoConfigAttributes_t
STATUS = {
    1: "NOT_INITIALIZED", 3: "ALLOC_FAILED", 7: "INVALID_VALUE", 8: "ARCH_MISMATCH", 11: "MAPPING_ERROR",
    13: "EXECUTION_FAILED", 14: "INTERNAL_ERROR", 15: "NOT_SUPPORTED", 16: "LICENSE_ERROR",
}  # fmt: skip
DECLINED = (7, 8, 15)  # statuses of a product that the library does not do, as opposed to one that failed

# cublasLtEpilogue_t: DEFAULT 1, and the bits RELU 2, BIAS 4, DRELU 8, BGRAD 16, GELU 32, DGELU 64, AUX 128, BGRADA 256,
# BGRADB 512. Its operands are ours exchanged.
EPILOGUES = {
    None: 0, "relu": 2, "gelu": 32, "relu_aux": 130, "gelu_aux": 160, "drelu": 136, "dgelu": 192, "drelu_bgrad": 152,
    "dgelu_bgrad": 208, "bgrad_a": 512, "bgrad_b": 256,
}  # fmt: skip
BIAS, AUX, VECTOR = 4, 128, 4 | 16 | 256 | 512  # VECTOR: whatever reads or writes at the bias pointer
MAKES_AUX, READS_AUX = ("relu_aux", "gelu_aux"), ("drelu", "dgelu", "drelu_bgrad", "dgelu_bgrad")
SUMS = ("drelu_bgrad", "dgelu_bgrad", "bgrad_a", "bgrad_b")
AUX_UNIT, MASK_UNIT = 8, 128  # a row of an aux matrix is a multiple of so many elements; of a bit mask, of so many bits

WORKSPACE = 32 << 20  # bytes a stream: what Hopper's algorithms may ask for
ALIGNED = 16  # bytes that an algorithm reads at once at most; a pointer counts as aligned to no more
PLANS = 4096  # kept a thread; a program of more shapes than that forgets them all and starts over


class Heuristic(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("algo", c_uint64 * 8),
        ("workspace", c_uint64),
        ("state", c_int),
        ("waves", c_float),
        ("reserved", c_int * 4),
    )


class Refused(Exception):
    """A library call answered with an error status."""

    def __init__(self, name: str, status: int) -> None:
        super().__init__(f"{name}: CUBLAS_STATUS_{STATUS.get(status, status)}")
        self.status = status


# --- what a product looks like --------------------------------------------------------------------------------------


class Matrix(NamedTuple):
    """How a row-major matrix, or a stack of them, lies in memory, in elements.

    transposed: its columns are contiguous instead of its rows; ld: from one row (column) to the next; stride: from one
    matrix to the next, 0 where all of the stack are the same one.
    """

    transposed: bool
    ld: int
    stride: int = 0


def spelt(code: int) -> str:
    """An epilogue's number in words."""
    names = {known: name for name, known in EPILOGUES.items() if name is not None}
    return " ".join(["bias"] * bool(code & BIAS) + [names[rest] for rest in (code & ~BIAS,) if rest])


def compute_type(dtype: str, precision: str) -> int:
    """What products of a type are computed in, with float32 at this precision: a cublasComputeType_t."""
    return COMPUTE_64F if dtype == "float64" else COMPUTE_FLOAT32[precision] if dtype == "float32" else COMPUTE_32F


class Problem(NamedTuple):
    """All that the choice of an algorithm depends on."""

    m: int
    n: int
    k: int
    batch: int
    dtype: str
    out: str
    a: Matrix
    b: Matrix
    d: Matrix
    epilogue: int
    compute: int
    alignment: tuple[int, ...]  # of a, b, d in bytes
    aux_ld: int
    device: int


class Path(NamedTuple):
    """What became of a problem: the algorithm and its workspace in bytes, or why it went another way."""

    problem: Problem | None
    compute: str
    algorithm: int | None
    workspace: int
    reason: str
    algo: bytes = b""

    def __str__(self) -> str:
        """One line."""
        p = self.problem
        if p is None:
            return self.reason
        flags = "".join("T" if x.transposed else "N" for x in (p.a, p.b))
        what = f"{p.batch} x " * (p.batch > 1) + f"({p.m}, {p.k}) @ ({p.k}, {p.n}) {p.dtype} {flags}"
        how = self.reason or f"algorithm {self.algorithm}, {self.workspace} bytes of workspace"
        return f"{what}, {self.compute}{f', epilogue {spelt(p.epilogue)}' * (p.epilogue > 0)}: {how}"


def lies(rows: int, cols: int, row: int, col: int) -> Matrix | None:
    """The layout of a matrix with these steps between rows and columns; None where the library cannot read it."""
    if (col == 1 or cols == 1) and (rows == 1 or row >= cols):
        return Matrix(False, cols if rows == 1 else row)
    if (row == 1 or rows == 1) and (cols == 1 or col >= rows):
        return Matrix(True, rows if cols == 1 else col)
    return None


def merged(shape: tuple[int, ...], steps: tuple[int, ...]) -> int | None:
    """The one step with which axes can be walked as a single axis, or None; 0 for none or for a repeated element."""
    axes = [(n, s) for n, s in zip(shape, steps) if n != 1]
    if any(outer != inner * n for (_, outer), (n, inner) in itertools.pairwise(axes)) or any(s < 0 for _, s in axes):
        return None
    return axes[-1][1] if axes else 0


def steps(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> tuple[int, ...] | None:
    """Strides in elements; None where they are no whole number of them."""
    return None if any(s % itemsize for s in strides) else tuple(s // itemsize for s in strides)


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The steps of a C-contiguous array."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


class Geometry(NamedTuple):
    """A product's sizes, layouts and output shape; `copy_a`, `copy_b`: the shape to which an operand is copied first.

    d is None where a given output cannot be written by the library.
    """

    m: int
    n: int
    k: int
    batch: int
    a: Matrix
    b: Matrix
    d: Matrix | None
    shape: tuple[int, ...]
    copy_a: tuple[int, ...] | None
    copy_b: tuple[int, ...] | None


def operand(
    own: tuple[int, ...], shape: tuple[int, ...], step: tuple[int, ...] | None, batch: tuple[int, ...]
) -> tuple[Matrix, tuple[int, ...] | None]:
    """An operand as a stack over `batch`, and the shape to which it must be broadcast and copied to become one.

    own: its shape; shape, step: the same with the axis of length 1 that a vector lacks.
    """
    rows, cols = shape[-2:]
    if step is not None:
        outer = (0,) * (len(batch) + 2 - len(shape)) + tuple(0 if n == 1 else s for n, s in zip(shape[:-2], step))
        stride, matrix = merged(batch, outer), lies(rows, cols, *step[-2:])
        if stride is not None and matrix is not None:
            return matrix._replace(stride=stride), None
    if math.prod(shape[:-2]) == 1:
        return Matrix(False, cols), own
    return Matrix(False, cols, rows * cols), (*batch, rows, cols)


def tall(shape: tuple[int, ...], step: tuple[int, ...] | None) -> Matrix | None:
    """A stack of matrices as one with all their rows, where it lies so."""
    one = None if step is None else merged(shape[:-1], step[:-1])
    return None if step is None or one is None else lies(math.prod(shape[:-1]), shape[-1], one, step[-1])


def arrange(
    a_shape: tuple[int, ...], a_steps: tuple[int, ...] | None, b_shape: tuple[int, ...],
    b_steps: tuple[int, ...] | None, out: tuple[tuple[int, ...], tuple[int, ...] | None] | None = None,
    single: bool = False,
) -> Geometry:  # fmt: skip
    """How to do `matmul` of arrays of these shapes and steps (None: no whole elements) as one product or one stack.

    out: shape and steps of an array to write to. single: a stack times one matrix must be one product, which it
    otherwise is where it lies so in memory. Raises ValueError, as array modules do for shapes that do not fit.
    """
    left, right = (1, *a_shape) if len(a_shape) == 1 else a_shape, (*b_shape, 1) if len(b_shape) == 1 else b_shape
    a_steps = a_steps if a_steps is None or left is a_shape else (0, *a_steps)
    b_steps = b_steps if b_steps is None or right is b_shape else (*b_steps, 0)
    if len(left) < 2 or len(right) < 2 or left[-1] != right[-2]:
        raise ValueError(f"shapes {a_shape} and {b_shape}: the inner lengths must be equal")
    batch = np.broadcast_shapes(left[:-2], right[:-2])
    (m, k), n, count = left[-2:], right[-1], math.prod(batch)
    shape = (*batch, *(() if left is not a_shape else (m,)), *(() if right is not b_shape else (n,)))
    whole = (*batch, m, n)
    a, copy_a = operand(a_shape, left, a_steps, batch)
    b, copy_b = operand(b_shape, right, b_steps, batch)
    if count > 1 and b.stride == 0 and math.prod(left[:-2]) == count:
        one = tall(left, a_steps)
        if one is not None or copy_a is not None or single:
            a, copy_a = (one, None) if one is not None else (Matrix(False, k), left)
            m, count = m * count, 1
    d: Matrix | None = Matrix(False, n, m * n)
    if out is not None:
        if out[0] != shape:
            raise ValueError(f"out has shape {out[0]}, the product {shape}")
        d = None
        if out[1] is not None:
            row = (0,) if left is not a_shape else out[1][len(batch) : len(batch) + 1]
            step = (*out[1][: len(batch)], *row, *((0,) if right is not b_shape else out[1][-1:]))
            d, copy = (tall(whole, step), None) if count == 1 else operand(shape, whole, step, batch)
            if copy is not None or (d is not None and d.transposed):
                d = None
    return Geometry(m, n, k, count, a, b, d, shape, copy_a, copy_b)


# --- the library ----------------------------------------------------------------------------------------------------


class Library:
    """libcublasLt, or its double: calls that raise, descriptors, and the choice of an algorithm.

    All arguments are ctypes values of exactly the declared types, so that none is cut to an int.
    """

    def __init__(self, library: Any) -> None:
        self.library, self.matmul = library, library.cublasLtMatmul
        self.handles: dict[int, c_void_p] = {}

    def call(self, name: str, *args: Any) -> None:
        """Call a function. Raises Refused."""
        status = getattr(self.library, name)(*args)
        if status:
            raise Refused(name, status)

    def handle(self, device: int) -> c_void_p:
        """The handle of the current device, whose number is given."""
        if device not in self.handles:
            made = c_void_p()
            self.call("cublasLtCreate", ctypes.byref(made))
            self.handles[device] = made
        return self.handles[device]

    def create(self, kind: str, *args: Any, owner: Any = None) -> c_void_p:
        """A descriptor, destroyed with its owner if it has one."""
        made = c_void_p()
        self.call(f"cublasLt{kind}Create", ctypes.byref(made), *args)
        if owner is not None:
            weakref.finalize(owner, getattr(self.library, f"cublasLt{kind}Destroy"), made).atexit = False
        return made

    def set(self, kind: str, made: c_void_p, attribute: int, value: Any) -> None:
        """Give an attribute of a descriptor a ctypes value."""
        size = c_uint64(ctypes.sizeof(value))
        self.call(f"cublasLt{kind}SetAttribute", made, c_int(attribute), ctypes.byref(value), size)

    def layout(self, owner: Any, dtype: str, rows: int, cols: int, matrix: Matrix, batch: int) -> c_void_p:
        """The layout of our rows by cols matrix; the library, column-major, reads its transpose."""
        sizes = (rows, cols) if matrix.transposed else (cols, rows)
        numbers = c_int(DATA_TYPE[dtype]), *map(c_uint64, sizes), c_int64(matrix.ld)
        made = self.create("MatrixLayout", *numbers, owner=owner)
        if batch > 1:
            self.set("MatrixLayout", made, BATCH_COUNT, c_int32(batch))
            self.set("MatrixLayout", made, BATCH_STRIDE, c_int64(matrix.stride))
        return made

    def describe(self, p: Problem, owner: Any) -> tuple[c_void_p, ...]:
        """The descriptors of a problem: the product's, and the layouts of the library's A, B and D."""
        scale = "float64" if p.compute == COMPUTE_64F else "float32"
        made = self.create("MatmulDesc", c_int(p.compute), c_int(DATA_TYPE[scale]), owner=owner)
        self.set("MatmulDesc", made, TRANSA, c_int32(p.b.transposed))
        self.set("MatmulDesc", made, TRANSB, c_int32(p.a.transposed))
        self.set("MatmulDesc", made, EPILOGUE, c_uint32(p.epilogue or 1))
        if p.aux_ld:
            self.set("MatmulDesc", made, AUX_LD, c_int64(p.aux_ld))
        return (
            made,
            self.layout(owner, p.dtype, p.k, p.n, p.b, p.batch),
            self.layout(owner, p.dtype, p.m, p.k, p.a, p.batch),
            self.layout(owner, p.out, p.m, p.n, p.d, p.batch),
        )

    def choose(self, p: Problem, descriptors: tuple[c_void_p, ...]) -> Path:
        """What the heuristic takes for a problem; where it has nothing, the path has a reason."""
        found, count = Heuristic(), c_int()
        preference = self.create("MatmulPreference")
        try:
            self.set("MatmulPreference", preference, MAX_WORKSPACE, c_uint64(WORKSPACE))
            if p.out in ("float16", "bfloat16"):
                self.set("MatmulPreference", preference, REDUCTIONS, c_uint32(REDUCE_IN_COMPUTE_TYPE))
            a, b, d = p.alignment
            for attribute, bytes_ in ((ALIGNMENT_A, b), (ALIGNMENT_B, a), (ALIGNMENT_C, d), (ALIGNMENT_D, d)):
                self.set("MatmulPreference", preference, attribute, c_uint32(bytes_))
            self.call(
                "cublasLtMatmulAlgoGetHeuristic", self.handle(p.device), *descriptors, descriptors[-1], preference,
                c_int(1), ctypes.byref(found), ctypes.byref(count),
            )  # fmt: skip
            if not count.value or found.state:
                raise Refused("cublasLtMatmulAlgoGetHeuristic", found.state or 15)
        except Refused as refusal:
            return Path(p, COMPUTE_NAME[p.compute], None, 0, str(refusal))
        finally:
            self.call("cublasLtMatmulPreferenceDestroy", preference)
        number, written = c_int32(), c_uint64()
        self.call(
            "cublasLtMatmulAlgoConfigGetAttribute", found.algo, c_int(ALGO_ID), ctypes.byref(number), c_uint64(4),
            ctypes.byref(written),
        )  # fmt: skip
        return Path(p, COMPUTE_NAME[p.compute], number.value, found.workspace, "", bytes(found.algo))


# --- what the backend calls -----------------------------------------------------------------------------------------


class Plan:
    """One kind of product as one thread runs it: what to copy and to allocate, and the arguments of one foreign call.

    reason: why the library does not do it; there are no arguments then.
    """

    arguments: tuple[Any, ...] = ()
    aux_shape: tuple[int, int] = (0, 0)
    aux_dtype: Any = None
    sums = 0

    def __init__(self, geometry: Geometry, dtype: Any) -> None:
        self.geometry, self.dtype, self.reason = geometry, dtype, ""
        self.shape, self.copy_a, self.copy_b = geometry.shape, geometry.copy_a, geometry.copy_b
        number = c_double if dtype.name == "float64" else c_float
        self.alpha, self.beta = number(1), number(0)
        self.a, self.b, self.c, self.d, self.bias, self.aux, self.workspace, self.stream = (
            c_void_p() for _ in range(8)
        )  # fmt: skip

    def bind(self, handle: c_void_p, descriptors: tuple[c_void_p, ...], path: Path) -> None:
        """Prepare the call, once there is an algorithm. The library's A is our b."""
        self.path, (self.description, a, b, d) = path, descriptors
        self.arguments = (
            handle, self.description, ctypes.byref(self.alpha), self.b, a, self.a, b, ctypes.byref(self.beta),
            self.c, d, self.d, d, (c_uint64 * 8).from_buffer_copy(path.algo), self.workspace, c_uint64(WORKSPACE),
            self.stream,
        )  # fmt: skip


class Gemm:
    """Matrix products of a backend: `gemm(a, b)` is `matmul` of raw arrays.

    library: libcublasLt as a ctypes library, or its double; a string says why there is none.
    """

    def __init__(self, backend: CUDABackend, library: Any) -> None:
        self.backend, self.xp = backend, backend.xp
        self.missing = library if isinstance(library, str) else ""
        self.library = None if self.missing else Library(library)
        self.matmul: Any = self.library and self.library.matmul
        self.workspaces: dict[tuple[int, int], Any] = {}
        self.composed = 0  # products, or parts of them, that the library did not do
        self.chosen: dict[Any, Path] = {}  # by Problem, or by what was asked where it never came to one
        self.mine = threading.local()  # plans: descriptors and arguments belong to one thread

    def __call__(
        self, a: Any, b: Any, *, out: Any = None, bias: Any = None, epilogue: str | None = None, aux: Any = None,
        alpha: float = 1.0, addend: Any = None,
    ) -> Any:  # fmt: skip
        """epilogue(alpha a @ b + addend + bias), broadcast as NumPy's matmul, in `out` or a new array.

        a (..., m, k) or (k,), b (..., k, n) or (k,). Arrays of float32, float64, float16 or bfloat16 go to cuBLASLt
        and are summed in float32 (float64 in itself); see `gpugrad.set_matmul_precision`. Transposed views are read as
        they lie. Other types, and what the library declines, are left to the array module; `paths` tells which and why.

        out: an array of the result's shape, and of its type or float32. addend: another one of that shape, or `out`.
        bias (n,): added to each row. epilogue: 'relu' or 'gelu' (its tanh form). With '_aux' the result is (out, aux):
        aux is for 'drelu' and 'dgelu', which multiply by the slope of that activation; with '_bgrad' their result is
        (out, sums over the rows of out (n,)). 'bgrad_a' and 'bgrad_b': (out, sums over k of a (m,) or b (n,)). Those
        with aux or sums take one matrix b, and count all rows of a as m. The library's relu makes 0 of NaN.
        Raises ValueError (ShapeError, DomainError), and DeviceError if the call fails.
        """
        xp, device = self.xp, self.backend.device
        p, q = a.data.ptr | ALIGNED, b.data.ptr | ALIGNED
        key = (
            a.shape, a.strides, a.dtype, p & -p, b.shape, b.strides, b.dtype, q & -q, device, get_matmul_precision(),
            epilogue, out is None or looks(out), bias is None or looks(bias), aux is None or looks(aux),
            addend is None or (addend is not out and looks(addend)),
        )  # fmt: skip
        try:
            plan = self.mine.plans[key]
        except (AttributeError, KeyError):
            plan = self.prepare(key, a, b, out, bias, epilogue, aux, addend)
        if plan.reason:
            return self.compose(a, b, out, bias, epilogue, aux, alpha, addend)
        if plan.copy_a is not None:
            a = xp.ascontiguousarray(xp.broadcast_to(a, plan.copy_a))
        if plan.copy_b is not None:
            b = xp.ascontiguousarray(xp.broadcast_to(b, plan.copy_b))
        result = xp.empty(plan.shape, plan.dtype) if out is None else out
        extra = None if epilogue is None and bias is None else self.attach(plan, epilogue, bias, aux)
        stream = xp.cuda.get_current_stream().ptr
        try:
            workspace = self.workspaces[device, stream]
        except KeyError:
            workspace = self.workspaces[device, stream] = xp.empty(WORKSPACE, "uint8")
        plan.a.value, plan.b.value, plan.d.value = a.data.ptr, b.data.ptr, result.data.ptr
        plan.c.value = plan.d.value if addend is None else addend.data.ptr
        plan.alpha.value, plan.workspace.value, plan.stream.value = alpha, workspace.data.ptr, stream
        status = self.matmul(*plan.arguments)
        if status:
            self.failed(plan, status)
            return self.compose(a, b, out, bias, epilogue, aux, alpha, addend)
        if self.backend.checked:
            xp.cuda.get_current_stream().synchronize()
        return result if extra is None else (result, extra)

    # --- once a kind of product -------------------------------------------------------------------------------------

    def prepare(
        self, key: Any, a: Any, b: Any, out: Any, bias: Any, epilogue: str | None, aux: Any, addend: Any
    ) -> Plan:  # fmt: skip
        """Make the plan of a product and keep it for this thread. Raises what `__call__` raises for wrong operands."""
        if epilogue not in EPILOGUES:
            raise fail(DomainError, "matmul", f"no epilogue {epilogue!r}; expected one of {[*EPILOGUES]}")
        single = epilogue in (*MAKES_AUX, *READS_AUX, *SUMS)
        lie = [steps(x.shape, x.strides, x.dtype.itemsize) for x in (a, b)]
        into = None if out is None else (out.shape, steps(out.shape, out.strides, out.dtype.itemsize))
        g = arrange(a.shape, lie[0], b.shape, lie[1], into, single)
        plan = Plan(g, a.dtype if out is None else out.dtype)
        plan.beta.value = addend is not None
        if addend is not None and addend.shape != g.shape:
            raise fail(ShapeError, "matmul", f"addend {describe(addend)} for a product of shape {list(g.shape)}")
        code = EPILOGUES[epilogue] | (BIAS if bias is not None else 0)
        if single and g.batch != 1:
            raise fail(ShapeError, "matmul", f"epilogue {epilogue!r} takes one matrix b, not {describe(b)}")
        if bias is not None and (bias.shape != (g.n,) or epilogue in (*READS_AUX, *SUMS)):
            raise fail(ShapeError, "matmul", f"bias {describe(bias)} for {g.n} columns and epilogue {epilogue!r}")
        if code & AUX:
            relu = "relu" in str(epilogue)
            plan.aux_shape = mask_shape((g.m, g.n)) if relu else (g.m, -(-g.n // AUX_UNIT) * AUX_UNIT)
            plan.aux_dtype = np.dtype("uint8") if relu else plan.dtype
            if epilogue in READS_AUX and (aux is None or (aux.shape, aux.dtype) != (plan.aux_shape, plan.aux_dtype)):
                wanted = f"{plan.aux_dtype}{list(plan.aux_shape)}"
                raise fail(ShapeError, "matmul", f"epilogue {epilogue!r} needs aux {wanted}, got {describe(aux)}")
        plan.sums = g.m if epilogue == "bgrad_a" else g.n
        plan.reason = self.unfit(plan, a, b, bias, aux)
        if addend is not None and addend is not out and not plan.reason:
            like = out is None and addend.dtype == plan.dtype and addend.flags.c_contiguous
            plan.reason = "" if like else "the addend does not lie like the result"
        if plan.reason:
            if 0 not in (g.m, g.n, g.k, g.batch):
                self.chosen.setdefault((plan.reason, a.dtype.name, b.dtype.name), Path(None, "", None, 0, plan.reason))
        else:
            self.solve(plan, key, a.dtype.name, code, aux, bias)
        plans = self.mine.__dict__.setdefault("plans", {})
        if len(plans) >= PLANS:
            plans.clear()
            self.chosen.clear()
        plans[key] = plan
        return plan

    def unfit(self, plan: Plan, a: Any, b: Any, bias: Any, aux: Any) -> str:
        """Why a product is not even shown to the library; empty if it is."""
        g, name = plan.geometry, a.dtype.name
        if 0 in (g.m, g.n, g.k, g.batch):
            return "nothing to multiply"
        if name not in DATA_TYPE or a.dtype != b.dtype:
            return f"cuBLASLt is not asked for {a.dtype} by {b.dtype}"
        if plan.dtype != a.dtype and (plan.dtype.name, a.dtype.itemsize) != ("float32", 2):
            return f"{plan.dtype} results of {name} are converted"
        if g.d is None:
            return "the library cannot write to an array that lies like `out`"
        if bias is not None and bias.dtype != plan.dtype:
            return f"a bias of {bias.dtype} for results of {plan.dtype}"
        if any(x is not None and not x.flags.c_contiguous for x in (bias, aux)):
            return "bias or aux is not contiguous"
        return self.missing

    def solve(self, plan: Plan, key: Any, name: str, code: int, aux: Any, bias: Any) -> None:
        """Describe the problem, and find or look up its algorithm."""
        g, device = plan.geometry, key[8]
        compute = compute_type(name, key[9])
        alignment = (
            ALIGNED if g.copy_a else key[3], ALIGNED if g.copy_b else key[7],
            min(ALIGNED if type(x) is bool else x[3] for x in (key[11], key[14])),
        )  # fmt: skip
        aux_ld = 0 if not code & AUX else plan.aux_shape[1] * (8 if plan.aux_dtype.name == "uint8" else 1)
        assert g.d is not None
        problem = Problem(
            g.m, g.n, g.k, g.batch, name, plan.dtype.name, g.a, g.b, g.d, code, compute, alignment, aux_ld, device
        )  # fmt: skip
        library = self.library
        assert library is not None
        try:
            handle = library.handle(device)
            descriptors = library.describe(problem, plan)
            for bits, attribute, array in ((VECTOR, BIAS_POINTER, bias), (AUX, AUX_POINTER, aux)):
                if code & bits:  # the heuristic wants to know the alignment
                    place = c_void_p(ALIGNED if array is None else array.data.ptr)
                    library.set("MatmulDesc", descriptors[0], attribute, place)
        except Refused as refusal:
            plan.reason = str(refusal)
            self.chosen[problem] = Path(problem, COMPUTE_NAME[compute], None, 0, plan.reason)
            return
        path = self.chosen.get(problem)
        if path is None:
            path = self.chosen[problem] = library.choose(problem, descriptors)
        plan.reason = path.reason
        if not path.reason:
            plan.bind(handle, descriptors, path)

    def attach(self, plan: Plan, epilogue: str | None, bias: Any, aux: Any) -> Any:
        """Give the descriptor the addresses of bias and aux; what the epilogue returns beside the product is made."""
        extra = None
        if epilogue in MAKES_AUX:
            extra = aux = self.xp.empty(plan.aux_shape, plan.aux_dtype)
        elif epilogue in SUMS:
            extra = bias = self.xp.empty(plan.sums, plan.dtype)
        for box, attribute, array in ((plan.bias, BIAS_POINTER, bias), (plan.aux, AUX_POINTER, aux)):
            if array is not None and box.value != array.data.ptr:
                box.value = array.data.ptr
                self.library.set("MatmulDesc", plan.description, attribute, box)  # type: ignore[union-attr]
        return extra

    def failed(self, plan: Plan, status: int) -> None:
        """Note a product that the library turned down when it came to it. Raises DeviceError if it failed instead."""
        refusal = Refused("cublasLtMatmul", status)
        if status not in DECLINED:
            raise fail(DeviceError, "matmul", str(refusal))
        plan.reason = str(refusal)
        self.chosen[plan.path.problem] = plan.path._replace(algorithm=None, reason=plan.reason)

    # --- without the library ----------------------------------------------------------------------------------------

    def compose(
        self, a: Any, b: Any, out: Any, bias: Any, epilogue: str | None, aux: Any, alpha: float, addend: Any
    ) -> Any:  # fmt: skip
        """What `__call__` gives, of a bare product and functions of the array module."""
        xp = self.xp
        self.composed += 1
        if a.dtype != b.dtype:
            common = promote(a.dtype, b.dtype)
            a, b = a.astype(common, copy=False), b.astype(common, copy=False)
            return self(a, b, out=out, bias=bias, epilogue=epilogue, aux=aux, alpha=alpha, addend=addend)
        bare = out is None and bias is None and epilogue is None and addend is None
        y = self.product(a, b) if bare else self(a, b)
        if bare and alpha == 1:
            return y
        kind, n, extra = (y if out is None else out).dtype, 1 if b.ndim == 1 else b.shape[-1], None
        flat = (y.size // max(n, 1), n)
        rows = wide(y).reshape(flat) * alpha
        rows = rows if addend is None else rows + wide(addend).reshape(flat)
        rows = rows if bias is None else rows + wide(bias)
        if epilogue in ("relu", "relu_aux"):
            if epilogue == "relu_aux":
                extra = mask_of(xp, rows)
            rows = xp.maximum(rows, 0)
        elif epilogue in ("gelu", "gelu_aux"):
            if epilogue == "gelu_aux":
                extra = xp.zeros((rows.shape[0], -(-n // AUX_UNIT) * AUX_UNIT), kind)
                extra[:, :n] = rows
            rows = 0.5 * rows * (1 + bend(xp, rows))
        elif epilogue in ("drelu", "drelu_bgrad"):
            mask = xp.unpackbits(aux, bitorder="little").reshape(rows.shape[0], -1)[:, :n]
            rows = rows * mask.astype(rows.dtype)
        elif epilogue in ("dgelu", "dgelu_bgrad"):
            x = wide(aux[:, :n])
            t = bend(xp, x)
            rows = rows * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * GELU_SCALE * (1 + 3 * GELU_CUBE * x * x))
        if epilogue in SUMS:
            parts = {"bgrad_a": lambda: wide(a).sum(-1).reshape(-1), "bgrad_b": lambda: wide(b).reshape(-1, n).sum(0)}
            extra = parts.get(str(epilogue), lambda: rows.sum(0))().astype(kind, copy=False)
        y = rows.reshape(y.shape).astype(kind, copy=False)
        if out is not None:
            out[...] = y
            y = out
        return y if extra is None else (y, extra)

    def product(self, a: Any, b: Any) -> Any:
        """The array module's product; 16-bit operands in float32, because CuPy has no stacks of bfloat16."""
        if 0 in a.shape or 0 in b.shape:
            return self.xp.zeros(arrange(a.shape, None, b.shape, None).shape, a.dtype)
        return self.xp.matmul(wide(a), wide(b)).astype(a.dtype, copy=False)

    # --- what happened ----------------------------------------------------------------------------------------------

    def paths(self) -> list[Path]:
        """Every kind of product so far: its algorithm, or why it did not go to the library."""
        return list(self.chosen.values())

    def compute_name(self, dtype: Any) -> str:
        """What a product of this type is computed in here and now."""
        return COMPUTE_NAME[compute_type(dtype.name, get_matmul_precision())]

    def computed(self) -> list[str]:
        """What products were computed in so far, such as 'float32 in 32F' or 'float32 without cuBLASLt'."""
        return sorted({
            f"{p.problem.dtype} {f'in {p.compute}' if not p.reason else 'without cuBLASLt'}"
            for p in self.paths() if p.problem is not None
        })  # fmt: skip

    def report(self) -> str:
        """`paths` as text, a line each."""
        return "\n".join(map(str, self.paths()))


def mask_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """The shape in bytes of the bit mask of an array: its rows, each a whole number of units."""
    return math.prod(shape[:-1]), -(-shape[-1] // MASK_UNIT) * MASK_UNIT // 8


def mask_of(xp: Any, x: Any) -> Any:
    """Where x is above 0, a bit an element, as the library's relu notes it."""
    rows, width = mask_shape(x.shape)
    mask = xp.zeros((rows, width * 8), "bool")
    mask[:, : x.shape[-1]] = x.reshape(rows, -1) > 0
    return xp.packbits(mask, bitorder="little").reshape(rows, width)


GELU_SCALE, GELU_CUBE = math.sqrt(2 / math.pi), 0.044715


def bend(xp: Any, x: Any) -> Any:
    """The tanh of the tanh form of gelu(x) = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), Hendrycks and Gimpel."""
    return xp.tanh(GELU_SCALE * (x + GELU_CUBE * x * x * x))


def wide(x: Any) -> Any:
    """16-bit floats in float32; others as they are."""
    return x.astype("float32") if x.dtype.name in ("float16", "bfloat16") else x


def looks(x: Any) -> tuple[Any, ...]:
    """What of an array a plan depends on: shape, strides, type and alignment."""
    place = x.data.ptr | ALIGNED
    return x.shape, x.strides, x.dtype, place & -place
