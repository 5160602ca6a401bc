"""Random numbers as a function of (seed, stream, counter): the Philox 4x64-10 generator of Salmon et al., SC 2011.

The specification is `numpy.random.Philox(key=[seed, stream], counter=[c0, c1, c2, c3])`: block i of four 64-bit words
is the i-th that it gives. A `Generator` counts the blocks used (c0; c3 = 0); c3 = 1 with c2 the block opens a sequence
of its own for host-made normals, c3 = 2 derives child streams. The counter lives on the device and is advanced there,
so a captured step draws new numbers at every replay. A word of 32 bits is half of a 64-bit one, the low half first.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

import numpy as np

from gpugrad import backends
from gpugrad.define import multilinear, nondiff, update
from gpugrad.dtypes import get_default_dtype, is_float
from gpugrad.errors import DomainError, DTypeError, describe, fail
from gpugrad.launch import random as launch
from gpugrad.ops._axes import whole
from gpugrad.ops.creation import get_default_device
from gpugrad.ops.shape import lengths, operand
from gpugrad.state import Draws
from gpugrad.tensor import Tensor

__all__ = [
    "Generator", "bernoulli", "default", "dropout", "integers", "normal", "permutation", "seed", "uniform",
]  # fmt: skip

Key = tuple[int, int]
LOW, WORD = 0xFFFFFFFF, 1 << 64
ROOT = int.from_bytes(b"gpugrad\0", "big")  # the first stream; small numbers are left to others (data order: the epoch)
MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)


# --- words ----------------------------------------------------------------------------------------------------


def high_product(a: int, b: Any) -> Any:
    """The upper 64 bits of a * b for a constant and a uint64 array."""
    a_low, a_high = np.uint64(a & LOW), np.uint64(a >> 32)
    b_low, b_high = b & np.uint64(LOW), b >> np.uint64(32)
    middle = a_high * b_low + (a_low * b_low >> np.uint64(32))
    other = a_low * b_high + (middle & np.uint64(LOW))
    return a_high * b_high + (middle >> np.uint64(32)) + (other >> np.uint64(32))


def philox(xp: Any, counter: Any, key: Key, blocks: int) -> Any:
    """The words of so many blocks after `counter` (a uint64 array of one element), as a (blocks, 4) uint64 array."""
    a = counter + xp.arange(1, blocks + 1, dtype="uint64")
    b = (a < counter).astype("uint64")  # the carry
    c = d = xp.zeros(blocks, "uint64")
    for i in range(10):
        k, m = (np.uint64((key[j] + i * WEYL[j]) % WORD) for j in (0, 1))
        a, b, c, d = (
            high_product(MULTIPLIERS[1], c) ^ b ^ k, c * np.uint64(MULTIPLIERS[1]),
            high_product(MULTIPLIERS[0], a) ^ d ^ m, a * np.uint64(MULTIPLIERS[0]),
        )  # fmt: skip
    return xp.stack([a, b, c, d], 1)


def bits(key: Key, *counter: int) -> Any:
    """NumPy's bit generator at a counter."""
    return np.random.Philox(key=np.array(key, "uint64"), counter=np.array(counter, "uint64"))


def words(xp: Any, counter: Any, key: Key, n: int) -> Any:
    """n words of 64 bits after `counter`."""
    if xp is np:
        return bits(key, int(counter[0]), 0, 0, 0).random_raw(n)
    return philox(xp, counter, key, -(-n // 4)).reshape(-1)[:n]


def halves(xp: Any, counter: Any, key: Key, n: int) -> Any:
    """n words of 32 bits after `counter`."""
    return words(xp, counter, key, -(-n // 2)).view("uint32")[:n]


def chances(xp: Any, counter: Any, key: Key, n: int, p: float) -> Any:
    """n booleans that are true with probability p, which is rounded to a multiple of 2^-32."""
    threshold = round(p * 2**32)
    return xp.ones(n, bool) if threshold > LOW else halves(xp, counter, key, n) < np.uint32(threshold)


# --- table ----------------------------------------------------------------------------------------------------


def draw_uniform(xp: Any, counter: Any, key: Key, shape: Any, low: float, high: float, dtype: Any) -> Any:
    """Uniform floats of `shape` in [low, high), as many bits as the dtype's significand has."""
    n, dtype = math.prod(shape), np.dtype(dtype)
    digits = np.finfo(dtype).nmant + 1
    if digits > 32:
        u = (words(xp, counter, key, n) >> np.uint64(64 - digits)).astype(dtype)
    else:
        u = (halves(xp, counter, key, n) >> np.uint32(32 - digits)).astype(dtype)
    u = u.reshape(shape) * dtype.type(2.0**-digits)
    if (low, high) == (0.0, 1.0):
        return u
    below = np.nextafter(dtype.type(high), dtype.type(low))  # where rounding would reach the upper end
    return xp.minimum(u * dtype.type(high - low) + dtype.type(low), below)


def draw_integers(xp: Any, counter: Any, key: Key, shape: Any, low: int, high: int) -> Any:
    """Integers of `shape` in [low, high): the high half of word times range."""
    return high_product(high - low, words(xp, counter, key, math.prod(shape))).astype("int64").reshape(shape) + low


def draw_bernoulli(xp: Any, counter: Any, key: Key, shape: Any, p: float) -> Any:
    """Booleans of `shape`, each true with probability p."""
    return chances(xp, counter, key, math.prod(shape), p).reshape(shape)


def draw_permutation(xp: Any, counter: Any, key: Key, n: int) -> Any:
    """A permutation of n: the ranks of n words."""
    return xp.argsort(words(xp, counter, key, n), kind="stable")


def mask(xp: Any, x: Any, counter: Any, key: Key, p: float, into: Any = None) -> Any:
    """x with a share p of its elements at 0 and the others scaled by 1 / (1 - p)."""
    keep = chances(xp, counter, key, x.size, 1.0 - p).reshape(x.shape)
    return xp.multiply(x, keep * x.dtype.type(1.0 / (1.0 - p) if p < 1.0 else 0.0), out=into)


def move_on(xp: Any, counter: Any, blocks: int) -> None:
    """Advance a counter by a number of blocks, in place."""
    counter += np.uint64(blocks)


_uniform = nondiff("random_uniform", draw_uniform, attrs=True)
_integers = nondiff("random_integers", draw_integers, attrs=True)
_bernoulli = nondiff("random_bernoulli", draw_bernoulli, attrs=True)
_permutation = nondiff("random_permutation", draw_permutation, attrs=True)
_snapshot = nondiff("snapshot", lambda xp, counter: counter.copy(), doc="A generator's counter as it is now, a copy.")
_advance = update("advance", move_on)
_dropout = multilinear(
    "dropout", mask, lambda F, t, _out, _x, counter, *, key, p: F.dropout(t, counter, key=key, p=p), None,
    promotes=False, cuda=launch.dropout,
)  # fmt: skip


# --- generators -----------------------------------------------------------------------------------------------


def probability(p: float, op: str) -> float:
    """A number in [0, 1]. Raises DomainError for another."""
    if not 0.0 <= p <= 1.0:
        raise fail(DomainError, op, f"p is {p!r}; expected a probability in [0, 1]")
    return float(p)


class Generator:
    """A source of random tensors: the same seed gives the same bits in every process and on every device.

    seed: any integer. device: where results are made, the default device if None. The counter moves to the device that
    asks for numbers, so one generator serves several in one sequence; drawing on one at a time needs no transfer.
    """

    def __init__(self, seed: int = 0, device: str | None = None) -> None:
        self.key: Key = (whole(seed, "Generator", "seed") % WORD, ROOT)
        place = device or get_default_device()
        self._counter = Tensor(backends.get(place).asarray(np.zeros(1, "uint64"), device=place))
        self.device = self._counter.device

    @property
    def seed(self) -> int:
        """The seed, as an unsigned 64-bit number."""
        return self.key[0]

    def take(self, n_words: int, device: str | None = None) -> Tensor:
        """Reserve so many 64-bit words; returns the counter before them, a copy on the device (its own by default)."""
        return Draws.take(lambda: self._take(n_words, device or self.device))  # type: ignore[no-any-return]

    def _take(self, n_words: int, where: str) -> Tensor:
        """As `take`, from the counter itself."""
        if self._counter.device != where:
            self._counter = self._counter.to(device=where)
        before: Tensor = _snapshot(self._counter)
        # Past the write log: nothing saves the live counter, and an entry makes the next walk check all saved values.
        raw = self._counter.data
        _advance.op.impls[type(raw)](raw, blocks=-(-n_words // 4))  # type: ignore[attr-defined]
        return before

    def uniform(self, shape: Any = (), low: float = 0.0, high: float = 1.0, dtype: Any = None) -> Tensor:
        """Uniform in [low, high): multiples of 2^-24 (float32), 2^-53 (float64) or 2^-11 (float16), scaled."""
        shape, dtype = lengths(shape, "uniform"), floating(dtype, "uniform")
        if not low <= high:
            raise fail(DomainError, "uniform", f"[{low}, {high}) is empty")
        at = self.take(math.prod(shape))
        return _uniform(at, key=self.key, shape=shape, low=float(low), high=float(high), dtype=dtype)  # type: ignore[no-any-return]

    def normal(self, shape: Any = (), mean: float = 0.0, std: float = 1.0, dtype: Any = None) -> Tensor:
        """Normal numbers, made on the host by NumPy's ziggurat and moved, so that all devices get the same bits.

        Waits for the device whose counter it reads: for initial values, not for a captured step.
        """
        shape, dtype = lengths(shape, "normal"), floating(dtype, "normal")
        if not std >= 0:
            raise fail(DomainError, "normal", f"std is {std}, expected at least 0")
        block = int(self.take(4).data.item())
        wide = dtype if dtype.itemsize > 2 else np.dtype("float32")
        z = np.random.Generator(bits(self.key, 0, 0, block, 1)).standard_normal(shape, dtype=wide)
        values = np.asarray(z * wide.type(std) + wide.type(mean)).astype(dtype, copy=False)
        return Tensor(backends.get(self.device).asarray(values, device=self.device))

    def integers(self, low: int, high: int | None = None, shape: Any = ()) -> Tensor:
        """Int64 uniform in [low, high), or in [0, low) without high; probabilities differ by at most 2^-64.

        Raises DomainError for an empty interval.
        """
        first, last = (0, low) if high is None else (low, high)
        first, last = whole(first, "integers", "low"), whole(last, "integers", "high")
        if first >= last:
            raise fail(DomainError, "integers", f"[{first}, {last}) is empty")
        shape = lengths(shape, "integers")
        at = self.take(math.prod(shape))
        return _integers(at, key=self.key, shape=shape, low=first, high=last)  # type: ignore[no-any-return]

    def bernoulli(self, p: float, shape: Any = ()) -> Tensor:
        """Booleans that are true with probability p. Raises DomainError for p outside [0, 1]."""
        p, shape = probability(p, "bernoulli"), lengths(shape, "bernoulli")
        at = self.take(-(-math.prod(shape) // 2))
        return _bernoulli(at, key=self.key, shape=shape, p=p)  # type: ignore[no-any-return]

    def permutation(self, n: int) -> Tensor:
        """The integers 0 to n-1 in random order, int64: the ranks of n words."""
        return _permutation(self.take(whole(n, "permutation", "n")), key=self.key, n=operator.index(n))  # type: ignore[no-any-return]

    def fold_in(self, data: int) -> Generator:
        """A generator of an independent stream, the same for the same data; this one is not advanced."""
        child = Generator(self.key[0], self.device)
        low, high = operator.index(data) % WORD, (operator.index(data) // WORD) % WORD
        child.key = (self.key[0], int(bits(self.key, low, high, 0, 2).random_raw()))
        return child

    def state_dict(self) -> dict[str, int]:
        """Seed, stream and counter as integers; waits for the device."""
        return {"seed": self.key[0], "stream": self.key[1], "counter": int(self._counter.data.item())}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue where `state_dict` was taken, on this generator's device."""
        self.key = (int(state["seed"]), int(state["stream"]))
        self._counter.data.fill(int(state["counter"]))

    def __repr__(self) -> str:
        return f"Generator(seed={self.seed}, device={self.device!r})"


def floating(dtype: Any, op: str) -> Any:
    """A floating dtype, the default one for None. Raises DTypeError for another kind."""
    chosen = get_default_dtype() if dtype is None else np.dtype(dtype)
    if chosen.kind != "f" or chosen.itemsize > 8:
        raise fail(DTypeError, op, f"dtype is {chosen}; expected float16, float32 or float64")
    return chosen


default = Generator()
uniform, normal, integers = default.uniform, default.normal, default.integers
bernoulli, permutation = default.bernoulli, default.permutation


def seed(n: int) -> None:
    """Restart the default generator, which initial weights, dropout and every draw without a generator use."""
    default.load_state_dict(Generator(n).state_dict())


def dropout(x: Any, p: float = 0.5, training: bool = True, generator: Generator | None = None) -> Any:
    """Each element 0 with probability p, else scaled by 1 / (1 - p); x itself when not training or p is 0.

    The mask is a function of the generator's key and counter and is computed again for the gradient: nothing of the
    size of x is kept. Raises DomainError for p outside [0, 1], DTypeError for integers.
    """
    x = operand(x, "dropout")
    if not is_float(x.dtype):
        raise fail(DTypeError, "dropout", f"{describe(x)}: expected a floating-point input")
    if probability(p, "dropout") == 0.0 or not training:
        return x
    source = default if generator is None else generator
    return _dropout(x, source.take(-(-x.size // 2), x.device), key=source.key, p=float(p))
