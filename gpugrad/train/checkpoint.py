"""Checkpoints: tensors as safetensors or npz, everything else as JSON beside them in the same file.

One file is written under a temporary name and renamed, so a reader sees the old state or the new one,
never a mixture. Nothing is pickled: reading a file runs no code from it.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import gpugrad as gg
from gpugrad.errors import GpugradError
from gpugrad.train.extras import require

META = "gpugrad"  # the one metadata key: several would be written in no fixed order


class CheckpointError(GpugradError, ValueError):
    """A checkpoint file is missing, damaged or not of this kind."""


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Replace a file's content whole: temporary file, flush to disk, rename."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Any], meta: Any = None) -> None:
    """Write named tensors, and JSON-ready `meta` if given, to a .safetensors or .npz file, atomically.

    Values may be Tensors or NumPy arrays. The same content gives the same bytes. Raises CheckpointError for
    another suffix, MissingExtra where safetensors is not installed.
    """
    path = Path(path)
    arrays = {k: np.asarray(v.numpy() if isinstance(v, gg.Tensor) else v, order="C") for k, v in tensors.items()}
    text = None if meta is None else json.dumps(meta)
    if path.suffix == ".npz":
        content = npz(arrays if text is None else arrays | {META: np.array(text)})
    elif path.suffix == ".safetensors":
        content = require("safetensors.numpy").save(arrays, metadata=None if text is None else {META: text})
    else:
        raise CheckpointError(f"[save] {path.name}: expected a name that ends in .safetensors or .npz")
    write_atomically(path, content)


def npz(arrays: Mapping[str, Any]) -> bytes:
    """An uncompressed .npz archive; NumPy's own savez reserves some names and pickles objects."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    return buffer.getvalue()


def load_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Any], Any]:
    """Read (name to NumPy array, meta) from a .safetensors or .npz file of any origin; meta is None if absent.

    Raises CheckpointError for a missing or damaged file or another suffix.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".npz"):
        raise CheckpointError(f"[load] {path.name}: expected a name that ends in .safetensors or .npz")
    library = require("safetensors") if path.suffix == ".safetensors" else None
    try:
        if library is None:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
            text = str(arrays.pop(META)) if META in arrays else None
        else:
            with library.safe_open(path, framework="numpy") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                text = (file.metadata() or {}).get(META)
        return arrays, None if text is None else json.loads(text)
    except FileNotFoundError:
        raise CheckpointError(f"[load] {path}: no such file") from None
    except Exception as error:  # each reader has its own classes for damage
        raise CheckpointError(f"[load] {path}: not a readable checkpoint ({error})") from None


def save_state(path: str | os.PathLike[str], state: Any) -> None:
    """Write a nested state (dicts, lists, tuples, numbers, strings, None, Tensors, arrays) as one checkpoint."""
    tensors: dict[str, Any] = {}
    save_tensors(path, tensors=tensors, meta=pack(state, "", tensors))


def load_state(path: str | os.PathLike[str]) -> Any:
    """Read what `save_state` wrote; Tensors come back on the CPU. Raises CheckpointError for a foreign file."""
    arrays, meta = load_tensors(path)
    if meta is None:
        raise CheckpointError(f"[load] {path}: holds tensors but no training state")
    return unpack(meta, arrays)


def pack(tree: Any, name: str, tensors: dict[str, Any]) -> Any:
    """The JSON skeleton of a state; arrays move to `tensors` under their path. Key kinds other than str are kept."""
    if isinstance(tree, (gg.Tensor, np.ndarray)):
        while name in tensors:  # {"a.b": x} and {"a": {"b": y}} spell the same path
            name += "'"
        tensors[name] = tree
        return {"$tensor" if isinstance(tree, gg.Tensor) else "$array": name}
    if isinstance(tree, Mapping):
        pairs = [(k, pack(v, f"{name}.{k}" if name else str(k), tensors)) for k, v in tree.items()]
        return dict(pairs) if all(isinstance(k, str) for k in tree) else {"$items": [list(p) for p in pairs]}
    if isinstance(tree, (list, tuple)):
        parts = [pack(v, f"{name}.{i}" if name else str(i), tensors) for i, v in enumerate(tree)]
        return {"$tuple": parts} if isinstance(tree, tuple) else parts
    return tree.item() if isinstance(tree, np.generic) else tree


def unpack(tree: Any, tensors: Mapping[str, Any]) -> Any:
    """The state again, from its skeleton and its arrays."""
    if isinstance(tree, list):
        return [unpack(v, tensors) for v in tree]
    if not isinstance(tree, dict):
        return tree
    if len(tree) == 1:
        [(key, value)] = tree.items()
        if key == "$tensor":
            return gg.tensor(tensors[value])
        if key == "$array":
            return tensors[value]
        if key == "$items":
            return {k: unpack(v, tensors) for k, v in value}
        if key == "$tuple":
            return tuple(unpack(v, tensors) for v in value)
    return {k: unpack(v, tensors) for k, v in tree.items()}
