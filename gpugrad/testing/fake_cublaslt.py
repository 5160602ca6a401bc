"""A double of libcublasLt: the C functions that gpugrad calls, on NumPy memory, for machines without a GPU.

It reads what it is given as the library does: column-major layouts with leading dimensions and batch strides,
transposes, compute types (float32 factors rounded to TF32, bfloat16 or float16), epilogues with bias, bit mask and
sums. It refuses wrong attribute sizes, impossible layouts, pointers less aligned than was promised, an algorithm of
another problem, and what may not happen while a stream captures. It does no epilogue in double precision, so that
declined products are met as well.
"""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Callable
from ctypes import c_char, c_int, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from typing import Any

import numpy as np

from gpugrad.testing.fake_streams import submit

P = c_void_p
PROTOTYPES: dict[str, tuple[Any, ...]] = {
    "Create": (P,),
    "MatmulDescCreate": (P, c_int, c_int), "MatmulDescDestroy": (P,), "MatmulDescSetAttribute": (P, c_int, P, c_size_t),
    "MatrixLayoutCreate": (P, c_int, c_uint64, c_uint64, c_int64), "MatrixLayoutDestroy": (P,),
    "MatrixLayoutSetAttribute": (P, c_int, P, c_size_t),
    "MatmulPreferenceCreate": (P,), "MatmulPreferenceDestroy": (P,),
    "MatmulPreferenceSetAttribute": (P, c_int, P, c_size_t),
    "MatmulAlgoGetHeuristic": (P, P, P, P, P, P, P, c_int, P, P),
    "MatmulAlgoConfigGetAttribute": (P, c_int, P, c_size_t, P),
    "Matmul": (*(P,) * 14, c_size_t, P),
}  # fmt: skip
OK, INVALID_VALUE, INTERNAL_ERROR, NOT_SUPPORTED = 0, 7, 14, 15
ATTRIBUTES: dict[str, dict[int, tuple[str, Any]]] = {
    "MatmulDesc": {
        3: ("transa", c_int32), 4: ("transb", c_int32), 7: ("epilogue", c_uint32), 8: ("bias", P), 11: ("aux", P),
        12: ("aux_ld", c_int64),
    },
    "MatrixLayout": {5: ("batch", c_int32), 6: ("stride", c_int64)},
    "MatmulPreference": {
        1: ("workspace", c_uint64), 3: ("reductions", c_uint32), 5: ("align_a", c_uint32), 6: ("align_b", c_uint32),
        7: ("align_c", c_uint32), 8: ("align_d", c_uint32),
    },
}  # fmt: skip
DTYPE = {0: "float32", 1: "float64", 2: "float16", 14: "uint16"}  # bfloat16 as its bits
# DEFAULT, then RELU 2, BIAS 4, DRELU 8, BGRAD 16, GELU 32, DGELU 64, AUX 128, BGRADA 256, BGRADB 512 as they combine
EPILOGUES = (1, 2, 4, 6, 130, 134, 136, 152, 32, 36, 160, 164, 192, 208, 256, 512)
SUMS = 16 | 256 | 512
BITS: Any = "little"  # the order of a mask's bits in a byte
VECTOR = 4 | SUMS  # whatever reads or writes at the bias pointer
TRANSFER = {"A": "align_a", "B": "align_b", "C": "align_c", "D": "align_d"}
SPLIT_FROM = 512  # inner lengths from which an algorithm wants a workspace, and splits the sum if it may
OUTPUT_TYPE = 4  # the reduction scheme that adds parts in the type of D
WORKSPACE = 1 << 16
MAGIC = 0x6C74


def rounded(x: Any, bits: int) -> Any:
    """float32 with the last bits of its significand rounded away, to even."""
    n = x.view(np.uint32).astype(np.uint64)
    n = ((n + (1 << (bits - 1)) - 1 + ((n >> bits) & 1)) >> bits << bits).astype(np.uint32)
    return np.where(np.isnan(x), x, n.view(np.float32))


FACTOR: dict[int, Callable[[Any], Any]] = {
    68: lambda x: x, 70: lambda x: x, 74: lambda x: x.astype(np.float16).astype(np.float32),
    75: lambda x: rounded(x, 16), 77: lambda x: rounded(x, 13),
}  # fmt: skip


def memory(address: int, dtype: str, count: int) -> Any:
    """Elements at an address, as a NumPy array of them."""
    size = count * np.dtype(dtype).itemsize
    return np.frombuffer(memoryview((c_char * size).from_address(address)), dtype)


class Record:
    """A descriptor: what it was made with and its attributes, under their names."""

    def __init__(self, kind: str, **values: Any) -> None:
        self.kind = kind
        self.__dict__.update(values)

    def __getattr__(self, name: str) -> Any:
        return 0  # an attribute that was not set

    def look(self) -> tuple[Any, ...]:
        """All but the addresses, which may change from call to call."""
        return tuple(sorted((k, v) for k, v in self.__dict__.items() if k not in ("bias", "aux")))

    def view(self, address: int) -> Any:
        """The matrices of a layout, (batch, rows, cols), at an address."""
        count = max(1, self.batch)
        extent = (count - 1) * self.stride + (self.cols - 1) * self.ld + self.rows
        flat = memory(address, DTYPE[self.type], extent)
        steps = tuple(s * flat.itemsize for s in (self.stride, 1, self.ld))
        return np.lib.stride_tricks.as_strided(flat, (count, self.rows, self.cols), steps)


def widened(x: Any) -> Any:
    """Stored numbers as those that are computed with: float64 of itself, all else in float32."""
    if x.dtype == np.uint16:
        return (x.astype(np.uint32) << 16).view(np.float32)
    return x.astype(np.float64 if x.dtype == np.float64 else np.float32)


def narrowed(x: Any, dtype: Any) -> Any:
    """Numbers as they are stored."""
    if dtype == np.uint16:
        return (rounded(np.ascontiguousarray(x, np.float32), 16).view(np.uint32) >> 16).astype(np.uint16)
    return x.astype(dtype)


def gelu(x: Any) -> tuple[Any, Any]:
    """The tanh form and its slope."""
    c = math.sqrt(2 / math.pi)
    t = np.tanh(c * (x + 0.044715 * x**3))
    return 0.5 * x * (1 + t), 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x)


def fingerprint(records: list[Record]) -> int:
    """A number for the descriptors of a product."""
    return hash(tuple(r.look() for r in records)) & (2**64 - 1)


class Function:
    """A C function with its true prototype; an exception in it passes to the caller."""

    def __init__(self, library: Library, name: str, types: tuple[Any, ...]) -> None:
        self.library, self.name, self.types = library, name, types
        self.body = getattr(library, name)
        self.c = ctypes.CFUNCTYPE(c_int, *types)(self.guarded)

    def guarded(self, *args: Any) -> Any:
        """The Python body; C knows no exceptions."""
        try:
            return self.body(*args)
        except Exception as error:
            self.library.error = error
            return INTERNAL_ERROR

    def __call__(self, *args: Any) -> Any:
        self.library.calls.append(self.name)
        if len(args) != len(self.types) or any(isinstance(a, int) for a in args):
            raise TypeError(f"{self.name} takes {len(self.types)} ctypes values; a Python int would be cut to 32 bits")
        status = self.c(*args)
        error, self.library.error = self.library.error, None
        if error is not None:
            raise error
        return status


class Library:
    """The functions as attributes, as `ctypes.CDLL` has them, and `calls`, the names of those that were called.

    graph: what the current stream captures into, None if it does not; stream: the current stream's address.
    """

    def __init__(self, graph: Callable[[], Any], stream: Callable[[], int]) -> None:
        self.graph, self.stream = graph, stream
        self.calls: list[str] = []
        self.records: dict[int, Record] = {}
        self.error: Exception | None = None
        self.numbers = itertools.count(0x1000, 16)
        for name, types in PROTOTYPES.items():
            setattr(self, f"cublasLt{name}", Function(self, name, types))

    # --- descriptors ------------------------------------------------------------------------------------------------

    def add(self, place: int, record: Record) -> int:
        """Hand out a record."""
        if self.graph() is not None:
            raise RuntimeError(f"{record.kind} is created while a stream captures")
        number = next(self.numbers)
        self.records[number] = record
        c_void_p.from_address(place).value = number
        return OK

    def change(self, kind: str, number: int, attribute: int, place: int, size: int) -> int:
        """Set an attribute of a record."""
        name, ctype = ATTRIBUTES[kind].get(attribute, ("", c_char))
        record = self.records.get(number)
        if not name or size != ctypes.sizeof(ctype) or record is None or record.kind != kind:
            return INVALID_VALUE
        setattr(record, name, ctype.from_address(place).value)
        return OK

    def remove(self, kind: str, number: int) -> int:
        """Forget a record."""
        record = self.records.pop(number, None)
        return INVALID_VALUE if record is None or record.kind != kind else OK

    def Create(self, place: int) -> int:
        """A handle."""
        return self.add(place, Record("handle"))

    def MatmulDescCreate(self, place: int, compute: int, scale: int) -> int:
        """A product's descriptor."""
        return self.add(place, Record("MatmulDesc", compute=compute, scale=scale, epilogue=1))

    def MatrixLayoutCreate(self, place: int, dtype: int, rows: int, cols: int, ld: int) -> int:
        """A layout; its columns do not overlap."""
        if dtype not in DTYPE or ld < rows or not rows or not cols:
            return INVALID_VALUE
        return self.add(place, Record("MatrixLayout", type=dtype, rows=rows, cols=cols, ld=ld, batch=1))

    def MatmulPreferenceCreate(self, place: int) -> int:
        """What an algorithm may use and rely on."""
        aligned = dict.fromkeys(TRANSFER.values(), 256)
        return self.add(place, Record("MatmulPreference", reductions=7, **aligned))

    def MatmulDescSetAttribute(self, *args: Any) -> int:
        """Transposes, epilogue, addresses."""
        return self.change("MatmulDesc", *args)

    def MatrixLayoutSetAttribute(self, *args: Any) -> int:
        """The batch."""
        return self.change("MatrixLayout", *args)

    def MatmulPreferenceSetAttribute(self, *args: Any) -> int:
        """Workspace, alignments, reductions."""
        return self.change("MatmulPreference", *args)

    def MatmulDescDestroy(self, number: int) -> int:
        """Forget it."""
        return self.remove("MatmulDesc", number)

    def MatrixLayoutDestroy(self, number: int) -> int:
        """Forget it."""
        return self.remove("MatrixLayout", number)

    def MatmulPreferenceDestroy(self, number: int) -> int:
        """Forget it."""
        return self.remove("MatmulPreference", number)

    # --- algorithms -------------------------------------------------------------------------------------------------

    def judge(self, desc: Record, a: Record, b: Record, c: Record, d: Record) -> int:
        """Whether the descriptors make a product that is done."""
        m, k = (a.cols, a.rows) if desc.transa else (a.rows, a.cols)
        inner, n = (b.cols, b.rows) if desc.transb else (b.rows, b.cols)
        double = desc.compute == 70
        types = {(0, 0)} if desc.compute in (74, 75, 77) else {(1, 1)} if double else {(t, t) for t in (0, 2, 14)}
        types |= {(2, 0), (14, 0)} if desc.compute == 68 else set()
        if k != inner or (d.rows, d.cols) != (m, n) or c.look() != d.look() or a.type != b.type:
            return INVALID_VALUE
        if desc.compute not in FACTOR or desc.scale != (1 if double else 0) or (a.type, d.type) not in types:
            return INVALID_VALUE
        if len({x.batch for x in (a, b, d)}) > 1 or (d.batch > 1 and d.stride < d.rows):
            return INVALID_VALUE
        if desc.epilogue not in EPILOGUES:
            return INVALID_VALUE
        if desc.epilogue & 128:
            unit = 128 if desc.epilogue & 10 else 8
            if desc.aux_ld % unit or desc.aux_ld < m or not desc.aux or desc.aux % 16:
                return INVALID_VALUE
        if desc.epilogue & VECTOR and (not desc.bias or desc.bias % np.dtype(DTYPE[d.type]).itemsize):
            return INVALID_VALUE
        if d.batch > 1 and desc.epilogue & (128 | SUMS):
            return NOT_SUPPORTED
        return NOT_SUPPORTED if double and desc.epilogue != 1 else OK

    def MatmulAlgoGetHeuristic(
        self, handle: int, desc: int, a: int, b: int, c: int, d: int, preference: int, wanted: int, result: int,
        count: int,
    ) -> int:  # fmt: skip
        """One algorithm, written to a cublasLtMatmulHeuristicResult_t of 96 bytes."""
        if self.graph() is not None:
            raise RuntimeError("an algorithm is looked for while a stream captures")
        records = [self.records[n] for n in (desc, a, b, c, d)]
        prefer = self.records[preference]
        if self.records[handle].kind != "handle" or wanted < 1:
            return INVALID_VALUE
        status = self.judge(*records)
        c_int.from_address(count).value = int(status == OK)
        if status:
            return status
        aligned = [min(16, getattr(prefer, name)) for name in TRANSFER.values()]
        inner = records[1].rows if records[0].transa else records[1].cols
        workspace = WORKSPACE if inner >= SPLIT_FROM and prefer.workspace >= WORKSPACE else 0
        algo = (c_uint64 * 12).from_address(result)
        halves = bool(workspace and prefer.reductions & OUTPUT_TYPE)
        algo[:] = [MAGIC, fingerprint(records), *aligned, workspace, halves, workspace, 0, 0, 0]
        return OK

    def MatmulAlgoConfigGetAttribute(self, algo: int, attribute: int, place: int, size: int, written: int) -> int:
        """The number of an algorithm: 1 for one that needs aligned operands, else 0."""
        data = (c_uint64 * 8).from_address(algo)
        if data[0] != MAGIC or attribute != 0 or size != 4:
            return INVALID_VALUE
        c_int32.from_address(place).value = int(min(data[2:6]) == 16)
        c_size_t.from_address(written).value = 4
        return OK

    def Matmul(
        self, handle: int, desc: int, alpha: int, a: int, a_desc: int, b: int, b_desc: int, beta: int, c: int,
        c_desc: int, d: int, d_desc: int, algo: int, workspace: int, size: int, stream: int,
    ) -> int:  # fmt: skip
        """D = epilogue(alpha op(A) op(B) + beta C), now or when the graph is launched."""
        records = [self.records[n] for n in (desc, a_desc, b_desc, c_desc, d_desc)]
        what, layouts = records[0], records[1:]
        data = list((c_uint64 * 8).from_address(algo))
        if self.records[handle].kind != "handle" or (stream or 0) != self.stream() or self.judge(*records):
            return INVALID_VALUE
        if data[0] != MAGIC or data[1] != fingerprint(records):
            return INVALID_VALUE
        if any(not p or p % n for p, n in zip((a, b, c, d), data[2:6])) or size < data[6] or (size and not workspace):
            return INVALID_VALUE
        number = ctypes.c_double if what.scale else ctypes.c_float
        factors = number.from_address(alpha).value, number.from_address(beta).value
        now = Record("MatmulDesc", **{k: v for k, v in what.__dict__.items() if k != "kind"})

        def work() -> None:
            memory(workspace, "uint8", data[6])[:] = 0xA5
            multiply(now, layouts, (a, b, c, d), *factors, halves=bool(data[7]))

        submit(work)
        return OK


def multiply(
    desc: Record, layouts: list[Record], places: tuple[int, ...], alpha: float, beta: float, halves: bool
) -> None:  # fmt: skip
    """The product itself; `halves`: as two, each of which is stored in the type of D before they are added."""
    a, b, c, d = (layout.view(place) for layout, place in zip(layouts, places))
    left, right = (FACTOR[desc.compute](widened(x)) for x in (a, b))
    left, right = (x.swapaxes(1, 2) if t else x for x, t in ((left, desc.transa), (right, desc.transb)))
    code, rows, cols = desc.epilogue, d.shape[1], d.shape[2]
    cut = left.shape[2] // 2 if halves else 0
    x = np.matmul(left[:, :, cut:], right[:, cut:])
    if halves:
        x = sum(widened(narrowed(part, d.dtype)) for part in (x, np.matmul(left[:, :, :cut], right[:, :cut])))
    x = x * left.dtype.type(alpha)
    if beta:
        x = x + widened(c) * left.dtype.type(beta)
    if code & 4:
        x = x + widened(memory(desc.bias, d.dtype.name, rows))[None, :, None]
    relu, gelu_, drelu, dgelu = (code & bit for bit in (2, 32, 8, 64))
    if code & 128 and (relu or drelu):
        mask = memory(desc.aux, "uint8", cols * desc.aux_ld // 8).reshape(cols, -1)
        if relu:
            on = np.zeros((cols, desc.aux_ld), bool)
            on[:, :rows] = x[0].T > 0
            mask[:] = np.packbits(on, axis=1, bitorder=BITS)
        else:
            x = x * np.unpackbits(mask, axis=1, bitorder=BITS)[:, :rows].T
    if code & 128 and (gelu_ or dgelu):
        kept = memory(desc.aux, d.dtype.name, cols * desc.aux_ld).reshape(cols, -1)[:, :rows]
        if gelu_:
            kept[:] = narrowed(x[0].T, d.dtype)
        else:
            x = x * gelu(widened(kept).T)[1]
    if relu:
        x = np.where(x > 0, x, 0)  # NaN becomes 0, as in the library
    if gelu_:
        x = gelu(x)[0]
    d[:] = narrowed(x, d.dtype)
    sums: dict[int, Callable[[], Any]] = {
        16: lambda: x[0].sum(1), 256: lambda: left[0].sum(1), 512: lambda: right[0].sum(0)
    }  # fmt: skip
    for bit, total in sums.items():
        if code & bit:
            values = total()
            memory(desc.bias, d.dtype.name, len(values))[:] = narrowed(values, d.dtype)
