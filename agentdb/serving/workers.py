"""Threads that run the calls of an event loop, in batches, and in order for each id."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, TypeAlias

from agentdb.errors import AgentDbError, ConflictError, DatabaseUnavailableError

Answer: TypeAlias = tuple[Any, BaseException | None]
# Does with several ids what a job does with its one, and returns the answers by id, without those of jobs that must run
# alone.
Together: TypeAlias = Callable[[list[str]], dict[str, Any]]

# While calls wait, earlier answers are delivered together after this time at most, and a thread is added if all others
# have been in their calls for that long.
_LOOK_SECONDS = 0.001
# So many calls become one at most: the first has its answer only with the last, and a call takes 10,000 ids.
_MOST_TOGETHER = 1_000


@dataclass(slots=True, eq=False)
class Job:
    """One call: what to run, where its answer goes, and the ids it concerns.

    It runs in a copy of the caller's context. Jobs with a key in common run in the order in which they were started;
    those that only read run side by side. Jobs with an equal ``together`` may become one call of it with their keys.

    Cancelled before a thread has begun, a job is never run; after that it runs to its end, and nobody is told.
    """

    call: Callable[[], Any]
    outbox: Outbox
    put: Callable[[Job], None]
    keys: tuple[str, ...] = ()
    reads: bool = False
    together: Together | None = None
    # It is answered sooner in a thread of its own than after those that run, because the disk or a server is slow.
    side_by_side: bool = False
    held_up: int = 0  # the number of its keys with earlier calls
    # Taken where the call is made, so that the thread sees the caller's context variables, and tracing its span.
    context: contextvars.Context = field(default_factory=contextvars.copy_context)
    future: asyncio.Future[Any] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    def start(self) -> asyncio.Future[Any]:
        """Start the call, and return the future for its answer."""
        self.put(self)
        return self.future

    def answer(self, answer: Answer) -> None:
        """Deliver an answer now; the job may continue."""
        with suppress(RuntimeError):  # the loop is closed, so nobody waits
            self.outbox.loop.call_soon_threadsafe(_settle, self.future, *answer)

    def do(self) -> Answer:
        """Run the call, unless it was cancelled, and return its answer."""
        # Safe to ask from a thread: a future that was cancelled stays so, and one cancelled later runs to its end.
        if self.future.cancelled():
            return None, None
        try:
            result = self.context.run(self.call)
        except BaseException as raised:
            return None, raised
        return result, None


def _do(jobs: list[Job]) -> dict[Job, Answer]:
    """Run the jobs, several as one call, and return their answers; a job without one is to run alone."""
    first = jobs[0]
    together = first.together
    if together is None or len(jobs) == 1:
        return {first: first.do()}
    waiting = [job for job in jobs if not job.future.cancelled()]
    if not waiting:
        return {}
    ids = [job.keys[0] for job in waiting]
    try:
        found = waiting[0].context.run(together, ids)
    except (DatabaseUnavailableError, ConflictError) as error:
        # An unknown outcome is everybody's, and each would wait as long again for a database that is away.
        return {job: (None, _copy(error)) for job in waiting}
    except BaseException:
        return {}  # nothing is stored, and alone all but one may succeed
    return {job: (found[job.keys[0]], None) for job in waiting if job.keys[0] in found}


def _copy(error: BaseException) -> BaseException:
    """Return an error of its own for each caller, because each adds its traceback to it."""
    own = copy(error)
    own.__cause__ = error.__cause__
    return own


class _Line:
    """The calls on one id in their order; reads between two writes run in parallel."""

    def __init__(self) -> None:
        self._running = 0
        self._reads = False  # whether those that run read
        self._waiting: deque[Job] = deque()

    def join(self, job: Job) -> None:
        """Let the job run now, or note that it is held up."""
        # Behind those that wait, even if it could run: a read must see the write that was called before it.
        if self._waiting or not self._let_in(job):
            job.held_up += 1
            self._waiting.append(job)

    def leave(self) -> Iterable[Job]:
        """End a call that ran, and yield those that no longer wait for an earlier one on this id."""
        self._running -= 1
        while self._waiting and self._let_in(self._waiting[0]):
            released = self._waiting.popleft()
            released.held_up -= 1
            yield released

    def is_empty(self) -> bool:
        return not self._running

    def _let_in(self, job: Job) -> bool:
        """Count the job among those that run, if it may run beside them; return whether it may."""
        may_share = job.reads and self._reads
        if self._running and not may_share:
            return False
        self._running += 1
        self._reads = job.reads
        return True


class Outbox:
    """Answers on their way to one event loop, which looks after the calls that wait meanwhile."""

    def __init__(self, workers: Workers, loop: asyncio.AbstractEventLoop) -> None:
        self.workers = workers
        self.loop = loop
        self.answers: list[tuple[asyncio.Future[Any], Answer]] = []
        self.is_told = False  # whether the loop will collect them
        self.timer: asyncio.TimerHandle | None = None

    def tell(self) -> None:
        """From any thread, without the lock: wake the loop, which then delivers the answers."""
        with suppress(RuntimeError):  # the loop is closed, so nobody waits
            self.loop.call_soon_threadsafe(self._deliver)

    def watch(self) -> None:
        """On the loop, with the lock: look soon after the calls that wait."""
        if self.timer is None:
            self.timer = self.loop.call_later(_LOOK_SECONDS, self._look)

    def _look(self) -> None:
        """While calls wait: deliver delayed answers, and add a thread if the others are stuck."""
        with self.workers.lock:
            self.timer = None
            if self.workers.unstick():
                self.watch()
        self._deliver()

    def _deliver(self) -> None:
        """On the loop: set the futures."""
        with self.workers.lock:
            answers = self.answers
            self.answers = []
            self.is_told = False
        for future, (result, error) in answers:
            _settle(future, result, error)


class Workers:
    """Up to ``max_workers`` threads, started as calls come in.

    Waking a thread, or the loop, costs more than a read. So a thread continues with waiting calls, and their answers
    reach the loop together. Other threads help with calls that are to run ``side_by_side``, and when all are stuck.

    The threads refer to this, so it needs ``stop()`` or ``dismiss()``.
    """

    def __init__(self, max_workers: int) -> None:
        self.max_workers = max_workers
        self.start_anew()
        _all.add(self)

    def start_anew(self) -> None:
        """Start without threads; after a fork they exist only in the parent."""
        self.lock = threading.Lock()
        self.opening = threading.Lock()  # held by what opens or closes the database
        # By kind, in order of the first of each: a thread takes all of one kind.
        self._ready: dict[object, list[Job]] = {}
        self._lines: defaultdict[str, _Line] = defaultdict(_Line)
        self._threads: list[threading.Thread] = []
        # One wake-up for each thread that is needed: True for work, False for the end.
        self._wakes: SimpleQueue[bool] = SimpleQueue()
        self._woken = 0  # how many threads have a wake-up, and have not begun
        # By thread that is in calls, how many looks have found it in these.
        self._busy: dict[int, int] = {}
        # Jobs and the loop keep an outbox alive, not this: it refers to its loop, which must not outlive the program's
        # use of it.
        self._outboxes: weakref.WeakValueDictionary[
            asyncio.AbstractEventLoop, Outbox
        ] = weakref.WeakValueDictionary()

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
            outbox = self._outboxes[loop] = Outbox(self, loop)
        return outbox

    def submit(self, job: Job) -> None:
        """On the loop: run the job as soon as earlier ones on its ids have ended."""
        with self.lock:
            # All its lines at once, under the lock: with two ids each, two calls would otherwise wait for each other.
            for key in job.keys:
                self._lines[key].join(job)
            if job.held_up:
                return
            self._let_run(job)
            is_wanted = job.side_by_side or self._are_all_stuck()
            try:
                is_helped = is_wanted and self._add_worker()
            except RuntimeError:  # there is no thread that could ever run it
                self._ready.clear()
                self._leave(job)
                raise
            if not is_helped:
                job.outbox.watch()

    def begin(self) -> list[Job]:
        """Return the first calls of a thread that was woken; none if none is ready any more."""
        with self.lock:
            self._woken -= 1
            return self._take()

    def finish(self, jobs: list[Job], answers: dict[Job, Answer]) -> list[Job]:
        """Note the answers of calls, and return the next ones to run; none if none is ready."""
        outbox = jobs[0].outbox
        unanswered = [job for job in jobs if job not in answers]
        with self.lock:
            for job, answer in answers.items():
                self._leave(job)
                outbox.answers.append((job.future, answer))
            # Left out of a common call: in a thread each, because one may wait for a lock.
            for job in unanswered:
                job.together = None
                self._let_run(job)
                self._add_worker()
            following = self._take()
            # While others wait, the loop looks anyway, and then delivers several answers.
            may_wait = self._ready and outbox.timer is not None
            must_tell = not (may_wait or outbox.is_told)
            outbox.is_told |= must_tell
        if must_tell:
            outbox.tell()
        return following

    def unstick(self) -> bool:
        """With the lock: add a thread if all others are stuck; return whether calls wait."""
        if not self._ready:
            return False
        for thread in self._busy:
            self._busy[thread] += 1
        if self._are_all_stuck():
            self._add_worker()
        return True

    def _are_all_stuck(self) -> bool:
        """Whether each thread that is awake is in calls that take long, for example because a row is locked."""
        # Two looks, not a time: a busy loop lets no thread go on, and does not look either.
        return not self._woken and all(looks >= 2 for looks in self._busy.values())

    def dismiss(self) -> None:
        """Let each thread end after its calls; those that are busy still run what waits."""
        self.max_workers = 0
        for _ in self._threads:
            self._wakes.put(False)

    def stop(self) -> None:
        """Let the running calls end, then the threads."""
        with self.lock:  # the loop may be adding a thread for a waiting call
            self.dismiss()
        for thread in self._threads:
            thread.join()

    def _take(self) -> list[Job]:
        """Take the first job that is ready, and those that can be one call with it.

        Without one the thread counts as idle, and must go to sleep.
        """
        thread = threading.get_ident()
        if not self._ready:
            self._busy.pop(thread, None)
            return []
        self._busy[thread] = 0
        kind = next(iter(self._ready))
        waiting = self._ready.pop(kind)
        jobs, left = waiting[:_MOST_TOGETHER], waiting[_MOST_TOGETHER:]
        if left:
            self._ready[kind] = left
        # Those that an earlier call on their ids held up came without the loop, so it does not look after them.
        if self._ready and jobs[0].outbox.timer is None:
            self._add_worker()
        return jobs

    def _let_run(self, job: Job) -> None:
        """Let a thread take the job; it waits for no other on its ids."""
        kind = job.together or job
        self._ready.setdefault(kind, []).append(job)

    def _leave(self, job: Job) -> None:
        """Let those go on that waited for this one."""
        for key in job.keys:
            line = self._lines[key]
            for released in line.leave():
                if not released.held_up:
                    self._let_run(released)
            if line.is_empty():
                del self._lines[key]

    def _add_worker(self) -> bool:
        """Wake a thread, or start another; return whether there is one."""
        # Once dismissed, an idle thread has ended, and only those that are busy can still run what waits.
        if not self.max_workers:
            return False
        awake = self._woken + len(self._busy)
        if awake >= len(self._threads):  # none is idle
            if awake >= self.max_workers:
                return False
            name = f"agentdb-{len(self._threads)}"
            thread = threading.Thread(
                target=_work,
                args=(self,),
                name=name,
                daemon=True,  # the end of the program does not wait for a call
            )
            try:
                thread.start()
            except (
                RuntimeError
            ):  # the system has no more; those that run take what waits
                if not self._threads:
                    raise
                return False
            self._threads.append(thread)
        self._woken += 1
        self._wakes.put(True)
        return True


def _work(workers: Workers) -> None:
    """In a thread: run calls until none is ready, then sleep until somebody wakes it."""
    while workers._wakes.get():
        jobs = workers.begin()
        while jobs:
            # The answers have no name here, or an idle thread would keep the caller's objects alive.
            jobs = workers.finish(jobs, _do(jobs))


def _settle(
    future: asyncio.Future[Any],
    result: Any,
    error: BaseException | None,
) -> None:
    """On the loop: give the caller the answer, if it still waits."""
    if future.done():  # cancelled, or a call without a caller, such as a transaction that is rolled back
        return
    # A future refuses a StopIteration, which would end the coroutine that awaits it.
    if isinstance(error, StopIteration):
        text = f"The call raised {error!r}, which a coroutine cannot raise."
        error = RuntimeError(text)
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


_all: weakref.WeakSet[Workers] = weakref.WeakSet()


def _start_anew_in_child() -> None:
    for workers in list(_all):
        workers.start_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew_in_child)
