"""Transactions for asyncio: of plain functions, and of coroutine functions, which run on the event loop.

A cancelled one raises ``CancelledError`` only if nothing of it is stored. Before COMMIT it is rolled back; after that
only the answer to the COMMIT decides.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from agentdb.errors import AgentDbError, OutcomeUnknownError
from agentdb.interface import Db
from agentdb.serving.workers import Answer, Job

_LOOK_SECONDS = 1.0
_OTHER_LOOP = (
    "A transaction belongs to the event loop that runs it, and this call comes from another. Make the calls in the "
    "function's own loop."
)


class _Cancelled(BaseException):
    """Rolls back a transaction for which nobody waits any more; not an ``Exception``, which might be retried."""


class _Begun(NamedTuple):
    """The first answer of a transaction's thread: the ``Db`` for its calls."""

    db: Db


class CoroutineTransaction:
    """One transaction of a coroutine function: a thread has it open, and the loop runs the function.

    The thread is inside ``Db.run_transaction`` from BEGIN to COMMIT, and runs each call as it arrives. So the
    transaction lives as long as that frame, is retried like any other, and works with every ``Db``.
    """

    def __init__(self, fn: Callable[[Db], Awaitable[Any]]) -> None:
        self._fn = fn
        # The function's calls, then how it ended.
        self._calls: SimpleQueue[Job | Answer] = SimpleQueue()

    async def run(self, job: Job) -> Any:
        """Start the job, which calls this object in a transaction, and return the function's result when it is stored.

        The function is called for each attempt at the transaction.
        """
        self._job = job
        try:
            answer = await job.start()
            while isinstance(answer, _Begun):
                end = await self._end(answer.db)
                # A new future before the thread can answer; the old one is done.
                job.future = job.future.get_loop().create_future()
                self._calls.put(end)
                _, error = end
                answer = await (outcome(job.future) if error is None else job.future)
        # Cancelled; or the loop is closing this coroutine, which may then await nothing. After the thread's own error
        # nobody takes this from the queue.
        except BaseException:
            self._calls.put((None, _Cancelled()))
            raise
        return answer

    def inner_job(self, call: Callable[[], Any]) -> Job:
        """Return a job for a call inside the transaction."""
        job = Job(call, self._job.outbox, self._calls.put)
        loop = self._job.future.get_loop()
        if job.future.get_loop() is not loop:
            raise AgentDbError(_OTHER_LOOP)  # which the outbox would not wake
        return job

    async def _end(self, db: Db) -> Answer:
        """Call the function, and return how it ended; a cancellation is for ``run`` to handle."""
        try:
            return await self._fn(db), None
        except Exception as error:
            return None, error

    def __call__(self, db: Db) -> Any:
        """In the thread, inside the transaction: run the calls until the function has ended."""
        # If it was cancelled while it waited for a thread, or between two attempts, its end is there already.
        self._job.answer((_Begun(db), None))
        while isinstance(made := self._next(), Job):
            made.answer(made.do())
        result, error = made
        if error is not None:
            raise error
        return result

    def _next(self) -> Job | Answer:
        """Wait for the function's next call, or for its end."""
        while True:
            # A loop that was closed with the transaction open sends nothing any more, and its lock would stay until
            # the process ends. So look whether it still runs.
            try:
                return self._calls.get(timeout=_LOOK_SECONDS)
            except Empty:
                # The function will never continue.
                if self._job.future.get_loop().is_closed():
                    raise _Cancelled from None


class PlainTransaction:
    """One transaction of a plain function, which runs in a thread and can be cancelled until COMMIT begins."""

    def __init__(self, fn: Callable[[Db], Any]) -> None:
        self._fn = fn
        self._lock = threading.Lock()
        self._is_cancelled = False
        self._is_committing = False

    def __call__(self, db: Db) -> Any:
        """In the thread: call the function, and let ``Db.run_transaction`` commit unless cancelled."""
        self._go_on(committing=False)
        result = self._fn(db)
        self._go_on(committing=True)
        return result

    async def run(self, job: Job) -> Any:
        """Start the job, which calls this object in a transaction, and return its result."""
        try:
            await asyncio.wait([job.start()])
        except asyncio.CancelledError:
            # The thread passes the same lock before COMMIT. So either it sees the cancellation and rolls back, or
            # this task sees that COMMIT has begun and waits for the outcome.
            with self._lock:
                self._is_cancelled = True
                is_committing = self._is_committing
            if is_committing:
                return await outcome(job.future, cancelled=True)
            job.future.cancel()
            raise
        return job.future.result()

    def _go_on(self, *, committing: bool) -> None:
        with self._lock:
            if self._is_cancelled:
                raise _Cancelled
            self._is_committing = committing


async def outcome(future: asyncio.Future[Any], *, cancelled: bool = False) -> Any:
    """Return the answer to a running COMMIT, even if the task is cancelled meanwhile.

    A COMMIT cannot be cancelled. If it succeeds, the caller gets the result, and the cancellation, if it is still
    requested then, reaches the task at its next await.
    """
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        error = future.exception()
        if isinstance(error, OutcomeUnknownError):
            raise error
        if error is not None or isinstance(future.result(), _Begun):
            raise asyncio.CancelledError
        future.get_loop().call_soon(_cancel_again, asyncio.current_task())
    return future.result()


def _cancel_again(task: asyncio.Task[Any] | None) -> None:
    """Cancel a task whose cancellation came during a COMMIT, if that is still requested.

    A canceller that is content with the result, such as asyncio.timeout(), has withdrawn its request by now.
    """
    if task is None or task.done():
        return
    if task.cancelling():
        task.uncancel()  # keep the number of requests
        task.cancel()
