"""Large arrays worked on by several threads, which sleep while there is nothing to do: NumPy lets others run meanwhile.

A piece of work is the same whoever does it, so results have the same bits with any number of threads.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

SHARED = 200_000  # elements of an array that are worth waking another thread, which takes about 50 us
T = TypeVar("T")


def count() -> int:
    """How many threads work on one array: GPUGRAD_THREADS or OMP_NUM_THREADS, else one for each CPU of this process."""
    for name in ("GPUGRAD_THREADS", "OMP_NUM_THREADS"):
        given = os.environ.get(name, "").partition(",")[0].strip()  # OpenMP takes a list, a number for each level
        if given.isdigit():
            return max(1, int(given))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def helpers(n: int) -> Executor:
    """n threads beside the caller's own, started when they are first needed."""
    from concurrent.futures import ThreadPoolExecutor  # takes milliseconds to import

    return ThreadPoolExecutor(n, "gpugrad")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=helpers.cache_clear)  # a child has none of its parent's threads


class Helping(threading.local):
    """Whether this thread works on pieces of something already: what it does then it does alone."""

    now = False


helping = Helping()


def portion(size: int, most: int) -> int:
    """Elements of a piece of so many: all of a small array, half of a larger one, `most` of the largest."""
    return most if size >= 2 * most else -(-size // 2) if size >= SHARED else max(size, 1)


def spans(length: int, each: int) -> list[slice]:
    """An axis in up to 16 slices of SHARED elements or more, where an index of it stands for `each` elements."""
    step = max(1, -(-length // 16), -(-SHARED // max(1, each)))
    return [slice(start, start + step) for start in range(0, length, step)]


def share(work: Callable[[T], object], pieces: Iterable[T], size: int) -> None:
    """work(piece) for every piece, in any order; with other threads if the array of `size` elements is large.

    The caller takes pieces as the others do and waits only for those that are being worked on, so it never depends on
    a thread that does not get to run. The first exception ends the work, and is raised when all have stopped.
    """
    most = 0 if size < SHARED or helping.now else count() - 1
    if not most:
        for piece in pieces:
            work(piece)
        return
    todo, lock = iter(pieces), threading.Lock()
    stop = object()

    def take() -> None:
        nonlocal todo
        helping.now = True
        try:
            while True:
                with lock:
                    piece = next(todo, stop)
                if piece is stop:
                    return
                work(piece)  # type: ignore[arg-type]
        except BaseException:
            todo = iter(())
            raise
        finally:
            helping.now = False

    others: list[Future[None]] = []
    with contextlib.suppress(RuntimeError):  # no thread to be had: the interpreter ends, or the system has no more
        while len(others) < min(most, size // SHARED):
            others.append(helpers(most).submit(contextvars.copy_context().run, take))
    try:
        take()
    finally:
        running = [other for other in others if not other.cancel()]
        problems = [problem for other in running if (problem := other.exception()) is not None]
    if problems:
        raise problems[0]
