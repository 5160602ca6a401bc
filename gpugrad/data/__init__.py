"""Local data files, synthetic sets and an in-memory loader."""

from gpugrad.data.files import DataError, characters, cifar10, load_idx, mnist
from gpugrad.data.loader import ArrayLoader, Prefetch
from gpugrad.data.samples import blobs, digits, moments, moons, spirals, standardize, stratified_split

__all__ = [
    "ArrayLoader", "DataError", "Prefetch", "blobs", "characters", "cifar10", "digits", "load_idx", "mnist", "moments",
    "moons", "spirals", "standardize", "stratified_split",
]  # fmt: skip
