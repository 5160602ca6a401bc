"""Checkpoint files: what goes in comes out, whole or not at all, and nothing in them is run."""

import io
import json
import os

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.train import CheckpointError, load_state, load_tensors, save_state, save_tensors
from gpugrad.train.checkpoint import write_atomically

library = pytest.importorskip("safetensors.numpy")

SUFFIXES = (".npz", ".safetensors")
DTYPES = ("bool", "int8", "uint8", "int32", "int64", "uint64", "float16", "float32", "float64")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_return_bit_for_bit(tmp_path, suffix, dtype):
    raw = np.frombuffer(np.random.default_rng(1).bytes(8 * 24), "u1")
    values = (raw[:24] > 99) if dtype == "bool" else raw.view(dtype)[:24]
    arrays = {"matrix": values.reshape(4, 6).T, "file": values[:1].reshape(()), "empty": values[:0]}
    save_tensors(tmp_path / f"x{suffix}", arrays, {"step": 3})
    loaded, meta = load_tensors(tmp_path / f"x{suffix}")
    assert meta == {"step": 3}
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        assert loaded[name].dtype == array.dtype
        assert loaded[name].shape == array.shape
        assert loaded[name].tobytes() == array.tobytes()


def test_a_nested_state_returns_as_it_was(tmp_path):
    state = {
        "a": {"b": [1, 2.5, None, True, "x"], "betas": (0.9, (0.999,))},
        "keys": {0: gg.tensor([1.0, 2.0]), 1: {}},
        "a.b": np.uint64(2**64 - 1),
        "same": [{"path": np.arange(3)}, np.arange(2)],
        "same.0": {"path": np.arange(4)},
        "third": 1 / 3,
    }
    save_state(tmp_path / "s.safetensors", state)
    loaded = load_state(tmp_path / "s.safetensors")
    assert loaded["a"] == state["a"]
    assert loaded["a.b"] == 2**64 - 1
    assert loaded["third"] == state["third"]
    assert isinstance(loaded["keys"][0], gg.Tensor)
    assert loaded["keys"][0].tolist() == [1.0, 2.0]
    assert loaded["same"][0]["path"].tolist() == [0, 1, 2]
    assert loaded["same"][1].tolist() == [0, 1]
    assert loaded["same.0"]["path"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_content_gives_the_same_bytes(tmp_path, suffix):
    for name in "ab":
        save_tensors(tmp_path / f"{name}{suffix}", {"w": np.arange(5.0), "b": np.ones(2)}, {"k": [1, 2]})
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_a_file_of_another_tool_is_read(tmp_path):
    weights = {"fc.weight": np.arange(6, dtype="f4").reshape(2, 3), "fc.bias": np.ones(2, "f2")}
    library.save_file(weights, tmp_path / "other.safetensors", metadata={"format": "pt"})
    loaded, meta = load_tensors(tmp_path / "other.safetensors")
    assert meta is None
    assert all(np.array_equal(loaded[k], v) and loaded[k].dtype == v.dtype for k, v in weights.items())
    with pytest.raises(CheckpointError, match="no training state"):
        load_state(tmp_path / "other.safetensors")


def test_a_pickle_in_an_archive_is_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    np.savez(tmp_path / "bomb.npz", x=np.array([Bomb()], dtype=object))
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        load_tensors(tmp_path / "bomb.npz")
    assert not (tmp_path / "executed").exists()


def broken_files():
    """(suffix, content) of files that are no checkpoints."""
    buffer = io.BytesIO()
    np.savez(buffer, x=np.arange(100.0))
    whole = library.save({"x": np.arange(100.0)})
    lying = json.dumps({"x": {"dtype": "F64", "shape": [9999], "data_offsets": [0, 79992]}}).encode()
    yield ".npz", buffer.getvalue()[:200]
    yield ".npz", b""
    yield ".safetensors", b""
    yield ".safetensors", whole[:-8]
    yield ".safetensors", len(lying).to_bytes(8, "little") + lying + b"\0" * 80
    yield ".safetensors", b"\xff" * 64


@pytest.mark.parametrize("suffix, content", list(broken_files()))
def test_a_damaged_file_is_named(tmp_path, suffix, content):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.(npz|safetensors): not a readable checkpoint"):
        load_tensors(path)


def test_missing_files_and_other_suffixes(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        load_tensors(tmp_path / "none.npz")
    with pytest.raises(CheckpointError, match="ends in"):
        load_tensors(tmp_path / "x.pkl")
    with pytest.raises(CheckpointError, match="ends in"):
        save_tensors(tmp_path / "x.pkl", {})


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.npz"
    save_tensors(path, {"w": np.zeros(3)})
    before = path.read_bytes()

    def refuse(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space"):
        save_tensors(path, {"w": np.ones(3)})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["x.npz"]


def test_atomic_write_replaces_the_whole_content(tmp_path):
    write_atomically(tmp_path / "f", b"long old content")
    write_atomically(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"new"
