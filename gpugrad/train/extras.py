"""Optional libraries of the `train` extra, imported when first needed."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from gpugrad.errors import GpugradError


class MissingExtra(GpugradError, ImportError):
    """A library of the `train` extra is not installed."""


def require(module: str) -> Any:
    """The module of that dotted name. Raises MissingExtra, naming the install command, when it is absent."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        top = module.partition(".")[0]
        if (error.name or "").partition(".")[0] != top:
            raise
        raise MissingExtra(f"{top} is not installed: pip install 'gpugrad[train]'") from None


def check_installed(*modules: str) -> None:
    """Raise MissingExtra for the first of these that is not installed, without importing any."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise MissingExtra(f"{module} is not installed: pip install 'gpugrad[train]'")
