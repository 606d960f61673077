"""All queries of the Db interface, written over the models."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

from django.db.models import (
    Case,
    F,
    IntegerField,
    Model,
    OuterRef,
    Q,
    Subquery,
    Value,
    When,
)
from django.db.models.functions import Coalesce, Greatest
from django.db.models.lookups import Exact

from agentdb.expressions import (
    CodePointOrder,
    IsRow,
    IsUnchanged,
    Locked,
    LockedInOrder,
    OneOfRows,
    OneOfTexts,
    Unindexed,
    UnsyncedCommit,
)
from agentdb.interface import (
    ApiKeyRecord,
    SandboxRecord,
    SandboxState,
    SessionRecord,
    SessionStatus,
)
from agentdb.models import Agent, ApiKey, Sandbox, Session
from agentdb.querysets import FINISHED
from agentdb.schema.other_tables import rows_with_session
from agentdb.serving.compiled import (
    Delete,
    Insert,
    Parameters,
    Select,
    SelectCount,
    Update,
)


class Table(NamedTuple):
    """Sessions or sandboxes, for the queries that both have."""

    model: type[Model]
    time: str  # the column of the last sign of life, or use
    state: str


SESSIONS = Table(Session, "last_active_at", "status")
SANDBOXES = Table(Sandbox, "last_used_at", "state")


def _by_id(model: type[Model], p: Parameters) -> Any:
    return p.rows(model).filter(id=p.text("id"))


_session = partial(_by_id, Session)
_sandbox = partial(_by_id, Sandbox)
_api_key = partial(_by_id, ApiKey)


def _each(model: type[Model], key: str, p: Parameters) -> Any:
    """Match the rows with the keys in the JSON array ``ids``."""
    is_asked = OneOfTexts(key, p.text("ids"))
    return p.rows(model).filter(is_asked)


def _not_before(column: str, p: Parameters) -> Greatest:
    """Return the later of the current time and the stored one, so that the order of two calls does not matter."""
    return Greatest(F(column), p.now())


def _in_order(p: Parameters, rows: Any) -> Any:
    """Match the rows, for an update or delete of many; PostgreSQL locks them in the order of their ids.

    Every statement that waits for locks of several rows must, or two of them may wait for each other.
    """
    if p.vendor != "postgresql":
        return rows
    ids = rows.values("id")
    in_order = LockedInOrder(ids.order_by(CodePointOrder("id")))
    return p.rows(rows.model).filter(OneOfRows("id", in_order))


class Touch(NamedTuple):
    """The queries of a touch: find the rows that are due, update them, and update them without waiting for the disk."""

    is_due: Select  # for each row that exists, its id and 0 or 1
    update: Update  # for many rows, returns the ids that it writes
    unsynced: Update


@cache
def touch(
    table: Table,
    *,
    has_interval: bool = False,
    many: bool = False,
    of_runner: bool = False,
    skip_locked: bool = False,
) -> Touch:
    """Return the queries for the time of the last sign of life or use.

    With ``has_interval`` it is rewritten only when it is older than ``interval``, a ``timedelta``; ``touched_before``
    is the current time minus that, for SQLite. For the row ``id``, or with ``many`` those in the JSON array ``ids``;
    with ``of_runner`` only those on ``runner_id``. With ``skip_locked`` PostgreSQL leaves out rows that other
    transactions have locked, so the statement waits for none of them.
    """
    model, column, _ = table

    def is_asked(p: Parameters) -> Any:
        if many:
            return OneOfTexts("id", p.text("ids"))
        return Q(id=p.text("id"))

    def rows(p: Parameters) -> Any:
        found = p.rows(model).filter(is_asked(p))
        if of_runner:
            found = found.filter(runner_id=p.text("runner_id"))
        return found

    def is_due(p: Parameters) -> Q:
        if not has_interval:
            return Q()
        latest = p.ago("touched_before", "interval")
        return Q(**{f"{column}__lt": latest})

    def with_due(p: Parameters) -> Any:
        due = Case(
            When(is_due(p), then=Value(1)),
            default=Value(0),
            output_field=IntegerField(),
        )
        return rows(p).values_list("id", due)

    def due(p: Parameters) -> Any:
        found = rows(p).filter(is_due(p))
        if not many:
            return found
        if not skip_locked or p.vendor != "postgresql":
            return _in_order(p, found)
        # UPDATE itself cannot skip a locked row; SELECT FOR UPDATE can.
        free = Locked(found.values("id"))
        return p.rows(model).filter(OneOfRows("id", free))

    def due_unsynced(p: Parameters) -> Any:
        # A condition that is always true, and switches the sync off.
        return due(p).filter(Exact(UnsyncedCommit(), "off"))

    def values(p: Parameters) -> dict[str, object]:
        return {column: _not_before(column, p)}

    returning = ("id",) if many else False
    return Touch(
        Select(with_due),
        Update(due, values, returning=returning),
        Update(due_unsynced, values, returning=returning),
    )


# -- agents

# The id and created_at are the first row's: an update of an agent keeps them.
UPSERT_AGENT = Insert(
    lambda p: Agent(
        id=p.text("id"),
        tenant_id=p.text("tenant_id"),
        name=p.text("name"),
        version=1,
        path=p.text("path"),
        created_at=p.now(),
        updated_at=p.now(),
    ),
    unique=("tenant_id", "name"),
    replace=("path", "updated_at"),
    change={"version": F("version") + 1},
)
GET_AGENT = Select(
    lambda p: p.tenant(Agent).filter(name=p.text("name")),
)
LIST_AGENTS = Select(lambda p: p.tenant(Agent).by_name())
DELETE_AGENT = Delete(
    lambda p: p.tenant(Agent).filter(name=p.text("name")),
)
DELETE_SESSIONS_OF_AGENT = Delete(
    lambda p: _in_order(p, p.tenant(Session).filter(agent_name=p.text("name"))),
)

# -- sessions

INSERT_SESSION = Insert(
    lambda p: Session(
        id=p.text("id"),
        tenant_id=p.text("tenant_id"),
        agent_name=p.text("agent_name"),
        sandbox_id=p.text("sandbox_id"),
        status=SessionStatus.STARTING.value,
        runner_id=None,
        created_at=p.now(),
        last_active_at=p.now(),
    ),
    returning=False,
)
GET_SESSION = Select(_session)


Condition = Callable[[Parameters], Any]


def _sign_of_life(column: str, p: Parameters) -> dict[str, object]:
    """Return the new value of one column of a session, whose update is also a sign of life."""
    return {
        column: p.text(column),
        "last_active_at": _not_before("last_active_at", p),
    }


UPDATE_SESSION_STATUS = Update(
    _session,
    partial(_sign_of_life, "status"),
)
UPDATE_SESSION_STATUS_IF = Update(
    lambda p: _session(p).filter(OneOfTexts("status", p.text("only_if"))),
    partial(_sign_of_life, "status"),
)
UPDATE_SESSION_SANDBOX = Update(
    _session,
    partial(_sign_of_life, "sandbox_id"),
)
UPDATE_SESSION_RUNNER = Update(
    _session,
    partial(_sign_of_life, "runner_id"),
)
UPDATE_SESSION_RUNNER_IF = Update(
    lambda p: _session(p).filter(runner_id=p.text("only_if")),
    partial(_sign_of_life, "runner_id"),
)
# SQL's NULL equals nothing, so this is a query of its own.
UPDATE_SESSION_RUNNER_IF_NONE = Update(
    lambda p: _session(p).filter(runner_id=None),
    partial(_sign_of_life, "runner_id"),
)
DELETE_SESSION = Delete(_session)


def _claimable(p: Parameters) -> Any:
    """Match what a runner may have: what nobody has, what it has already, and what is paused."""
    has_no_runner = Q(runner_id__isnull=True)
    is_own_already = Q(runner_id=p.text("runner_id"))
    is_paused = Q(status=SessionStatus.PAUSED.value)
    return has_no_runner | is_own_already | is_paused


def _claimable_or_silent(p: Parameters) -> Any:
    silent_before = p.ago("silent_before", "silent_for")
    return _claimable(p) | Q(last_active_at__lt=silent_before)


def _unfinished(condition: Condition, p: Parameters) -> Any:
    """Match the session if it fits and is not finished.

    Conditions on the row itself, without a subquery. On PostgreSQL an update that waited for another claim's lock
    rechecks them on the new version of the row, and finds that claim's runner. A subquery would still read the old
    version, and both claims would succeed.
    """
    session = _session(p).filter(condition(p))
    return session.exclude(status__in=FINISHED)


CLAIM_SESSION = Update(
    partial(_unfinished, _claimable),
    partial(_sign_of_life, "runner_id"),
    returning=True,
)
CLAIM_SILENT_SESSION = Update(
    partial(_unfinished, _claimable_or_silent),
    partial(_sign_of_life, "runner_id"),
    returning=True,
)


def _equal(p: Parameters, model: type[Model], filters: frozenset[str]) -> Any:
    """Return the rows that equal the parameters named in ``filters``, of which the tenant is always one."""
    # Sorted, because the order in a set, and with it the SQL, would change from process to process.
    wanted = {name: p.text(name) for name in sorted(filters)}
    rows: Any = model._default_manager.all()
    if "session_id" in wanted:
        # A session has few sandboxes and a tenant perhaps a million. But the tenant's index has the order of lists, so
        # a planner would read it, all of it if the session has fewer than a page.
        tenant_id = wanted.pop("tenant_id")
        rows = rows.filter(Exact(Unindexed("tenant_id"), tenant_id))
    return rows.filter(**wanted)


def _page(p: Parameters, rows: Any, *, before: bool, limit: bool) -> Any:
    """Return the rows in the order of every list, from a position (``created_at``, ``id``), up to a limit."""
    if before:
        created_at = p.instant("created_at")
        is_older = Q(created_at__lt=created_at)
        is_next_at_that_instant = Q(ordered_id__lt=p.text("id"))
        # The last condition bounds the range of the index, the others order within one instant.
        rows = rows.alias(ordered_id=CodePointOrder("id")).filter(
            is_older | is_next_at_that_instant,
            created_at__lte=created_at,
        )
    rows = rows.newest_first()
    if not limit:
        return rows
    return rows[: p.limit("limit")]


@cache
def list_rows(
    table: Table,
    filters: frozenset[str],
    values: int,
    *,
    before: bool,
    limit: bool,
) -> Select:
    """Return the query for a page of the rows that equal the parameters named in ``filters``.

    ``values`` is the number of statuses or states, ``value0``, ``value1`` and so on. It returns a page for each,
    because the index has the order only within one. The caller merges the pages.
    """
    model, _, column = table

    def build(p: Parameters) -> Any:
        rows = _equal(p, model, filters)
        if values == 0:
            return _page(p, rows, before=before, limit=limit)
        pages = []
        for number in range(values):
            value = p.text(f"value{number}")
            is_in_state: Any = Q(**{column: value})
            if "session_id" in filters:
                is_in_state = Exact(Unindexed(column), value)
            page = _page(p, rows.filter(is_in_state), before=before, limit=limit)
            pages.append(page)
        if len(pages) == 1:
            return pages[0]
        return pages

    return Select(build)


def _one_of(p: Parameters, column: str, values: int) -> Q:
    """Match rows with one of the values, or all if there are none."""
    if not values:
        return Q()
    # A parameter for each: PostgreSQL assumes that an array matches most rows of the table.
    wanted = [p.text(f"value{number}") for number in range(values)]
    return Q(**{f"{column}__in": wanted})


@cache
def count_sessions(filters: frozenset[str], statuses: int) -> SelectCount:
    """Count such sessions; with ``statuses`` only those in ``value0``, ``value1`` and so on."""

    def build(p: Parameters) -> Any:
        sessions = _equal(p, Session, filters)
        is_counted = _one_of(p, "status", statuses)
        return sessions.filter(is_counted)

    return SelectCount(build)


@cache
def count_sandboxes(states: int) -> SelectCount:
    """Count the sandboxes of all tenants in the same way."""

    def build(p: Parameters) -> Any:
        is_counted = _one_of(p, "state", states)
        return p.rows(Sandbox).filter(is_counted)

    return SelectCount(build)


LIST_SESSIONS_BY_RUNNER = Select(
    lambda p: p.rows(Session).of_runner(p.text("runner_id")).newest_first()
)


def _longest_inactive_first(sessions: Any) -> Any:
    by_id = CodePointOrder("id").asc()
    return sessions.order_by("last_active_at", by_id)


@cache
def silent_sessions(*, limit: bool) -> Select:
    """Return the query for the live sessions without a sign of life since ``older_than``."""
    # Reads all live sessions and no others; PRUNE_SESSIONS says why no index has last_active_at.

    def build(p: Parameters) -> Any:
        older_than = p.instant("older_than")
        silent = p.rows(Session).live().idle_since(older_than)
        in_order = _longest_inactive_first(silent)
        if not limit:
            return in_order
        return in_order[: p.limit("limit")]

    return Select(build)


def _pause(p: Parameters) -> dict[str, object]:
    return {
        "status": SessionStatus.PAUSED.value,
        "last_active_at": _not_before("last_active_at", p),
    }


PAUSE_SESSIONS = Update(
    lambda p: _in_order(p, p.rows(Session).live()),
    _pause,
    bulk=True,
)
PAUSE_SESSIONS_BY_RUNNER = Update(
    lambda p: _in_order(
        p,
        p.rows(Session).of_runner(p.text("runner_id")).live(),
    ),
    _pause,
    bulk=True,
)


def _finished(p: Parameters) -> Any:
    """Match the finished sessions without a sign of life since ``ended_before``, up to ``limit``, oldest first."""
    ended_before = p.instant("ended_before")
    finished = p.rows(Session).finished().idle_since(ended_before)
    in_order = _longest_inactive_first(finished)
    # A DELETE takes no limit of its own, so a subquery finds the rows.
    ids = in_order.values("id")[: p.limit("limit")]
    # Repeats the conditions: PostgreSQL rechecks them for a row that has changed meanwhile.
    return _in_order(p, finished.filter(id__in=ids))


# An index in this order would need last_active_at, and PostgreSQL would then update every index at every touch of a
# session. Now it does so for one touch in a hundred.
PRUNE_SESSIONS = Delete(_finished, returning=True)
# A range instead of an equality, so that SQLite begins with the few sessions, not with the many cold sandboxes.
PRUNE_SANDBOXES = Delete(
    lambda p: _in_order(
        p,
        p.rows(Sandbox).filter(
            OneOfTexts("session_id", p.text("session_ids")),
            state__gte=SandboxState.COLD.value,
            state__lte=SandboxState.COLD.value,
        ),
    )
)


@cache
def delete_rows_of_sessions(table: str) -> Delete:
    """Delete the rows of another table that name one of the sessions."""

    def build(p: Parameters) -> Any:
        names_one = OneOfTexts("session_id", p.text("session_ids"))
        return rows_with_session(table).filter(names_one)

    return Delete(build)


# -- sandboxes

INSERT_SANDBOX = Insert(
    lambda p: Sandbox(
        id=p.text("id"),
        tenant_id=p.text("tenant_id"),
        session_id=p.text("session_id"),
        agent_name=p.text("agent_name"),
        state=SandboxState.WARMING.value,
        workspace_dir=p.text("workspace_dir"),
        created_at=p.now(),
        last_used_at=p.now(),
    ),
    returning=False,
)
GET_SANDBOX = Select(_sandbox)
UPDATE_SANDBOX_STATE = Update(
    _sandbox,
    lambda p: {"state": p.text("state")},
)
UPDATE_SANDBOX_STATE_IF = Update(
    lambda p: _sandbox(p).filter(OneOfTexts("state", p.text("only_if"))),
    lambda p: {"state": p.text("state")},
)
UPDATE_SANDBOX_SESSION = Update(
    _sandbox,
    lambda p: {"session_id": p.text("session_id")},
)


def _on_runner(p: Parameters) -> Any:
    """Match the sandboxes whose session is on the runner."""
    runner_id = p.text("runner_id")
    sessions = p.rows(Session).of_runner(runner_id)
    return p.rows(Sandbox).reserved_for(sessions)


LIST_SANDBOXES_BY_RUNNER = Select(lambda p: _on_runner(p).newest_first())


def _evictable(p: Parameters, state: SandboxState, unused_since: bool) -> Any:
    """Match the sandboxes in that state; with ``unused_since`` only those that were last used before."""
    sandboxes = p.rows(Sandbox).in_state(state)
    if not unused_since:
        return sandboxes
    instant = p.instant("unused_since")
    return sandboxes.idle_since(instant)


_EVICTED_IN_TURN = (
    SandboxState.COLD,
    SandboxState.WARM,
    SandboxState.WAITING,
)


@cache
def best_eviction_candidate(*, unused_since: bool) -> Select:
    """Return the query for the sandbox to evict first; with ``unused_since`` only one that was last used before."""

    def first_of(p: Parameters, state: SandboxState) -> Any:
        sandboxes = _evictable(p, state, unused_since)
        in_order = sandboxes.least_recently_used_first()
        return in_order.values("id")[:1]

    def build(p: Parameters) -> Any:
        candidates = [first_of(p, state) for state in _EVICTED_IN_TURN]
        # COALESCE stops at the first state with a sandbox: at most three probes of one index, and no sort.
        best = Coalesce(*candidates)
        return p.rows(Sandbox).filter(IsRow(F("id"), best))

    return Select(build)


def _free(p: Parameters, state: SandboxState, rows: Any) -> Any:
    """Match the least recently used of these rows in that state, unless another transaction is writing it.

    PostgreSQL rechecks the conditions after it has waited for a row that another transaction changed. The subquery
    still reads the values from the start of the statement, so a sandbox touched meanwhile no longer equals them, and
    the next one is tried.
    """
    same_row = Sandbox.objects.filter(id=OuterRef("id"))
    as_it_was = Subquery(same_row.values("last_used_at"))
    unchanged = rows.filter(IsUnchanged(F("last_used_at"), as_it_was))
    in_order = unchanged.least_recently_used_first()
    first = Locked(in_order.values("id")[:1])
    # Repeats the state but no other condition: with those PostgreSQL reads a range of an index instead of one row by
    # its key.
    return p.rows(Sandbox).in_state(state).filter(IsRow(F("id"), first))


def _to_cold(p: Parameters) -> dict[str, object]:
    return {"state": SandboxState.COLD.value}


def _claim_eviction(state: SandboxState, unused_since: bool) -> Update | Delete:
    """Return what takes a sandbox in that state for one caller; its row is as it was if deleted, else now cold."""

    def build(p: Parameters) -> Any:
        evictable = _evictable(p, state, unused_since)
        return _free(p, state, evictable)

    if state == SandboxState.COLD:
        return Delete(build, returning=True)
    return Update(build, _to_cold, returning=True)


@cache
def claims_of_eviction(*, unused_since: bool) -> dict[SandboxState, Update | Delete]:
    """Return a query for each state, in the order in which they are to be tried."""
    return {state: _claim_eviction(state, unused_since) for state in _EVICTED_IN_TURN}


def _in_pool(p: Parameters) -> Any:
    """Match the warm sandboxes of an agent that no session has."""
    warm = p.tenant(Sandbox).in_state(SandboxState.WARM)
    return warm.filter(
        agent_name=p.text("agent_name"),
        session_id=None,
    )


CLAIM_WARM_SANDBOX = Update(
    lambda p: _free(p, SandboxState.WARM, _in_pool(p)),
    lambda p: {
        "state": SandboxState.WAITING.value,
        "session_id": p.text("session_id"),
        "last_used_at": _not_before("last_used_at", p),
    },
    returning=True,
)


def _unused(state: SandboxState, p: Parameters) -> Any:
    """Match the sandboxes in that state that were last used before ``older_than``."""
    older_than = p.instant("older_than")
    unused = p.rows(Sandbox).in_state(state).idle_since(older_than)
    return unused.least_recently_used_first()


GET_IDLE_SANDBOXES = Select(partial(_unused, SandboxState.WAITING))
GET_COLD_SANDBOXES = Select(partial(_unused, SandboxState.COLD))
DELETE_SANDBOX = Delete(_sandbox)
# "Not equal" would read the whole table; "less or greater" reads two ranges of the index.
MARK_ALL_SANDBOXES_COLD = Update(
    lambda p: _in_order(
        p,
        p.rows(Sandbox).filter(
            Q(state__lt=SandboxState.COLD.value) | Q(state__gt=SandboxState.COLD.value),
        ),
    ),
    _to_cold,
    bulk=True,
)
MARK_SANDBOXES_COLD_BY_RUNNER = Update(
    lambda p: _in_order(p, _on_runner(p).exclude(state=SandboxState.COLD.value)),
    _to_cold,
    bulk=True,
)

# -- API keys

GET_API_KEY_BY_HASH = Select(
    lambda p: p.rows(ApiKey).filter(key_hash=p.text("key_hash"))
)
GET_API_KEYS_BY_HASHES = Select(
    lambda p: p.rows(ApiKey).filter(
        key_hash__in=[p.text("key_hash"), p.text("bare_hash")]
    )
)
# The method that reads one row, the name of its key, and what reads the rows of several keys.
READ_EACH: dict[str, tuple[str, type, Select]] = {
    "get_session": (
        "id",
        SessionRecord,
        Select(partial(_each, Session, "id")),
    ),
    "get_sandbox": (
        "id",
        SandboxRecord,
        Select(partial(_each, Sandbox, "id")),
    ),
    "get_api_key_by_hash": (
        "key_hash",
        ApiKeyRecord,
        Select(partial(_each, ApiKey, "key_hash")),
    ),
}
TOUCH_EACH = {"touch_session": SESSIONS, "touch_sandbox": SANDBOXES}
# The methods of which several calls, each with one id, can be one statement.
DO_EACH = (*READ_EACH, *TOUCH_EACH)
INSERT_API_KEY = Insert(
    lambda p: ApiKey(
        id=p.text("id"),
        tenant_id=p.text("tenant_id"),
        key_hash=p.text("key_hash"),
        label=p.text("label"),
        created_at=p.now(),
    ),
    returning=False,
)
LIST_API_KEYS = Select(lambda p: p.tenant(ApiKey).newest_first())
DELETE_API_KEY = Delete(_api_key)
