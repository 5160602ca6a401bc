"""Nested containers as arguments and results of transformations: dicts, lists, tuples, named tuples, dataclasses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from gpugrad.errors import ShapeError, fail


def children(tree: Any) -> tuple[list[Any], Callable[[list[Any]], Any]] | None:
    """The parts of a container and what rebuilds it from new parts; None for a leaf. Python's None has no parts."""
    if tree is None:
        return [], lambda _: None
    if isinstance(tree, dict):
        return list(tree.values()), lambda parts: dict(zip(tree, parts))
    if isinstance(tree, (list, tuple)):
        named = hasattr(tree, "_fields")
        return list(tree), lambda parts: type(tree)(*parts) if named else type(tree)(parts)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        names = [f.name for f in dataclasses.fields(tree) if f.init]
        return [getattr(tree, n) for n in names], lambda parts: dataclasses.replace(tree, **dict(zip(names, parts)))
    return None


def tree_map(fn: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """Apply fn to every leaf, beside the same leaves of others; the structure is kept.

    Where one of `others` is None for a whole part, fn gets None for each leaf of it. Raises ShapeError where the
    structures differ.
    """
    found = children(tree)
    if found is None:
        return fn(tree, *others)
    parts, rebuild = found
    beside = [[None] * len(parts) if o is None else matching(tree, parts, o) for o in others]
    return rebuild([tree_map(fn, *row) for row in zip(parts, *beside)])


def matching(tree: Any, parts: list[Any], other: Any) -> list[Any]:
    """The parts of a container that must be built like `tree`, in its order."""
    if isinstance(tree, dict) and isinstance(other, dict) and tree.keys() == other.keys():
        return [other[k] for k in tree]
    found = None if isinstance(tree, dict) else children(other)
    if found is None or len(found[0]) != len(parts):
        want, got = type(tree).__name__, type(other).__name__
        raise fail(ShapeError, "tree", f"expected a {want} of {len(parts)} parts, as beside it, not {got}")
    return found[0]


def tree_leaves(tree: Any) -> list[Any]:
    """The leaves of a nested structure, in order."""
    leaves: list[Any] = []
    tree_map(leaves.append, tree)
    return leaves


def refill(tree: Any, leaves: Any) -> Any:
    """A structure like `tree` with other leaves, taken in order."""
    rest = iter(leaves)
    return tree_map(lambda _: next(rest), tree)
