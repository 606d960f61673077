"""Transactions: each is an object that lives from its BEGIN to its COMMIT or ROLLBACK."""

from __future__ import annotations

import sys
import time
import traceback
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from django.db import transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.errors import AgentDbError
from agentdb.faults import NOT_KEPT, REFUSED, Fault, driver_error
from agentdb.inputs import InOneThread
from agentdb.serving.connections.base import Connection, Slot
from agentdb.serving.turns import Turn

_CONTINUED = (
    "The transaction failed inside the function, which went on after the error; nothing of it is stored. "
    "Let the error leave the function, or undo the part that may fail with an inner run_transaction()."
)
_CUT_OFF = (
    "An exception from a signal handler cut off an atomic() in this transaction, and Django will not commit it. "
    "It can only be rolled back: let this error leave the outermost atomic()."
)
_ABANDONED = (
    "An exception from a signal handler cut off an atomic(), and nothing was left to end its transaction, which is "
    "rolled back now. This call did nothing; the next one works."
)
_OF_ATOMIC = (
    transaction.Atomic.__enter__.__code__,
    transaction.Atomic.__exit__.__code__,
)


class Block:
    """An open transaction, and the failure in it, if any."""

    def __init__(self, wrapper: BaseDatabaseWrapper) -> None:
        self._wrapper = wrapper
        # What Django's wrapper had open around it: in a host's transaction its outermost atomic(). Weak, so that this
        # object does not count as somebody who will end it.
        blocks: list[Any] = wrapper.atomic_blocks
        self.outermost = weakref.ref(blocks[0]) if blocks else None
        self.failure: AgentDbError | None = None
        self.fault: Fault | None = None

    def fail(self, failure: AgentDbError, fault: Fault | None) -> AgentDbError:
        """Mark it as failed, so that nothing more runs in it, and return the failure."""
        self.failure, self.fault = failure, fault
        self._wrapper.needs_rollback = True
        return failure

    def fail_by(
        self, slot: Slot, error: BaseException, *, writing: bool = False
    ) -> AgentDbError:
        """Mark it as failed by the driver's error of a statement in it, and return the ``AgentDbError``."""
        fault = slot.fault(error, writing=writing)
        return self.fail(slot.engine.explain(fault, error), fault)

    def check(self) -> Block:
        """Return this, or raise the failure in it."""
        if self._wrapper.needs_rollback:
            raise self.failure or AgentDbError(
                "The transaction has already failed; it can only be rolled back."
            )
        return self

    def connection_to_commit(self, slot: Slot) -> Connection:
        """Return the connection for the COMMIT; raise if the function continued after a failure."""
        if not self._wrapper.needs_rollback:
            connection = slot.open_in_block()
            if connection.in_transaction():
                return connection
        raise self.failure or AgentDbError(_CONTINUED)

    def clear_failure(self) -> None:
        """After rolling back to a savepoint, clear the failure unless the whole transaction must be retried."""
        if self._wrapper.needs_rollback:
            return
        # A conflict concerns all that the transaction has read, not only the part that was rolled back. Going on
        # would end in the same conflict at COMMIT, so the whole is retried.
        if self.fault in REFUSED:
            self._wrapper.needs_rollback = self._wrapper.in_atomic_block
        else:
            self.failure = self.fault = None


def block_of(slot: Slot) -> Block | None:
    """Return the open transaction of the slot, ours or the host's, according to Django's wrapper.

    Raises ``AgentDbError`` after rolling back a host's that nobody can end.
    """
    wrapper = slot.wrapper
    if not wrapper.in_atomic_block:
        return None
    # Django keeps a stack of its open atomic() blocks. The outermost one owns the transaction: if that is ours, this
    # is run_transaction; anything else is the host's own atomic().
    blocks: list[Any] = wrapper.atomic_blocks
    if blocks and isinstance(blocks[0], Transaction):
        if not blocks[0].is_over:
            return blocks[0]
        slot.reset()  # an asynchronous exception prevented its end
        return None
    held = _held(blocks)
    if held:
        return _block_of_host(slot, held)
    # The same happened to the host's. It is rolled back, and one call says so: the host may have written in it.
    slot.reset()
    raise AgentDbError(_ABANDONED)


def _block_of_host(slot: Slot, held: list[Any]) -> Block:
    """Return the host's open transaction, as failed if Django would not commit it at the end of these blocks."""
    wrapper = slot.wrapper
    is_cut_off = wrapper.commit_on_exit and not _end_with(held, wrapper)
    # The host tells nobody when its transaction ends. Its outermost block tells whether a failure that was noted
    # belongs to this one.
    known = slot.host_block
    if not isinstance(known, Block) or known.outermost != weakref.ref(held[0]):
        known = slot.host_block = Block(wrapper)
    # A function with the decorator @atomic has the same block at each call, and a failure of an earlier one is over.
    if not wrapper.needs_rollback:
        known.failure = known.fault = None
    if not wrapper.commit_on_exit:
        known.fail(slot.never_committed(), None)
    elif is_cut_off:
        known.fail(AgentDbError(_CUT_OFF), None)
    return known


def _end_with(held: list[Any], wrapper: BaseDatabaseWrapper) -> bool:
    """Return whether Django has noted these blocks only; if not, let the outermost of them roll back."""
    savepoints = len(held) - 1
    noted = len(wrapper.savepoint_ids)
    if noted == savepoints == len(wrapper.atomic_blocks) - 1:
        return True
    # Django ends a transaction when it has no savepoint left, and would wait for one more block to end.
    wrapper.needs_rollback = True
    wrapper.savepoint_ids = [None] * savepoints  # type: ignore[list-item]
    wrapper.atomic_blocks = held
    return False


def _held(blocks: list[Any]) -> list[Any]:
    """Return the host's blocks that somebody can still end.

    An asynchronous exception in the first steps of Django's ``__exit__``, or in the last of ``__enter__``, leaves a
    block in Django's list, and the list alone refers to it. A block in use is also held by the frame that ends it.
    """
    error = sys.exception()
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        # The traceback keeps the frame of the step that was cut off, and that keeps the block.
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if frame.f_code in _OF_ATOMIC:
                with suppress(RuntimeError):  # it is still running
                    frame.clear()
        seen.append(error)
        error = error.__context__
    counts = map(sys.getrefcount, blocks)
    # The list's reference, and that of the call.
    return [blocks[at] for at, count in enumerate(counts) if count > 2]


class Transaction(Block, InOneThread):
    """A transaction of one slot. ``begin``, ``commit`` and ``undo`` are separate calls from one thread. Whatever
    ``begin``, ``commit`` or a call between them raises, the driver's error too, ``undo`` ends the transaction.

    While it is open, it is the outermost block in Django's wrapper, so Django's own queries are part of it.
    ``Savepoint`` has the same methods.
    """

    _from_testcase = False  # for Django, which asks its outermost block

    def __init__(self, slot: Slot) -> None:
        Block.__init__(self, slot.wrapper)
        InOneThread.__init__(self)
        self.is_over = True  # until it has a connection: undo() must not end what a host may have open there
        self._slot = slot
        # While it is open, other writers of a SQLite file wait.
        self._turn: Turn | None = None

    @property
    def may_be_retried(self) -> bool:
        """Whether a conflict rolled it back, so that a retry may succeed."""
        return self.fault in REFUSED

    @property
    def block(self) -> Block:
        return self

    def begin(self) -> None:
        # The turn comes before BEGIN: SQLite's own waiting polls, in no order, and can starve a writer.
        slot = self._slot
        self._turn = slot.engine.take_turn()
        began = time.monotonic()
        try:
            self._begin_on(slot.ready())
        except slot.engine.errors as error:
            if slot.fault(error, writing=False) is not Fault.LOST:
                raise
            # A pooler or a server that restarted may have dropped it after the check for a readable socket. BEGIN
            # alone has changed nothing, so it may be repeated; what remains of call_timeout limits the second
            # attempt.
            slot.discard()
            limit = slot.engine.rest_of_call(began)
            self._begin_on(slot.ready(limit))
        wrapper = self._wrapper
        # After BEGIN has succeeded, and in_atomic_block last: block_of() looks at that first, so an exception from a
        # signal handler in between leaves an open transaction of the driver, which ready() finds and resets.
        wrapper.commit_on_exit, wrapper.needs_rollback = True, False
        wrapper.autocommit = False
        wrapper.atomic_blocks = [self]  # type: ignore[list-item]
        wrapper.in_atomic_block = True

    def _begin_on(self, connection: Connection) -> None:
        self.is_over = False
        connection.begin()

    def check(self) -> Block:
        """Return this; raise if it has failed, has ended, or belongs to another thread."""
        self.check_use()
        return super().check()

    def commit(self) -> None:
        """Commit; the driver's error may mean that it is stored."""
        self.check_use()
        self.connection_to_commit(self._slot).commit()
        self._end()
        self._slot.leave_block()

    def undo(self, error: BaseException) -> None:
        """Roll back after an error; does nothing if the transaction has ended."""
        try:
            if not self.is_over:
                self._roll_back()
        finally:
            self._end()

    def _end(self) -> None:
        # Before anything else of ours can fail, or all writers of the file would wait for this one.
        if self._turn is not None:
            self._turn.end()
        self.is_over = True

    def _roll_back(self) -> None:
        """Roll back. If an asynchronous exception interrupts this, ``ready`` finds and resets the connection."""
        slot, wrapper = self._slot, self._wrapper
        is_closed = wrapper.closed_in_transaction or wrapper.connection is None
        try:
            if not is_closed:
                connection = slot.open_in_block()
                if not connection.is_clean():
                    connection.roll_back()
        except slot.engine.errors:
            is_closed = True
        finally:
            # Even if the ROLLBACK failed: the driver knows whether something is open, and ready() asks it.
            wrapper.run_on_commit = []
            slot.leave_block()
        if is_closed or self.fault in NOT_KEPT:
            slot.discard()


class Savepoint(InOneThread):
    """A part of the open transaction, through Django's ``atomic()``: it rolls back alone if it fails."""

    may_be_retried = False  # only the whole transaction may

    def __init__(self, slot: Slot, block: Block) -> None:
        super().__init__()
        self._slot = slot
        self.block = block
        self._atomic = transaction.atomic(using=slot.wrapper.alias)
        self.is_over: bool = True  # until it has begun

    def begin(self) -> None:
        wrapper = self._slot.wrapper
        # atomic() pushes to both lists in several steps, and an asynchronous exception can come between any two.
        ids, blocks = [*wrapper.savepoint_ids], [*wrapper.atomic_blocks]
        try:
            with self._whole():
                self._atomic.__enter__()
                self.is_over = False
        except BaseException:
            # If it was only half entered, leaving atomic() would end the outer block.
            self.is_over = True
            wrapper.savepoint_ids, wrapper.atomic_blocks = ids, blocks
            raise

    def check(self) -> Block:
        self.check_use()
        return self.block.check()

    def commit(self) -> None:
        self.check_use()
        self.block.connection_to_commit(self._slot)
        self._leave(None)

    def undo(self, error: BaseException) -> None:
        if not self.is_over:
            self._leave(error)
            self.block.clear_failure()

    def _leave(self, error: BaseException | None) -> None:
        try:
            with self._whole():
                self._atomic.__exit__(type(error) if error else None, error, None)
        finally:
            self.is_over = True

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Run a step of the savepoint; if it is interrupted, only the whole transaction can be rolled back."""
        slot = self._slot
        try:
            with slot.open_in_block().limited():
                yield
        except BaseException as error:
            # Nobody knows whether the savepoint exists, so no rollback to it can be trusted.
            slot.wrapper.needs_rollback = slot.wrapper.in_atomic_block
            if isinstance(error, slot.engine.errors):
                raise self.block.fail_by(slot, error) from driver_error(error)
            raise


Part = Transaction | Savepoint
