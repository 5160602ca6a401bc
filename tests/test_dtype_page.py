"""docs/dtypes.md: the promotion table, made by `python -m tests.test_dtype_page`, and what arithmetic does."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

import gpugrad as gg

PAGE = Path(__file__).parent.parent / "docs" / "dtypes.md"
DTYPES = [
    "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64",
    "complex64", "complex128",
]  # fmt: skip
NUMBERS = {"True": True, "2": 2, "2.0": 2.0, "np.float64(2)": np.float64(2), "2j": 2j}
TEXT = """# Data types

What two operands become. Arrays of unequal types take their common one, by the Array API's table; an integer or bool
array beside a floating one takes the floating type, so **float32 stays float32**. Numbers, NumPy's scalars among them,
are weak: they take the array's type, or the default type of their kind (`set_default_dtype`: float32, complex64) where
the array's is of a lower kind. A 0-d tensor is an array. A gradient has the type of what it is the gradient of.

Integers become the default float type in floating functions (`exp`, `divide`, `mean`); `sum` and `prod` of small
integers are made in 64 bits. uint64 beside a signed integer has no common integer type; NumPy's answer is float64.

`python -m tests.test_dtype_page` writes this page, and a test compares it with what `multiply` does.

"""


def promoted(a: str, b: str) -> str:
    """What the product of two arrays has."""
    return str((gg.ones(2, dtype=a) * gg.ones(2, dtype=b)).dtype)


def beside(a: str, number: str) -> str:
    """What the product of an array and a number has."""
    return str((gg.ones(2, dtype=a) * NUMBERS[number]).dtype)


def page() -> str:
    """The text of docs/dtypes.md."""
    rows = [["", *DTYPES], ["---"] * (len(DTYPES) + 1)]
    rows += [[f"**{a}**", *(promoted(a, b) for b in DTYPES)] for a in DTYPES]
    scalars = [["array", *(f"`{n}`" for n in NUMBERS)], ["---"] * (len(NUMBERS) + 1)]
    scalars += [[f"**{a}**", *(beside(a, n) for n in NUMBERS)] for a in DTYPES]
    tables = ["".join(f"| {' | '.join(row)} |\n" for row in table) for table in (rows, scalars)]
    return TEXT + "## Arrays\n\n" + tables[0] + "\n## An array and a number\n\n" + tables[1]


def test_the_page_is_what_multiply_does():
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m tests.test_dtype_page"


@pytest.mark.parametrize("a, b", list(itertools.combinations_with_replacement(DTYPES, 2)))
def test_every_way_to_join_agrees(a, b):
    """Order, concat, where and `result_type` say what the table says, and so does `promote`'s own rule."""
    x, y, want = gg.ones(2, dtype=a), gg.ones(2, dtype=b), np.dtype(promoted(a, b))
    assert (y * x).dtype == gg.concat([x, y]).dtype == gg.where(gg.ones(2, dtype="bool"), x, y).dtype == want
    assert gg.result_type(x, y) == want
    if "float32" in (a, b) and {a, b} <= set(DTYPES[:11]):
        assert want == np.float32


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
