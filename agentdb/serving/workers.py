"""Threads that run the calls of an event loop, in batches, and in order for each id."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, TypeAlias, TypeVar

from agentdb.errors import AgentDbError, ConflictError, DatabaseUnavailableError

R = TypeVar("R")
Answer = tuple[Any, BaseException | None]
DoEach = Callable[[tuple[str, ...], list[str]], dict[str, Any]]
Wake: TypeAlias = (
    "SimpleQueue[bool]"  # one wake-up for each thread: True for work, False for the end
)

# While calls wait, earlier answers are delivered together: after this many, or after this time.
# More in one go are slower on a busy machine, where the loop and a thread then wait for each other to be woken.
_MOST_HELD_ANSWERS = 8
_LOOK_SECONDS = 0.001
# Handing a call to a thread, and its answer to the loop, takes about 0.1 ms of the interpreter. Calls that the engine
# answers faster are faster one after the other in one thread. Calls that would wait for each other in the engine, or
# become one if they wait here, gain less by threads: only if the disk or the network is the slow part.
_WORTH_A_THREAD_SECONDS = 0.0001
_WORTH_WAITING_SIDE_BY_SIDE_SECONDS = 0.0005
# The engine's time for a call is the shortest of late, so that one that had to wait does not count. It may rise by
# this much a call, so that an engine that has become slower is noticed.
_SLOWER_BY_SECONDS = 0.00001
# So many calls of one kind become one at most: the last has an answer as soon as the first.
_MOST_TOGETHER = 100


def _new_future() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()


def _each_alone(kind: tuple[str, ...], ids: list[str]) -> dict[str, Any]:
    return {}


@dataclass(slots=True, eq=False)
class Job:
    """One call: what to run, where its answer goes, and the ids it concerns.

    It runs in a copy of the caller's context. Jobs with a key in common run in the order in which they were started;
    those that only read run side by side. Jobs of one ``kind`` do the same with their one key, and ``do_each`` does it
    with several keys at once: it returns the answers by key, without those of jobs that must run alone.

    Cancelled before a thread has begun, a job is never run; after that it runs to its end, and nobody is told.
    """

    call: Callable[[], Any]
    outbox: Outbox
    put: Callable[[Job], None]
    keys: tuple[str, ...] = ()
    reads: bool = False
    in_turn: bool = True  # others wait for it in the engine
    kind: tuple[str, ...] = ()
    do_each: DoEach = _each_alone
    held_up: int = 0  # the number of its keys with earlier calls
    # Taken where the call is made, so that the thread sees the caller's context variables, and tracing its span.
    context: contextvars.Context = field(default_factory=contextvars.copy_context)
    future: asyncio.Future[Any] = field(default_factory=_new_future)

    def start(self) -> asyncio.Future[Any]:
        """Start the call, and return the future for its answer."""
        self.put(self)
        return self.future

    def answer(self, answer: Answer) -> None:
        """Deliver an answer now; the job may continue."""
        # Those that were held go first, so that answers reach the loop in the order in which they were given.
        with self.outbox.lock:
            self.outbox.held.append((self.future, answer))
            must_tell = self.outbox.must_tell()
        if must_tell:
            self.outbox.tell(self.future.get_loop())

    def do(self) -> Answer:
        """Run the call, unless it was cancelled, and return its answer."""
        # Safe to ask from a thread: a future that was cancelled stays so, and one cancelled later runs to its end.
        if self.future.cancelled():
            return None, None
        try:
            return self.context.run(self.call), None
        except BaseException as raised:
            return None, raised

    def goes_with(self, other: Job) -> bool:
        """Whether the two can be one call."""
        return self.kind == other.kind != () and self.outbox is other.outbox


def _do(jobs: list[Job]) -> dict[Job, Answer]:
    """Run the jobs, several as one call, and return their answers; a job without one is to run alone."""
    answers = {
        job: job.do() for job in jobs if len(jobs) == 1 or job.future.cancelled()
    }
    waiting = [job for job in jobs if job not in answers]
    return answers | _do_at_once(waiting) if waiting else answers


def _do_at_once(jobs: list[Job]) -> dict[Job, Answer]:
    first, ids = jobs[0], [job.keys[0] for job in jobs]
    try:
        found = first.context.run(first.do_each, first.kind, ids)
    except BaseException as error:
        # An unknown outcome is everybody's, and each would wait as long again for a database that is away. After any
        # other refusal nothing is stored, and alone the others succeed.
        is_refusal = isinstance(error, AgentDbError)
        if is_refusal and not isinstance(
            error, DatabaseUnavailableError | ConflictError
        ):
            return {}
        return {job: (None, _copy(error)) for job in jobs}
    return {
        job: (found[id], None) for job, id in zip(jobs, ids, strict=True) if id in found
    }


def _copy(error: BaseException) -> BaseException:
    own = copy(error)
    own.__cause__ = error.__cause__
    return own


class _Line:
    """The calls on one id in their order; reads between two writes run in parallel."""

    __slots__ = ("_readers", "_waiting", "_writing")

    def __init__(self) -> None:
        self._readers, self._writing = 0, False
        self._waiting: deque[Job] = deque()

    def join(self, job: Job) -> None:
        # Behind those that wait, even if it could run: a read must see the write that was called before it.
        if self._waiting or not self._let_in(job):
            job.held_up += 1
            self._waiting.append(job)

    def leave(self, job: Job) -> Iterable[Job]:
        """Yield the calls that no longer wait for an earlier one on this id."""
        if job.reads:
            self._readers -= 1
        else:
            self._writing = False
        while self._waiting and self._let_in(self._waiting[0]):
            released = self._waiting.popleft()
            released.held_up -= 1
            yield released

    def is_empty(self) -> bool:
        return not (self._readers or self._writing)

    def _let_in(self, job: Job) -> bool:
        if self._writing or (self._readers and not job.reads):
            return False
        if job.reads:
            self._readers += 1
        else:
            self._writing = True
        return True


class Outbox:
    """Answers on their way to one event loop."""

    __slots__ = ("held", "lock", "posted", "timer")

    def __init__(self, lock: threading.Lock) -> None:
        self.lock = lock
        self.held: list[
            tuple[asyncio.Future[Any], Answer]
        ] = []  # not yet announced to the loop
        self.posted: list[
            tuple[asyncio.Future[Any], Answer]
        ] = []  # announced; the loop will collect them
        self.timer: asyncio.TimerHandle | None = None

    def deliver(self) -> None:
        """On the loop: set the futures."""
        with self.lock:
            answers = self.posted + self.held
            self.posted, self.held = [], []
        for future, (result, error) in answers:
            _settle(future, result, error)

    def must_tell(self) -> bool:
        """With the lock: deliver without delay; return whether the loop must be woken."""
        # The loop is woken once: until it has collected, further answers are added to those it was told of.
        told = bool(self.posted)
        self.posted += self.held
        self.held = []
        return not told

    def tell(self, loop: asyncio.AbstractEventLoop) -> None:
        with suppress(RuntimeError):  # the loop is closed, so nobody waits
            loop.call_soon_threadsafe(self.deliver)


class _Pool:
    """The state that the threads share. It does not refer to ``Workers``, so that dropping that ends them."""

    def __init__(self, max_workers: int, each_apart: bool) -> None:
        self.max_workers, self.each_apart = max_workers, each_apart
        self.lock = threading.Lock()
        self.ready: deque[Job] = deque()
        self.lines: dict[str, _Line] = {}
        # A wake-up for each thread instead of one queue for all: so exactly one wakes up for a call, and which one is
        # known.
        self.threads: dict[threading.Thread, Wake] = {}
        self.idle: list[
            Wake
        ] = []  # the most recently idle last, because it wakes fastest
        self.taken = 0  # how many were taken since the last look
        # The fastest recent read, and other call, that ran alone: the engine's own time for one.
        self.fastest = {True: 0.0, False: 0.0}

    def submit(self, job: Job) -> None:
        with self.lock:
            # All its lines at once, under the lock: with two ids each, two calls would otherwise wait for each other.
            for key in job.keys:
                line = self.lines.get(key)
                if line is None:
                    line = self.lines[key] = _Line()
                line.join(job)
            if job.held_up:
                return
            self.ready.append(job)
            is_wanted = len(self.idle) == len(self.threads) or self._gains(job)
            if not (is_wanted and self._add_worker()) and job.outbox.timer is None:
                self._arm(job.outbox, job.future.get_loop())
                self.taken = 1

    def finish(
        self, jobs: list[Job], answers: dict[Job, Answer], seconds: float, wake: Wake
    ) -> list[Job]:
        """Note the answers of calls, and return the next ones to run; none if none is ready."""
        outbox = jobs[0].outbox
        with self.lock:
            # Only of a call that had the interpreter for itself. Others measure how long they waited for it.
            if len(jobs) == len(self.threads) - len(self.idle) == 1:
                self._note(jobs[0].reads, seconds)
            for job, answer in answers.items():
                self._leave(job)
                outbox.held.append((job.future, answer))
            self._run_alone([job for job in jobs if job not in answers])
            # Only while the loop looks after those that wait: if all other threads get stuck, it adds one.
            may_rest = not self.ready or (
                outbox.timer is not None and self._is_too_many()
            )
            following = [] if may_rest else self._take()
            if not following:
                self.idle.append(wake)
            must_tell = not self._may_hold(outbox) and outbox.must_tell()
        if must_tell:
            outbox.tell(jobs[0].future.get_loop())
        return following

    def begin(self, wake: Wake) -> list[Job]:
        """Return the first calls of a thread that was woken; none if none is ready any more.

        It may have been woken because others are stuck, so it checks only afterwards whether it is needed.
        """
        with self.lock:
            if self.ready:
                return self._take()
            self.idle.append(wake)
            return []

    def _run_alone(self, jobs: list[Job]) -> None:
        """Let jobs that were left out of a common call run before others, in a thread each: one may wait for a lock."""
        self.ready.extendleft(reversed(jobs))
        for job in jobs:
            job.kind = ()
            self._add_worker()

    def _note(self, reads: bool, seconds: float) -> None:
        self.fastest[reads] = min(seconds, self.fastest[reads] + _SLOWER_BY_SECONDS)

    def _leave(self, job: Job) -> None:
        """Let those go on that waited for this one."""
        for key in job.keys:
            line = self.lines[key]
            self.ready.extend(
                released for released in line.leave(job) if not released.held_up
            )
            if line.is_empty():
                del self.lines[key]

    def _may_hold(self, outbox: Outbox) -> bool:
        return (
            bool(self.ready)
            and outbox.timer is not None
            and len(outbox.held) < _MOST_HELD_ANSWERS
        )

    def dismiss(self) -> None:
        self.max_workers = 0
        for wake in list(self.threads.values()):
            wake.put(False)

    def _take(self) -> list[Job]:
        """Take the first job that is ready, and those right behind it that can be one call with it."""
        self.taken += 1
        jobs = [self.ready.popleft()]
        while (
            self.ready
            and len(jobs) < _MOST_TOGETHER
            and self.ready[0].goes_with(jobs[0])
        ):
            jobs.append(self.ready.popleft())
        # Those that an earlier call on their ids held up came without the loop, so it does not look after them.
        if self.ready and self.ready[0].outbox.timer is None:
            self._add_worker()
        return jobs

    def _is_too_many(self) -> bool:
        """Return whether a thread that was added for a stuck one may rest again."""
        others = len(self.threads) - len(self.idle) - 1
        # Once dismissed, none may rest: nobody would wake it again for what waits.
        return min(others, self.max_workers) > 0 and not self._gains(self.ready[0])

    def _gains(self, job: Job) -> bool:
        """Return whether the job is answered sooner in a thread of its own than after those that run."""
        waits_well = job.in_turn or job.kind
        worth = (
            _WORTH_WAITING_SIDE_BY_SIDE_SECONDS
            if waits_well
            else _WORTH_A_THREAD_SECONDS
        )
        return self.each_apart or self.fastest[job.reads] > worth

    def _add_worker(self) -> bool:
        # Once dismissed, an idle thread has ended, and only those that are busy can still run what waits.
        if self.idle and self.max_workers:
            self.idle.pop().put(True)
            return True
        if len(self.threads) < self.max_workers:
            name = f"agentdb-{len(self.threads)}"
            wake: Wake = SimpleQueue()
            wake.put(True)
            thread = threading.Thread(
                target=_work, args=(self, wake), name=name, daemon=True
            )
            self.threads[thread] = wake
            thread.start()
            return True
        return False

    def _arm(self, outbox: Outbox, loop: asyncio.AbstractEventLoop) -> None:
        outbox.timer = loop.call_later(_LOOK_SECONDS, self._look, outbox, loop)

    def _look(self, outbox: Outbox, loop: asyncio.AbstractEventLoop) -> None:
        """On the loop, while calls wait: deliver delayed answers, and add a thread if the others are stuck."""
        with self.lock:
            outbox.timer = None
            # None was taken since the last look, so all threads are in a call that takes longer than that.
            if self.ready:
                if not self.taken:
                    self._add_worker()
                self.taken = 0
                self._arm(outbox, loop)
        outbox.deliver()


class Workers:
    """Up to ``max_workers`` threads, started as calls come in.

    Waking a thread, or the loop, costs more than a read. So a thread continues with waiting calls, and the answers
    reach the loop together. Calls get a thread each if the engine takes long to answer, as over a network, or if
    ``each_apart``.
    """

    def __init__(self, max_workers: int, *, each_apart: bool = False) -> None:
        self._arguments = max_workers, each_apart
        self.start_anew()
        _all.add(self)

    def start_anew(self) -> None:
        """Start without threads; after a fork they exist only in the parent."""
        self.pool = _Pool(*self._arguments)
        self._outboxes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Outbox] = (
            weakref.WeakKeyDictionary()
        )
        # Dropping this without stop() must not leave the threads waiting.
        self._finalizer = weakref.finalize(self, self.pool.dismiss)

    def outbox(self) -> Outbox:
        """Return the running loop's outbox, for the jobs that these threads run."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError as error:
            raise AgentDbError(
                "AsyncDb needs a running asyncio event loop; trio is not supported. Use a DjangoDb in a thread there."
            ) from error
        outbox = self._outboxes.get(loop)
        if outbox is None:
            outbox = self._outboxes[loop] = Outbox(self.pool.lock)
        return outbox

    def stop(self) -> None:
        """Let the running calls end, then the threads."""
        with self.pool.lock:  # the loop may be adding a thread for a waiting call
            self._finalizer()
        for thread in self.pool.threads:
            thread.join()


def _work(pool: _Pool, wake: Wake) -> None:
    while wake.get():
        jobs = pool.begin(wake)
        while jobs:
            began = time.perf_counter()
            answers = _do(jobs)
            jobs = pool.finish(jobs, answers, time.perf_counter() - began, wake)
            # Otherwise an idle thread would keep the caller's objects alive.
            del answers


def _settle(
    future: asyncio.Future[Any], result: Any, error: BaseException | None
) -> None:
    if future.done():  # cancelled, or a call without a caller, such as a transaction that is rolled back
        return
    if error is None:
        future.set_result(result)
    elif isinstance(error, StopIteration):
        future.set_exception(
            RuntimeError(f"The call raised {error!r}, which a coroutine cannot raise.")
        )
    else:
        future.set_exception(error)


_all: weakref.WeakSet[Workers] = weakref.WeakSet()


def _start_anew_in_child() -> None:
    for workers in list(_all):
        workers.start_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew_in_child)
