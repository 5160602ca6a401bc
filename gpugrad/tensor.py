"""Tensor and Node: the tape's handle round a raw array, and one recorded call. No math here."""

from __future__ import annotations

from collections.abc import Callable
from types import CodeType
from typing import TYPE_CHECKING, Any, ClassVar

from gpugrad import backends
from gpugrad.errors import DTypeError, GraphError, fail, user_frame
from gpugrad.layered import constant, plain
from gpugrad.state import next_seq

if TYPE_CHECKING:
    from gpugrad.typed import Operators
else:
    Operators = object


class Node:
    """One recorded call: raw saved arrays and parent nodes, never a Tensor, so no reference cycles.

    `seq` is the creation number, which is a topological order. `code` and `lasti` are the user's call site. `spent`
    is the line that used up the graph, None before. `hooks` and `grad` stay unset (and cost nothing) unless someone
    asks for them; `observed` tells the walk to look.
    """

    __slots__ = ("__weakref__", "code", "dtype", "grad", "hooks", "lasti", "op", "seq", "shape", "spent")
    observed: ClassVar[bool] = False

    op: Any
    attrs: dict[str, Any]
    parents: tuple[Node | None, ...]
    saved: tuple[Any, ...]
    shape: tuple[int, ...]
    dtype: Any
    seq: int
    code: CodeType
    lasti: int
    spent: tuple[CodeType, int] | None
    grad: Tensor | None
    hooks: dict[int, Callable[[Tensor], Any]]


class Full(Node):
    """Any call."""

    __slots__ = ("attrs", "parents", "saved")


class Lean(Node):
    """A call of one or two arrays without attributes: no tuples, which Python's collector would go through."""

    __slots__ = ("left", "out", "right", "x", "y")
    left: Any
    right: Any
    attrs: Any = {}
    parents: Any = property(lambda self: (self.left, self.right)[: len(self.op.vjps)])
    saved: Any = property(lambda self: (self.out, self.x, self.y)[: 1 + len(self.op.vjps)])


class Leaf(Node):
    """A differentiable input: where the walk ends and `.grad` is kept."""

    __slots__ = ()

    attrs, parents, saved = {}, (), ()

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        self.op, self.shape, self.dtype, self.seq, self.grad, self.spent = None, shape, dtype, next_seq(), None, None
        self.code, self.lasti = user_frame()


class Tensor(Operators):
    """An array on a device, with the node that made it when gradients are recorded.

    `data` is the raw array (NumPy or CuPy); writing to it bypasses the write log. Make tensors with
    `gpugrad.tensor`, `asarray` or a creation function. Operators and methods are attached from the op table.
    """

    __slots__ = ("__weakref__", "data", "node")
    __hash__ = object.__hash__

    data: Any
    node: Node | None

    def __init__(self, data: Any, node: Node | None = None) -> None:
        self.data, self.node = data, node

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        return self.data.shape  # type: ignore[no-any-return]

    @property
    def dtype(self) -> Any:
        """Data type of the elements."""
        return self.data.dtype if self.data.dtype.metadata is None else plain(self.data.dtype)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.data.ndim  # type: ignore[no-any-return]

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.data.size  # type: ignore[no-any-return]

    @property
    def device(self) -> str:
        """Where the array lives: 'cpu' or 'cuda:N'."""
        return backends.of(self.data).device_of(self.data)

    @property
    def requires_grad(self) -> bool:
        """Whether operations on this tensor are recorded; assign to switch it on a leaf."""
        return self.node is not None

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if value and self.node is None:
            if self.data.dtype.kind not in "fV":  # V: bfloat16 through ml_dtypes
                raise fail(DTypeError, "requires_grad", f"only floating-point tensors have gradients, not {self.dtype}")
            self.node = Leaf(self.data.shape, self.data.dtype)
        elif not value and self.node is not None:
            if not self.is_leaf:
                raise fail(GraphError, "requires_grad", "a computed tensor cannot be switched off; use .detach()")
            self.node = None

    def requires_grad_(self, value: bool = True) -> Tensor:
        """Switch recording on or off in place; returns the tensor. Raises DTypeError for integers."""
        self.requires_grad = value
        return self

    @property
    def is_leaf(self) -> bool:
        """True for inputs and constants, False for results of recorded operations."""
        return self.node is None or self.node.op is None

    @property
    def grad(self) -> Tensor | None:
        """The gradient that `backward` accumulated here (leaves, and tensors after `retain_grad`), or None."""
        return getattr(self.node, "grad", None)

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if self.node is not None:
            self.node.grad = value
        elif value is not None:
            raise fail(GraphError, "grad", "this tensor does not require gradients; call requires_grad_() first")

    def detach(self) -> Tensor:
        """The same array without history: a constant to differentiation. Shares memory."""
        return Tensor(constant(self.data))
