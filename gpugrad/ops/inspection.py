"""What this namespace can do, told in the Array API's way."""

from __future__ import annotations

from typing import Any

from gpugrad import backends, dtypes
from gpugrad.dtypes import get_default_dtype
from gpugrad.errors import DTypeError, fail
from gpugrad.ops.creation import KINDS, default_complex, empty, isdtype

NAMES = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64",
    "complex64", "complex128",
)  # fmt: skip


class Info:
    """Capabilities, devices and data types. `gpugrad.__array_namespace_info__()` returns it."""

    def capabilities(self) -> dict[str, Any]:
        """What is supported: boolean indexing and data-dependent shapes are; arrays have at most 64 axes."""
        return {"boolean indexing": True, "data-dependent shapes": True, "max dimensions": 64}

    def default_device(self) -> str:
        """The device of creation functions when none is named, as `devices` lists it."""
        return str(empty(0).device)

    def default_dtypes(self, *, device: str | None = None) -> dict[str, Any]:
        """The data type by kind that creation functions use when none is named; the same on every device."""
        return {
            "real floating": get_default_dtype(), "complex floating": default_complex(),
            "integral": dtypes.int64, "indexing": dtypes.int64,
        }  # fmt: skip

    def dtypes(self, *, device: str | None = None, kind: Any = None) -> dict[str, Any]:
        """Data types by name, all or those of a kind (a tuple: of any of them). Raises DTypeError for another kind."""
        kinds = () if kind is None else kind if isinstance(kind, tuple) else (kind,)
        for k in kinds:
            if k not in KINDS:
                raise fail(DTypeError, "dtypes", f"kind is {k!r}; expected one of {', '.join(KINDS)}")
        found = {name: getattr(dtypes, "bool_" if name == "bool" else name) for name in NAMES}
        return {name: dtype for name, dtype in found.items() if kind is None or isdtype(dtype, kinds)}

    def devices(self) -> list[str]:
        """The devices that can be used here."""
        if not backends.is_available("cuda"):
            return ["cpu"]
        return ["cpu", *(f"cuda:{i}" for i in range(backends.get("cuda").xp.cuda.runtime.getDeviceCount()))]


def __array_namespace_info__() -> Info:
    """The namespace's inspection object."""
    return Info()
