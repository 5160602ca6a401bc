"""Large arrays worked on by several threads, which sleep while there is nothing to do: NumPy lets others run meanwhile.

A piece of work is the same whoever does it, so results have the same bits with any number of threads.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

SHARED = 200_000  # elements of an array that are worth waking another thread, which takes about 50 us
T = TypeVar("T")


def count() -> int:
    """How many threads work on one array: GPUGRAD_THREADS or OMP_NUM_THREADS, else one for each CPU of this process."""
    for name in ("GPUGRAD_THREADS", "OMP_NUM_THREADS"):
        given = os.environ.get(name, "").partition(",")[0].strip()  # OpenMP takes a list, a number for each level
        if given.isdigit():
            return max(1, int(given))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Job:
    """Pieces of one piece of work, for the caller and for helpers that come while there are some left."""

    def __init__(self, work: Callable[[Any], object], pieces: Iterable[Any]) -> None:
        self.work, self.todo = work, iter(pieces)
        self.lock, self.left = threading.Lock(), threading.Lock()
        self.left.acquire()  # the last helper lets it go
        self.asked: set[Helper] = set()
        self.open, self.helping = True, 0
        self.problem: BaseException | None = None

    def take(self) -> None:
        """Work until no piece is left; an error ends the work of all."""
        helping.now = True
        try:
            while True:
                with self.lock:
                    piece = next(self.todo, END)
                if piece is END:
                    return
                self.work(piece)
        except BaseException:
            self.todo = iter(())
            raise
        finally:
            helping.now = False

    def ask(self, helper: Helper) -> None:
        """Wake a helper for this job."""
        self.asked.add(helper)
        helper.wake(self, contextvars.copy_context())

    def help(self, helper: Helper, context: contextvars.Context) -> None:
        """What a helper does that has come in time."""
        with self.lock:
            if not self.open:
                return
            self.asked.remove(helper)
            self.helping += 1
        try:
            context.run(self.take)
        except BaseException as problem:
            self.problem = problem
        pool.idle.append(helper)  # before the caller hears of it, whose next work is near
        with self.lock:
            self.helping -= 1
            last = not self.helping and not self.open
        if last:
            self.left.release()

    def close(self) -> None:
        """Wait for the helpers that are at work; the others are free, whether they have woken up or not."""
        with self.lock:
            self.open = False
            if not self.helping:
                self.left.release()
        pool.idle += self.asked
        for _ in range(NEAR):  # pieces end at about the same time, and to be woken takes longer
            if self.left.acquire(blocking=False):
                return
            give_way()
        self.left.acquire()


class Helper:
    """A thread that sleeps until there is a job. A lock is all that wakes it: a queue takes longer."""

    def __init__(self, number: int) -> None:
        self.go = threading.Lock()
        self.go.acquire()
        self.given: tuple[Job, contextvars.Context] | None = None
        threading.Thread(target=self.loop, name=f"gpugrad-{number}", daemon=True).start()

    def wake(self, job: Job, context: contextvars.Context) -> None:
        """Give the thread a job, in place of one that it has not begun."""
        self.given = job, context
        if self.go.locked():
            self.go.release()

    def loop(self) -> None:
        """What the thread does."""
        while True:
            self.go.acquire()
            given, self.given = self.given, None
            if given is not None:
                given[0].help(self, given[1])
            del given


class Pool:
    """The helpers there are, and those that sleep."""

    def __init__(self) -> None:
        self.made, self.idle = 0, []  # type: tuple[int, list[Helper]]

    def helper(self, most: int) -> Helper | None:
        """One that sleeps, or a new one while there are not as many as `most`."""
        try:
            return self.idle.pop()
        except IndexError:
            if self.made >= most:
                return None
        helper = Helper(self.made)
        self.made += 1
        return helper


END = object()
NEAR = 100  # times that a caller lets others run before it sleeps
give_way: Callable[[], None] = getattr(os, "sched_yield", lambda: None)
pool = Pool()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=pool.__init__)  # type: ignore[misc]  # a child has none of its parent's threads


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
    job = Job(work, pieces)
    with contextlib.suppress(RuntimeError):  # no thread to be had: the interpreter ends, or the system has no more
        for _ in range(min(most, size // SHARED)):
            helper = pool.helper(most)
            if helper is None:
                break
            job.ask(helper)
    try:
        job.take()
    finally:
        job.close()
        del job.work, job.todo  # a helper that comes late still knows the job, but holds no array alive
    if job.problem is not None:
        raise job.problem
