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
from queue import SimpleQueue
from typing import Any, TypeAlias, TypeVar

from agentdb.errors import AgentDbError, ConflictError, DatabaseUnavailableError

R = TypeVar("R")
Answer = tuple[Any, BaseException | None]
DoEach = Callable[[tuple[str, ...], list[str]], dict[str, Any] | None]
Wake: TypeAlias = (
    "SimpleQueue[bool]"  # one wake-up for each thread: True for work, False for the end
)

# While calls wait, earlier answers are delivered together: after this many, or after this time.
# More in one go are slower on a busy machine, where the loop and a thread then wait for each other to be woken.
_MOST_HELD_ANSWERS = 8
_LOOK_SECONDS = 0.001
# Threads share the interpreter. For calls shorter than this, which is the cost of waking a thread, one thread is faster
# than eight.
_WORTH_A_THREAD_SECONDS = 0.0005
_WORTH_ANOTHER_SECONDS = 0.00004
_SLOWER_BY_SECONDS = 0.00001
# So many calls of one kind become one at most.
_MOST_TOGETHER = 100
# Above this share of a processor the interpreter is busy, and another thread would only slow the others down.
_BUSY = 0.75


def _each_alone(kind: tuple[str, ...], ids: list[str]) -> None:
    return None


class Job:
    """One call: what to run, where its answer goes, and the ids it concerns.

    Jobs of one ``kind`` do the same with their one key, and ``do_each`` does it with several keys at once.
    """

    __slots__ = (
        "call",
        "context",
        "future",
        "held_up",
        "in_turn",
        "keys",
        "kind",
        "outbox",
        "put",
        "do_each",
        "reads",
    )

    def __init__(
        self,
        call: Callable[[], Any],
        outbox: Outbox,
        put: Callable[[Job], None],
        *,
        keys: tuple[str, ...] = (),
        reads: bool = False,
        in_turn: bool = True,
        kind: tuple[str, ...] = (),
        do_each: DoEach = _each_alone,
    ) -> None:
        self.call, self.outbox, self.put = call, outbox, put
        self.keys, self.reads, self.in_turn = keys, reads, in_turn
        self.kind, self.do_each = kind, do_each
        self.context = contextvars.copy_context()
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.held_up = 0  # the number of its keys with earlier calls

    def start(self) -> asyncio.Future[Any]:
        """Start the call, and return the future for its answer."""
        self.put(self)
        return self.future

    def answer(self, answer: Answer) -> None:
        """Deliver an answer now; the job may continue."""
        with self.outbox.lock:
            self.outbox.held.append((self.future, answer))
            must_tell = self.outbox.must_tell()
        if must_tell:
            self.outbox.tell(self.future.get_loop())

    def do(self) -> Answer:
        """Run the call, unless it was cancelled, and return its answer."""
        if self.future.cancelled():
            return None, None
        try:
            return self.context.run(self.call), None
        except BaseException as raised:
            return None, raised

    def goes_with(self, other: Job) -> bool:
        """Whether the two can be one call."""
        return self.kind == other.kind != () and self.outbox is other.outbox


def _do(jobs: list[Job]) -> list[Answer]:
    """Run the jobs: several as one call, or each alone if that is refused, so that an error is one job's."""
    ids = [job.keys[0] for job in jobs if job.keys and not job.future.cancelled()]
    answers = _do_at_once(jobs, ids) if len(ids) > 1 else None
    return [job.do() for job in jobs] if answers is None else answers


def _do_at_once(jobs: list[Job], ids: list[str]) -> list[Answer] | None:
    first = jobs[0]
    try:
        answers = first.context.run(first.do_each, first.kind, ids)
    except BaseException as error:
        # An unknown outcome is everybody's, and each would wait as long again for a database that is away. After any
        # other refusal nothing is stored.
        is_refusal = isinstance(error, AgentDbError)
        if is_refusal and not isinstance(
            error, DatabaseUnavailableError | ConflictError
        ):
            return None
        return [(None, _copy(error)) for _ in jobs]
    if answers is None:
        return None
    return [(answers.get(job.keys[0]), None) for job in jobs]


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
        told = bool(self.posted)
        self.posted += self.held
        self.held = []
        return not told

    def tell(self, loop: asyncio.AbstractEventLoop) -> None:
        with suppress(RuntimeError):  # the loop is closed, so nobody waits
            loop.call_soon_threadsafe(self.deliver)


class _Pool:
    """The state that the threads share. It does not refer to ``Workers``, so that dropping that ends them."""

    def __init__(self, max_workers: int, worth_a_thread: float) -> None:
        self.max_workers, self.worth_a_thread = max_workers, worth_a_thread
        self.lock = threading.Lock()
        self.ready: deque[Job] = deque()
        self.lines: dict[str, _Line] = {}
        self.threads: dict[threading.Thread, Wake] = {}
        self.idle: list[
            Wake
        ] = []  # the most recently idle last, because it wakes fastest
        self.taken = (
            0  # the times of the last check: on the clock, and of the processor
        )
        self.looked = (0.0, 0.0)
        # The fastest recent read, and other call, that ran alone: the engine's own time for one.
        self.fastest = {True: 0.0, False: 0.0}

    def submit(self, job: Job) -> None:
        with self.lock:
            for key in job.keys:
                line = self.lines.get(key)
                if line is None:
                    line = self.lines[key] = _Line()
                line.join(job)
            if job.held_up:
                return
            self.ready.append(job)
            alone = (
                len(self.idle) == len(self.threads)
                or self.fastest[job.reads] > self.worth_a_thread
            )
            if not (alone and self._add_worker()) and job.outbox.timer is None:
                self._arm(job.outbox, job.future.get_loop())
                self.taken, self.looked = 1, (0.0, 0.0)

    def finish(
        self, jobs: list[Job], answers: list[Answer], seconds: float, wake: Wake
    ) -> list[Job]:
        """Note the answers of calls, and return the next ones to run; none if none is ready."""
        outbox = jobs[0].outbox
        with self.lock:
            if len(self.threads) - len(self.idle) == 1:
                self._note(jobs[0].reads, seconds / len(jobs))
            for job, answer in zip(jobs, answers, strict=True):
                self._leave(job)
                outbox.held.append((job.future, answer))
            following = self._take() if self.ready and not self._is_too_many() else []
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
        return jobs

    def _is_too_many(self) -> bool:
        """Return whether a thread that was added for a stuck one may rest again."""
        return len(self.threads) - len(self.idle) > 1 and not self._gains_by_another()

    def _gains_by_another(self) -> bool:
        """Return whether two threads run the next call's kind faster than one.

        Writes to a file take turns: they gain if the disk is slow. A server works on several calls at once, so even a
        near one gains. Reads from a file take less time than a thread switch.
        """
        job, worth = self.ready[0], self.worth_a_thread
        if not job.in_turn:
            worth = min(_WORTH_ANOTHER_SECONDS, worth)
        return self.fastest[job.reads] > worth

    def _add_worker(self) -> bool:
        if self.idle:
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
        """On the loop, while calls wait: deliver delayed answers, and add a thread if that makes calls faster."""
        now, used = time.perf_counter(), time.process_time()
        with self.lock:
            outbox.timer = None
            if self.ready:
                before, used_before = self.looked
                is_idle = before and used - used_before < _BUSY * (now - before)
                if not self.taken or (is_idle and self._gains_by_another()):
                    self._add_worker()
                self.taken, self.looked = 0, (now, used)
                self._arm(outbox, loop)
        outbox.deliver()


class Workers:
    """Up to ``max_workers`` threads, started as calls come in.

    Waking a thread, or the loop, costs more than a read. So a thread continues with waiting calls, and the answers
    reach the loop together. Calls get a thread each if the engine takes longer than ``worth_a_thread`` seconds to
    answer, as over a network.
    """

    def __init__(
        self, max_workers: int, *, worth_a_thread: float = _WORTH_A_THREAD_SECONDS
    ) -> None:
        self._arguments = max_workers, worth_a_thread
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

    def job(
        self,
        call: Callable[[], Any],
        *,
        keys: tuple[str, ...] = (),
        reads: bool = False,
        in_turn: bool = True,
        kind: tuple[str, ...] = (),
        do_each: DoEach = _each_alone,
    ) -> Job:
        """Return a job that runs the call in a copy of the caller's context; its ``future`` gets the result.

        Jobs with a key in common run in the order in which they were started; those that only read, side by side, and
        those of one kind as one call if several wait.
        Cancelled before a thread has begun, a job is never run; after that it runs to its end, and nobody is told.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError as error:
            raise AgentDbError(
                "AsyncDb needs a running asyncio event loop; trio is not supported. Use a DjangoDb in a thread there."
            ) from error
        outbox = self._outboxes.get(loop)
        if outbox is None:
            outbox = self._outboxes[loop] = Outbox(self.pool.lock)
        return Job(
            call,
            outbox,
            self.pool.submit,
            keys=keys,
            reads=reads,
            in_turn=in_turn,
            kind=kind,
            do_each=do_each,
        )

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
