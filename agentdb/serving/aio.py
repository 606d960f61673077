"""AsyncDb: every Db method, awaitable."""

from __future__ import annotations

import asyncio
import inspect
import weakref
from collections.abc import Callable, Collection, Coroutine, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import (
    Any,
    Concatenate,
    NamedTuple,
    ParamSpec,
    Self,
    TypeVar,
    cast,
    overload,
)

from agentdb.errors import DatabaseClosedError, InvalidInputError
from agentdb.inputs import named_tenant
from agentdb.interface import Db
from agentdb.serving.coroutines import CoroutineTransaction, PlainTransaction
from agentdb.serving.workers import Job, Outbox, Workers

P = ParamSpec("P")
R = TypeVar("R")

DEFAULT_MAX_WORKERS = 8
_MAX_TRANSACTIONS = 100_000  # no limit: a transaction that waited for a thread could block those it waits for

_INSIDE = (
    "A transaction of this AsyncDb is open here, and this call would not be part of it. Inside the function given to "
    "run_transaction(), call its argument."
)


@dataclass(slots=True)
class _Call:
    """A call of a method: what to do with a ``Db``, and what that concerns."""

    do: Callable[[Any], Any]
    keys: tuple[str, ...] = ()  # the ids; calls on one id keep their order
    reads: bool = False
    method: str = ""  # if its only argument is one id
    tenant_id: str | None = None  # of a view
    apart: bool = False  # it needs a free thread

    def __call__(self, db: Db) -> Any:
        """Make the call, in a thread."""
        if self.tenant_id is not None:
            db = db.for_tenant(self.tenant_id)
        return self.do(db)


class _Together(NamedTuple):
    """Makes several calls of one method at once; equal ones may be joined."""

    around: AsyncDb
    method: str
    tenant_id: str | None  # of a view
    outbox: Outbox  # where all answers go

    def __call__(self, ids: list[str]) -> dict[str, Any]:
        """In a thread: return the answers by id, without those of calls that must be made alone."""
        call = _Call(
            lambda db: db._do_each(self.method, ids),
            tenant_id=self.tenant_id,
        )
        answers: dict[str, Any] = self.around._call(call, self.around._tries)
        return answers


def _in_thread(
    method: Callable[Concatenate[Db, P], R],
) -> Callable[Concatenate[AsyncDb, P], Coroutine[object, object, R]]:
    """Return the awaitable method of the same name and signature.

    It makes the call on the ``Db`` that its ``AsyncDb`` has at that moment, so a method that a subclass or a test has
    replaced is called as well.
    """
    # Not Coroutine[Any, Any, R]: mypy would know nothing about the result of asyncio.gather() of two calls.
    name = method.__name__
    reads = name.startswith(("get_", "list_", "count_"))
    # Read from the contract: a method whose first argument names rows keeps the order of calls on those rows.
    code = method.__code__
    first = ""
    if code.co_argcount > 1:
        first = code.co_varnames[1]  # after "self"
    is_about_ids = first in ("id", "ids", "name", "key_hash")

    @wraps(method)
    async def call(self: AsyncDb, /, *args: P.args, **kwargs: P.kwargs) -> R:
        def do(db: Db) -> R:
            own: Callable[..., R] = getattr(db, name)
            return own(*args, **kwargs)

        made = _Call(do, reads=reads)
        if is_about_ids:
            ids = args[0] if args else kwargs.get(first)
            made.keys = _keys(ids)
            # Another argument may change what the call does, so it is not joined with others.
            is_alone = len(args) + len(kwargs) == 1
            if is_alone and len(made.keys) == 1:
                made.method = name
        result: R = await self._job(made).start()
        return result

    return call


def _keys(ids: object) -> tuple[str, ...]:
    """Return the ids of a call; none if they are not strings, which the call itself refuses."""
    if isinstance(ids, str):
        return (ids,)
    if not isinstance(ids, Collection):
        return ()
    given = cast("Collection[object]", ids)
    # Each once: a call that was in the same line twice would wait for itself.
    distinct = {id for id in given if isinstance(id, str)}
    return tuple(distinct)


class AsyncDb:
    """Any ``Db``, awaitable: each call runs in one of up to ``max_workers`` threads.

    Calls on one id take effect in the order in which they were made, awaited or not; await a call before one
    that depends on it in another way, such as a list or a transaction.

    Cancelling a call stops the waiting, not the work: a call that a thread has begun runs to its end. One that has
    not begun never runs.
    """

    _open: Callable[[], Db]
    _closed = False
    _tenant_id: str | None = None  # of a view
    _closed_text = (
        "The AsyncDb is closed. Open another one with agentdb.connect_async()."
    )

    def __init__(self, db: Db, *, max_workers: int = DEFAULT_MAX_WORKERS) -> None:
        if type(max_workers) is not int or max_workers < 1:
            raise InvalidInputError(
                f"max_workers must be a whole number from 1, not {max_workers!r}."
            )
        self._workers = Workers(max_workers)
        # Each transaction of a coroutine function has a thread of its own: it waits for the function's calls, and
        # whatever the function awaits in between may need all of the others.
        self._transactions = Workers(_MAX_TRANSACTIONS)
        # Dropping this without close() must not leave the threads waiting.
        for workers in (self._workers, self._transactions):
            weakref.finalize(self, workers.dismiss)
        self._db: Db | None = db
        self._open = lambda: db
        self._tries = 0  # the number of failed attempts to open
        self._failure: BaseException | None = None

    @classmethod
    def opening(
        cls,
        open_db: Callable[[], Db],
        *,
        max_workers: int = DEFAULT_MAX_WORKERS,
    ) -> Self:
        """Return an ``AsyncDb`` of the ``Db`` that ``open_db``, called in a thread, returns on first use."""
        self = cls(cast("Db", None), max_workers=max_workers)
        self._open = open_db
        return self

    def __await__(self) -> Generator[Any, None, Self]:
        """Open the database now: ``db = await agentdb.connect_async(url)``."""
        return self.__aenter__().__await__()

    async def __aenter__(self) -> Self:
        opened = _Call(lambda db: None)
        await self._job(opened).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _job(self, call: _Call) -> Job:
        """Return a job that makes the call."""
        self._check_open()
        self._refuse_inside()
        workers = self._workers
        if call.apart:
            workers = self._transactions
        tries = self._tries  # an attempt to open that ends later is this call's, too
        outbox = workers.outbox()
        together = None
        if call.method and self._joins(call.method):
            together = _Together(self, call.method, call.tenant_id, outbox)
        # A call that waits for others in the engine gains most if it becomes one with them. Reads of a file, and of a
        # Db in this process, take turns at the interpreter anyway.
        is_local_read = call.reads and not getattr(self._db, "_has_server", False)
        return Job(
            lambda: self._call(call, tries),
            outbox,
            workers.submit,
            keys=call.keys,
            reads=call.reads,
            together=together,  # type: ignore[arg-type]  # mypy overlooks that the tuple can be called
            side_by_side=call.apart or not (together or is_local_read),
        )

    def _joins(self, method: str) -> bool:
        """Whether the ``Db`` makes several calls of the method at once."""
        # Of the class, since a wrapper may hand on every name that it lacks, and yet do something of its own.
        joins = getattr(type(self._db), "_joins", None)
        return joins is not None and bool(joins(self._db, method))

    def _check_open(self) -> None:
        if self._closed:
            raise DatabaseClosedError(self._closed_text)

    @property
    def _source(self) -> AsyncDb:
        """Return this ``AsyncDb``, or the one that this is a view of."""
        return self

    def _refuse_inside(self) -> None:
        """Refuse a call inside one of its own transactions: it would not be part of that, or would wait for its end."""
        for transaction in _inside.get():
            if transaction.is_open and transaction.around is self:
                raise InvalidInputError(_INSIDE)

    def _call(self, call: Callable[[Db], R], tries: int) -> R:
        """In a thread: make the call, after opening the database if it is the first."""
        db = self._db
        if db is None:
            db = self._first_open(tries)
        try:
            return call(db)
        finally:
            # Others may be waiting for the connection that a host's pool gave this thread.
            rest = getattr(db, "_rest", None)
            if rest is not None:
                rest()

    def _first_open(self, tries: int) -> Db:
        """Open the database in a call's thread: it may take seconds, and the loop must not wait.

        If another attempt has failed since the call was made, at ``tries``, that is the call's failure as well.
        """
        with self._workers.opening:
            if self._db is not None:
                return self._db  # another call has opened it meanwhile
            if self._tries > tries and self._failure is not None:
                raise self._failure
            try:
                self._db = self._open()
            except BaseException as error:
                self._failure = error
                self._tries += 1
                raise
            return self._db

    upsert_agent = _in_thread(Db.upsert_agent)
    get_agent = _in_thread(Db.get_agent)
    list_agents = _in_thread(Db.list_agents)
    delete_agent = _in_thread(Db.delete_agent)
    insert_session = _in_thread(Db.insert_session)
    update_session_status = _in_thread(Db.update_session_status)
    update_session_sandbox = _in_thread(Db.update_session_sandbox)
    update_session_runner = _in_thread(Db.update_session_runner)
    get_session = _in_thread(Db.get_session)
    list_sessions = _in_thread(Db.list_sessions)
    list_sessions_by_runner = _in_thread(Db.list_sessions_by_runner)
    count_sessions = _in_thread(Db.count_sessions)
    claim_session = _in_thread(Db.claim_session)
    get_silent_sessions = _in_thread(Db.get_silent_sessions)
    touch_session = _in_thread(Db.touch_session)
    touch_sessions = _in_thread(Db.touch_sessions)
    delete_session = _in_thread(Db.delete_session)
    insert_sandbox = _in_thread(Db.insert_sandbox)
    update_sandbox_state = _in_thread(Db.update_sandbox_state)
    update_sandbox_session = _in_thread(Db.update_sandbox_session)
    touch_sandbox = _in_thread(Db.touch_sandbox)
    touch_sandboxes = _in_thread(Db.touch_sandboxes)
    get_sandbox = _in_thread(Db.get_sandbox)
    list_sandboxes = _in_thread(Db.list_sandboxes)
    list_sandboxes_by_runner = _in_thread(Db.list_sandboxes_by_runner)
    count_sandboxes = _in_thread(Db.count_sandboxes)
    claim_warm_sandbox = _in_thread(Db.claim_warm_sandbox)
    get_best_eviction_candidate = _in_thread(Db.get_best_eviction_candidate)
    claim_eviction_candidate = _in_thread(Db.claim_eviction_candidate)
    get_idle_sandboxes = _in_thread(Db.get_idle_sandboxes)
    get_cold_sandboxes = _in_thread(Db.get_cold_sandboxes)
    delete_sandbox = _in_thread(Db.delete_sandbox)
    mark_all_sandboxes_cold = _in_thread(Db.mark_all_sandboxes_cold)
    mark_sandboxes_cold_by_runner = _in_thread(Db.mark_sandboxes_cold_by_runner)
    bulk_pause_sessions_by_runner = _in_thread(Db.bulk_pause_sessions_by_runner)
    bulk_pause_active_sessions = _in_thread(Db.bulk_pause_active_sessions)
    get_api_key_by_hash = _in_thread(Db.get_api_key_by_hash)
    insert_api_key = _in_thread(Db.insert_api_key)
    list_api_keys_by_tenant = _in_thread(Db.list_api_keys_by_tenant)
    delete_api_key = _in_thread(Db.delete_api_key)
    issue_api_key = _in_thread(Db.issue_api_key)
    authenticate = _in_thread(Db.authenticate)
    prune_sessions = _in_thread(Db.prune_sessions)
    health = _in_thread(Db.health)

    def for_tenant(self, tenant_id: str) -> AsyncDb:
        """Return a view of that tenant's rows only, on the same threads; see ``Db.for_tenant()``."""
        self._check_open()
        named = named_tenant(self._tenant_id, tenant_id)
        return _TenantView(self._source, named)

    @overload
    async def run_transaction(
        self, fn: Callable[[AsyncDb], Coroutine[Any, Any, R]]
    ) -> R: ...

    @overload
    async def run_transaction(self, fn: Callable[[Db], R]) -> R: ...

    async def run_transaction(self, fn: Any) -> Any:
        """Call ``fn`` with all its calls in one transaction, and return its result; see ``Db.run_transaction()``.

        A plain function gets a ``Db`` and runs in one thread. An ``async def`` function gets an ``AsyncDb`` for the
        transaction: its calls run in order, and raise ``DatabaseClosedError`` after the end. Inside the function, a
        call on the outer ``AsyncDb`` raises ``InvalidInputError``. Cancelling rolls back at once, unless COMMIT has
        begun: then the call waits for the answer and returns or raises, and the task is cancelled at its next await.
        """
        # An object may have an "async def __call__", which iscoroutinefunction() does not see by itself.
        own_call = getattr(fn, "__call__", None)  # noqa: B004
        if not any(map(inspect.iscoroutinefunction, (fn, own_call))):

            def call_plain(db: Db) -> Any:
                with _inside_of(self._source):
                    return fn(db)

            plain = PlainTransaction(call_plain)
            job = self._job(_Call(lambda db: db.run_transaction(plain)))
            return await plain.run(job)

        async def call(db: Db) -> Any:
            with _inside_of(self._source) as inside:
                view = _TransactionDb(inside, transaction, db)
                view._tenant_id = self._tenant_id
                return await fn(view)

        transaction = CoroutineTransaction(call)
        job = self._job(_Call(lambda db: db.run_transaction(transaction), apart=True))
        return await transaction.run(job)

    async def close(self) -> None:
        """Close the ``Db`` when the running calls have ended; a second call does nothing."""
        self._refuse_inside()
        # Refuses new calls at once, while those that run go on.
        self._closed = True
        apart = Workers(1)  # because it waits for the others
        job = Job(self._shut_down, apart.outbox(), apart.submit)
        closing = job.start()
        apart.dismiss()
        # Cancelling this must not leave the connections open.
        await asyncio.shield(closing)

    def _shut_down(self) -> None:
        """In a thread of its own: wait for the calls of the others, then close the ``Db``."""
        self._workers.stop()
        self._transactions.stop()
        with self._workers.opening:  # a second close() waits for the first
            db = self._db
            self._db = None
            if db is not None:
                db.close()


class _TenantView(AsyncDb):
    """An ``AsyncDb`` of one tenant, in the threads of another."""

    _closed_text = "The view of a tenant is closed. Make another one with for_tenant()."

    def __init__(self, whole: AsyncDb, tenant_id: str) -> None:
        self._whole = whole
        self._tenant_id = tenant_id

    def _job(self, call: _Call) -> Job:
        self._check_open()
        call.tenant_id = self._tenant_id
        return self._whole._job(call)

    @property
    def _source(self) -> AsyncDb:
        return self._whole

    async def close(self) -> None:
        """End this view alone."""
        self._closed = True


@dataclass(slots=True)
class _Inside:
    """The run of a transaction's function, and the outer ``AsyncDb``."""

    around: AsyncDb
    is_open: bool = True


_inside: ContextVar[tuple[_Inside, ...]] = ContextVar("agentdb_inside", default=())


@contextmanager
def _inside_of(around: AsyncDb) -> Generator[_Inside, None, None]:
    """Let the body's calls on the outer ``AsyncDb`` be refused."""
    inside = _Inside(around)
    before = _inside.get()
    _inside.set((*before, inside))
    try:
        yield inside
    finally:
        inside.is_open = False  # also for tasks that the function has started
        # Not reset(), which raises if a loop that is closed ends the coroutine in another context.
        _inside.set(before)


class _TransactionDb(AsyncDb):
    """The calls of one transaction, all made in the thread that runs it."""

    def __init__(
        self,
        inside: _Inside,
        transaction: CoroutineTransaction,
        db: Db,
    ) -> None:
        self._inside = inside
        self._transaction = transaction
        self._db = db

    def _job(self, call: _Call) -> Job:
        db = self._db
        assert db is not None
        if not self._inside.is_open:
            raise DatabaseClosedError(
                "The transaction has ended. Call the AsyncDb that ran it."
            )
        self._refuse_inside()
        return self._transaction.inner_job(lambda: call(db))

    async def close(self) -> None:
        """Do nothing: the transaction ends with its function."""
