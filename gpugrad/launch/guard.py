"""Launches of kernels/guard.cu."""

from __future__ import annotations

from typing import Any

from gpugrad.errors import DomainError
from gpugrad.kernel import kernel


def _assert_finite(launch: Any, x: Any, what: str) -> Any:
    if not launch.takes(x):
        return NotImplemented
    message = f"{what.replace('{', '{{').replace('}', '}}')} is {{real}} at {{at}}; expected finite numbers"
    site = launch.site(DomainError, "assert_finite", message, x.shape)
    launch.map("assert_finite", (x.dtype,), (launch.mailbox, x, site, x.size), -(-x.nbytes // 16))
    return x


assert_finite = kernel("guard", "assert_finite", _assert_finite)
