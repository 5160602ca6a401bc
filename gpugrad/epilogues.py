"""Epilogues: a matrix product and the calls that finish it become one call of cuBLASLt.

Forward, a product takes along its bias, what else is added to it, and its activation. Backward, it takes the slope of
the activation before it, and the sum over rows that is a bias's gradient; or, beside the product that is a weight's
gradient, the sum over the same rows of one of its operands. Every such call spares a pass over an activation, or two.
Bits may differ from those of the calls one by one; the library's relu makes 0 of NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gpugrad.backends.cublaslt import AUX_UNIT, contiguous, mask_shape, steps
from gpugrad.fuse import in_order
from gpugrad.program import VALUE, Call, Program, Ref, Slot, dead_code

PRODUCTS = ("affine", "matmul")


@dataclass(frozen=True)
class Product:
    """What a joined call stands for: `calls`, in order, the first of which is the product.

    Its operands are those of the product, then what `roles` says: 'bias', 'addend', 'aux'. Its results are the last
    value of the calls, then what the epilogue makes beside it.
    """

    calls: tuple[Call, ...]
    epilogue: str | None
    roles: tuple[str, ...]

    def __call__(self, gemm: Any, ins: Sequence[Any]) -> list[Any]:
        """The results by `gemm`, the products of a backend."""
        a, b, *rest = ins
        b = b.T if self.calls[0].op == "affine" else b
        more = {role: x.reshape(-1, x.shape[-1]) if role == "aux" else x for role, x in zip(self.roles, rest)}
        made = gemm(a, b, epilogue=self.epilogue, **more)
        return list(made) if isinstance(made, tuple) else [made]

    def __str__(self) -> str:
        more = "".join(f" + {role}" for role in self.roles if role != "aux")
        return f"{', '.join(c.op for c in self.calls)}: {self.epilogue or 'product'}{more}"


Roles = dict[str, int]  # slots by what gemm calls them
Accept = Callable[[Product, list[Slot]], bool]  # a product and its operands


def join(program: Program, accept: Accept) -> Program:
    """Products with what finishes them as single calls, where `accept` agrees; `chains` says what they stand for."""
    joiner = Joiner(program, accept)
    for step in (joiner.finish, joiner.slope, joiner.sum_operand):
        for n, call in enumerate(joiner.calls):
            if call is not None and (joiner.product(call) or (step == joiner.slope and call.op in joiner.chains)):
                step(n, call)
    joiner.drop_masks()
    calls = [c for c in joiner.calls if c is not None]
    used = {c.op: joiner.chains[c.op] for c in calls if c.op in joiner.chains}
    made = replace(program, slots=joiner.slots, calls=calls, chains=used)
    return dead_code(replace(made, calls=in_order(made)))


class Joiner:
    """A program under change: a call that was joined into another is None until the end."""

    def __init__(self, program: Program, accept: Accept) -> None:
        self.accept, self.slots, self.chains = accept, dict(program.slots), dict(program.chains)
        self.calls: list[Call | None] = list(program.calls)
        self.results = set(program.results)
        self.written = {self.slots[w].storage for c in program.calls for w in c.writes}
        self.maker = {m: n for n, c in enumerate(program.calls) for m in c.makes()}
        self.readers: dict[int, dict[int, Call]] = {}  # by slot: the calls that read it, by number
        for n, c in enumerate(program.calls):
            for r in c.reads():
                self.readers.setdefault(r, {})[n] = c
        self.sums: dict[int, list[int]] = {}  # by value: the calls that sum its rows
        for n, c in enumerate(program.calls):
            if self.sums_rows(c):
                self.sums.setdefault(self.origin(c.reads()[0]), []).append(n)
        self.masks: dict[int, int] = {}  # by the output of a relu: the bits that say where it is above 0

    # --- what the program says ------------------------------------------------------------------------------

    def shape(self, slot: int) -> tuple[int, ...]:
        """The shape of a value."""
        return self.slots[slot].shape

    def product(self, call: Call) -> bool:
        """Whether a call is a product with one matrix."""
        return call.op in PRODUCTS and len(self.shape(call.reads()[1])) == 2

    def stays(self, slot: int) -> bool:
        """Whether a value is the same wherever it is read."""
        return self.slots[slot].storage not in self.written

    def only_reader(self, slot: int) -> tuple[int, Call] | None:
        """The one call, with its number, that reads a value which nothing else needs."""
        found = self.readers.get(slot, {})
        return next(iter(found.items())) if len(found) == 1 and slot not in self.results and self.stays(slot) else None

    def known(self, slot: int, n: int, m: int) -> bool:
        """Whether a value that call m reads is there, and the same, at call n before it."""
        storage = self.slots[slot].storage
        between = (self.slots[w].storage for c in self.calls[n:m] if c is not None for w in c.writes)
        return self.maker.get(slot, -1) < n and storage not in between

    def movable(self, n: int, m: int) -> bool:
        """Whether call n could as well stand at m, before it: it does not need m, and nothing is written in between."""
        stack, seen = [n], {n}
        while stack:
            call = self.calls[stack.pop()]
            makers = {self.maker[r] for r in call.reads() if r in self.maker} if call is not None else set()
            stack += makers - seen
            seen |= makers
        return m not in seen and not any(c is not None and c.writes for c in self.calls[m:n])

    def origin(self, slot: int) -> int:
        """The value that has the same rows, before they were put in another shape."""
        while (call := self.calls[self.maker[slot]] if slot in self.maker else None) is not None:
            if call.op != "reshape" or self.shape(call.reads()[0])[-1:] != self.shape(slot)[-1:]:
                break
            slot = call.reads()[0]
        return slot

    def sums_rows(self, call: Call) -> bool:
        """Whether a call sums a value over all its axes but the last."""
        if call.op != "sum":
            return False
        x, out = self.slots[call.reads()[0]], self.slots[call.outs]
        axes = tuple(range(len(x.shape) - 1))
        return bool(axes) and tuple(call.attrs["axis"]) == axes and x.dtype == out.dtype

    def row_sum(self, slot: int) -> tuple[int, int] | None:
        """(number, result) of a call that sums the rows of a value."""
        for m in self.sums.get(self.origin(slot), ()) if self.stays(slot) else ():
            if (call := self.calls[m]) is not None and call.op == "sum":
                return m, call.outs
        return None

    # --- changes --------------------------------------------------------------------------------------------

    def put(
        self, numbers: list[int], epilogue: str | None, more: Roles, outs: tuple[int, ...], at: int | None = None,
        rows: int | None = None,
    ) -> bool:  # fmt: skip
        """Exchange calls for one if it is accepted, in place of call `at`: the product, their first, if not told.

        more: what it reads beside the operands of the product, by role. rows: the value that a sum among the calls is
        of, of which the sum itself may read another view.
        """
        at = numbers[0] if at is None else at
        calls = [c for n in numbers if (c := self.calls[n]) is not None]
        stands_for = [c for call in calls for c in (self.chains[call.op].calls if call.op in self.chains else [call])]
        if rows is not None:
            axis = tuple(range(len(self.shape(rows)) - 1))
            stands_for[-1] = replace(stands_for[-1], args=(Ref(rows),), attrs={**stands_for[-1].attrs, "axis": axis})
        product = Product(tuple(stands_for), epilogue, tuple(more))
        args = [*calls[0].reads()[:2], *more.values()]
        if not self.accept(product, [self.slots[r] for r in args]):
            return False
        name = "_".join(c.op for c in stands_for) + str(len(self.chains))
        self.chains[name] = product
        made = replace(calls[0], op=name, args=tuple(map(Ref, args)), attrs={}, outs=outs)
        for n, call in zip(numbers, calls):
            self.calls[n] = None
            for r in call.reads():
                self.readers[r].pop(n, None)
        self.calls[at] = made
        self.maker.update(dict.fromkeys(outs, at))
        for r in args:
            self.readers.setdefault(r, {})[at] = made
        return True

    def finish(self, n: int, call: Call) -> None:
        """A product with its bias, what else is added to it, and its activation."""
        numbers, out, at = [n], call.outs, n
        more: Roles = {"bias": call.reads()[2]} if call.op == "affine" else {}
        while (after := self.only_reader(out)) is not None and after[1].op == "add":
            others = [r for r in after[1].reads() if r != out]
            if len(others) != 1:
                break
            role = {self.shape(out)[-1:]: "bias", self.shape(out): "addend"}.get(self.shape(others[0]))
            if role is None or role in more:
                break
            if not self.known(others[0], at, after[0]):  # then later, if all else is the same there
                if not all(map(self.stays, [*call.reads(), *more.values()])):
                    break
                at = after[0]
            more[role], out = others[0], after[1].outs
            numbers.append(after[0])
        if not self.activate(numbers, more, out, at) and len(numbers) > 1:
            self.put(numbers, None, more, (out,), at)

    def activate(self, numbers: list[int], more: Roles, z: int, at: int) -> bool:
        """A product and what is added to it with the activation of their result z, if there is one."""
        readers = self.readers.get(z, {})
        alone = len(readers) == 1 and z not in self.results
        for m, call in readers.items() if self.stays(z) else ():
            h = call.outs
            if call.op == "relu" and alone:
                if self.stays(h) and any(c.op == "relu_bwd" for c in self.readers.get(h, {}).values()):
                    mask = self.new_mask(h)
                    if self.put([*numbers, m], "relu_aux", more, (h, mask), at):
                        self.masks[h] = mask
                        return True
                return self.put([*numbers, m], "relu", more, (h,), at)
            if call.op == "gelu" and call.attrs.get("approximate") == "tanh":
                if alone:
                    return self.put([*numbers, m], "gelu", more, (h,), at)
                return self.shape(z)[-1] % AUX_UNIT == 0 and self.put([*numbers, m], "gelu_aux", more, (h, z), at)
        return False

    def new_mask(self, h: int) -> int:
        """A slot for the bits of a value."""
        mask, shape = max(self.slots) + 1, mask_shape(self.shape(h))
        self.slots[mask] = Slot(shape, np.dtype("uint8"), (shape[1], 1), VALUE, mask)
        return mask

    def readable(self, slot: int) -> bool:
        """Whether a value lies as the library reads the input of gelu."""
        x = self.slots[slot]
        return x.shape[-1] % AUX_UNIT == 0 and steps(x.shape, x.strides, x.dtype.itemsize) == contiguous(x.shape)

    def slope(self, n: int, call: Call) -> None:
        """A product, and what was added to it, with the slope of the activation before it, and the sum of its rows."""
        joined, made = self.chains.get(call.op), call.makes()
        if call.op == "affine" or (joined is not None and (joined.epilogue is not None or "bias" in joined.roles)):
            return
        after = self.only_reader(made[0])
        if after is None or after[1].op not in ("relu_bwd", "gelu_bwd") or after[1].reads()[:1] != made:
            return
        m, back = after
        seen, out = back.reads()[-1], back.outs
        if back.op == "gelu_bwd" and back.attrs.get("approximate") != "tanh":
            return
        aux = self.masks.get(seen) if back.op == "relu_bwd" else seen if self.readable(seen) else None
        if aux is None or not self.known(aux, n, m) or not self.stays(out):
            return
        kind, total = "d" + back.op.removesuffix("_bwd"), self.row_sum(out)
        more = {**(dict(zip(joined.roles, call.reads()[2:])) if joined is not None else {}), "aux": aux}
        if total is None or not self.put([n, m, total[0]], f"{kind}_bgrad", more, (out, total[1]), rows=out):
            self.put([n, m], kind, more, (out,))

    def sum_operand(self, n: int, call: Call) -> None:
        """The gradient of a weight with that of its bias: the sum over the rows that it multiplies and adds up."""
        a, b = call.reads()[:2]
        turned = self.calls[self.maker[a]] if a in self.maker and call.op == "matmul" else None
        swaps = turned is not None and (turned.op == "matrix_transpose" or turned.attrs.get("axes") == (1, 0))
        if turned is None or not swaps or len(self.shape(a)) != 2:
            return
        for slot, epilogue in ((turned.reads()[0], "bgrad_a"), (b, "bgrad_b")):
            total = self.row_sum(self.origin(slot))
            if total is None or (total[0] < n and not self.movable(n, total[0])):
                continue
            if self.put([n, total[0]], epilogue, {}, (call.outs, total[1]), rows=slot):
                return

    def drop_masks(self) -> None:
        """Masks that no backward pass came to read are not made."""
        for h, mask in self.masks.items():
            n = self.maker[mask]
            call = self.calls[n]
            if call is not None and not self.readers.get(mask):
                self.put([n], "relu", dict(zip(self.chains[call.op].roles, call.reads()[2:])), (h,))
