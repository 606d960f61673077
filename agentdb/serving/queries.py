"""All queries of the Db interface, written over the models."""

from __future__ import annotations

from functools import cache, partial
from typing import Any, NamedTuple

from django.db.models import (
    Case,
    F,
    Model,
    OuterRef,
    Q,
    Subquery,
    When,
)
from django.db.models.functions import Coalesce, Greatest
from django.db.models.lookups import Exact

from agentdb.expressions import (
    CodePointOrder,
    IsRow,
    Locked,
    LockedInOrder,
    OneOfRows,
    OneOfTexts,
    ServerAgo,
    ServerNow,
    Unindexed,
    UnsyncedCommit,
    instant,
    text,
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
    LIMIT,
    Delete,
    Insert,
    Scope,
    Select,
    SelectCount,
    Together,
    Update,
)


class Table(NamedTuple):
    """Sessions or sandboxes, for the queries that both have."""

    model: type[Model]
    time: str  # the column of the last sign of life, or use
    state: str


_COLD = SandboxState.COLD.value

SESSIONS = Table(Session, "last_active_at", "status")
SANDBOXES = Table(Sandbox, "last_used_at", "state")


def _by_id(model: type[Model], scope: Scope) -> Any:
    return scope.rows(model).filter(id=text("id"))


_session = partial(_by_id, Session)
_sandbox = partial(_by_id, Sandbox)
_api_key = partial(_by_id, ApiKey)


def _each(model: type[Model], key: str, scope: Scope) -> Any:
    """Match the rows with the keys in the JSON array ``ids``."""
    is_asked = OneOfTexts(key, "ids")
    return scope.rows(model).filter(is_asked)


def _not_before(column: str) -> Greatest:
    """Return the later of the current time and the stored one, so that the order of two calls does not matter."""
    return Greatest(F(column), ServerNow())


def _update(table: Table, column: str, *conditions: Any, returning: str = "") -> Update:
    """Return the update of one column of the row ``id`` if it meets the conditions; a session's is a sign of life."""
    values: dict[str, object] = {column: text(column)}
    if table is SESSIONS:
        values[table.time] = _not_before(table.time)
    return Update(
        lambda scope: _by_id(table.model, scope).filter(*conditions),
        values,
        returning=returning,
    )


def _in_order(scope: Scope, rows: Any) -> Any:
    """Match the rows, for an update or delete of many; PostgreSQL locks them in the order of their ids.

    Every statement that waits for locks of several rows must, or two of them may wait for each other.
    """
    if scope.vendor != "postgresql":
        return rows
    ids = rows.values("id")
    in_order = LockedInOrder(ids.order_by(CodePointOrder("id")))
    return scope.rows(rows.model).filter(OneOfRows("id", in_order))


class Touch(NamedTuple):
    """The queries of a touch: ask whether rows are due, and update those that are."""

    is_due: Select  # for each row that exists, its id and 0 or 1
    update: Update  # for many rows, returns the ids that it writes


@cache
def touch(
    table: Table,
    *,
    has_interval: bool = False,
    many: bool = False,
    of_runner: bool = False,
    skip_locked: bool = False,
    unsynced: bool = False,
) -> Touch:
    """Return the queries for the time of the last sign of life or use.

    With ``has_interval`` it is rewritten only when it is older than ``interval``, a ``timedelta``. For the row ``id``,
    or with ``many`` those in the JSON array ``ids``; with ``of_runner`` only those on ``runner_id``. With
    ``skip_locked`` PostgreSQL leaves out rows that other transactions have locked, so the statement waits for none of
    them; with ``unsynced`` it does not wait for the disk.
    """
    model, column, _ = table
    is_due = Q()
    if has_interval:
        is_due = Q(**{f"{column}__lt": ServerAgo("interval")})

    def rows(scope: Scope) -> Any:
        found = _each(model, "id", scope) if many else _by_id(model, scope)
        if of_runner:
            found = found.filter(runner_id=text("runner_id"))
        return found

    def touched(scope: Scope) -> Any:
        found = rows(scope).filter(is_due)
        if unsynced:
            # Always true, and switches the sync off.
            found = found.filter(Exact(UnsyncedCommit(), "off"))
        if not many:
            return found
        if not skip_locked or scope.vendor != "postgresql":
            return _in_order(scope, found)
        # UPDATE itself cannot skip a locked row; SELECT FOR UPDATE can.
        free = Locked(found.values("id"))
        return scope.rows(model).filter(OneOfRows("id", free))

    return Touch(
        Select(
            lambda scope: rows(scope).values_list(
                "id", Case(When(is_due, then=1), default=0)
            )
        ),
        Update(
            touched,
            {column: _not_before(column)},
            returning="id" if many else "",
        ),
    )


# -- agents

# The id and created_at are the first row's: an update of an agent keeps them.
UPSERT_AGENT = Insert(
    Agent,
    unique=("tenant_id", "name"),
    replace=("path", "updated_at"),
    count_up="version",
)
GET_AGENT = Select(
    lambda scope: scope.tenant(Agent).filter(name=text("name")),
)
LIST_AGENTS = Select(lambda scope: scope.tenant(Agent).by_name())
DELETE_AGENT_AND_SESSIONS = Together(
    Delete(
        lambda scope: _in_order(
            scope, scope.tenant(Session).filter(agent_name=text("name"))
        )
    ),
    Delete(lambda scope: scope.tenant(Agent).filter(name=text("name"))),
)

# -- sessions

INSERT_SESSION = Insert(Session)
GET_SESSION = Select(_session)
UPDATE_SESSION_STATUS = _update(SESSIONS, "status")
UPDATE_SESSION_STATUS_IF = _update(SESSIONS, "status", OneOfTexts("status", "only_if"))
UPDATE_SESSION_SANDBOX = _update(SESSIONS, "sandbox_id")
UPDATE_SESSION_RUNNER = _update(SESSIONS, "runner_id")
UPDATE_SESSION_RUNNER_IF = _update(SESSIONS, "runner_id", Q(runner_id=text("only_if")))
# SQL's NULL equals nothing, so this is a query of its own.
UPDATE_SESSION_RUNNER_IF_NONE = _update(SESSIONS, "runner_id", Q(runner_id=None))
DELETE_SESSION = Delete(_session)


# What a runner may have: what nobody has, what it has already, and what is paused.
_CLAIMABLE = (
    Q(runner_id__isnull=True)
    | Q(runner_id=text("runner_id"))
    | Q(status=SessionStatus.PAUSED.value)
)
_CLAIMABLE_OR_SILENT = _CLAIMABLE | Q(last_active_at__lt=ServerAgo("silent_for"))


def _claim(condition: Q) -> Update:
    """Return the update for the session if it fits and is not finished.

    Conditions on the row itself, without a subquery. On PostgreSQL an update that waited for another claim's lock
    rechecks them on the new version of the row, and finds that claim's runner. A subquery would still read the old
    version, and both claims would succeed.
    """
    is_finished = Q(status__in=FINISHED)
    return _update(SESSIONS, "runner_id", condition, ~is_finished, returning="*")


CLAIM_SESSION = _claim(_CLAIMABLE)
CLAIM_SILENT_SESSION = _claim(_CLAIMABLE_OR_SILENT)


def _equal(model: type[Model], filters: frozenset[str]) -> Any:
    """Return the rows that equal the parameters named in ``filters``, of which the tenant is always one."""
    # Sorted, because the order in a set, and with it the SQL, would change from process to process.
    wanted = {name: text(name) for name in sorted(filters)}
    rows: Any = model._default_manager.all()
    if "session_id" in wanted:
        # A session has few sandboxes and a tenant perhaps a million. But the tenant's index has the order of lists, so
        # a planner would read it, all of it if the session has fewer than a page.
        tenant_id = wanted.pop("tenant_id")
        rows = rows.filter(Exact(Unindexed("tenant_id"), tenant_id))
    return rows.filter(**wanted)


def _page(rows: Any, given: frozenset[str]) -> Any:
    """Return the rows in the order of every list, from a position (``created_at``, ``id``), up to a limit."""
    if "created_at" in given:
        created_at = instant("created_at")
        is_older = Q(created_at__lt=created_at)
        is_next_at_that_instant = Q(ordered_id__lt=text("id"))
        # The last condition bounds the range of the index, the others order within one instant.
        rows = rows.alias(ordered_id=CodePointOrder("id")).filter(
            is_older | is_next_at_that_instant,
            created_at__lte=created_at,
        )
    rows = rows.newest_first()
    return rows[:LIMIT] if "limit" in given else rows


@cache
def list_rows(table: Table, given: frozenset[str], values: int) -> Select:
    """Return the query for a page of the rows that equal the parameters that are ``given``, but for the page's own.

    ``values`` is the number of statuses or states, ``value0``, ``value1`` and so on. It returns a page for each,
    because the index has the order only within one. The caller merges the pages.
    """
    model, _, column = table

    def build(scope: Scope) -> Any:
        rows = _equal(model, given - _OF_A_PAGE)
        if values == 0:
            return _page(rows, given)
        pages = []
        for number in range(values):
            value = text(f"value{number}")
            is_in_state: Any = Q(**{column: value})
            if "session_id" in given:
                is_in_state = Exact(Unindexed(column), value)
            pages.append(_page(rows.filter(is_in_state), given))
        return pages

    return Select(build)


_OF_A_PAGE = {"created_at", "id", "limit"}


@cache
def count_rows(table: Table, given: frozenset[str], values: int) -> SelectCount:
    """Return the query that counts such rows, of all tenants if nothing is given."""
    model, _, column = table

    def build(scope: Scope) -> Any:
        rows = _equal(model, given) if given else scope.rows(model)
        # A parameter for each: PostgreSQL assumes that an array matches most rows of the table.
        wanted = [text(f"value{number}") for number in range(values)]
        return rows.filter(**{f"{column}__in": wanted}) if wanted else rows

    return SelectCount(build)


LIST_SESSIONS_BY_RUNNER = Select(
    lambda scope: scope.rows(Session).of_runner(text("runner_id")).newest_first()
)


def _longest_inactive_first(sessions: Any) -> Any:
    by_id = CodePointOrder("id").asc()
    return sessions.order_by("last_active_at", by_id)


def _silent(scope: Scope) -> Any:
    """Match up to ``limit`` of the live sessions without a sign of life since ``older_than``."""
    # Reads all live sessions and no others; PRUNE_SESSIONS says why no index has last_active_at.
    older_than = instant("older_than")
    silent = scope.rows(Session).live().idle_since(older_than)
    return _longest_inactive_first(silent)[:LIMIT]


GET_SILENT_SESSIONS = Select(_silent)
_PAUSED = {
    "status": SessionStatus.PAUSED.value,
    "last_active_at": _not_before("last_active_at"),
}
PAUSE_SESSIONS = Update(
    lambda scope: _in_order(scope, scope.rows(Session).live()),
    _PAUSED,
    bulk=True,
)
PAUSE_SESSIONS_BY_RUNNER = Update(
    lambda scope: _in_order(
        scope,
        scope.rows(Session).of_runner(text("runner_id")).live(),
    ),
    _PAUSED,
    bulk=True,
)


def _finished(scope: Scope) -> Any:
    """Match the finished sessions without a sign of life since ``ended_before``, up to ``limit``, oldest first."""
    ended_before = instant("ended_before")
    finished = scope.rows(Session).finished().idle_since(ended_before)
    in_order = _longest_inactive_first(finished)
    # A DELETE takes no limit of its own, so a subquery finds the rows.
    ids = in_order.values("id")[:LIMIT]
    # Repeats the conditions: PostgreSQL rechecks them for a row that has changed meanwhile.
    return _in_order(scope, finished.filter(id__in=ids))


# An index in this order would need last_active_at, and PostgreSQL would then update every index at every touch of a
# session. Now it does so for one touch in a hundred.
PRUNE_SESSIONS = Delete(_finished, returning="*")
# A range instead of an equality, so that SQLite begins with the few sessions, not with the many cold sandboxes.
PRUNE_SANDBOXES = Delete(
    lambda scope: _in_order(
        scope,
        scope.rows(Sandbox).filter(
            OneOfTexts("session_id", "session_ids"),
            state__gte=_COLD,
            state__lte=_COLD,
        ),
    )
)


@cache
def delete_rows_of_sessions(table: str) -> Delete:
    """Delete the rows of another table that name one of the sessions."""

    def build(scope: Scope) -> Any:
        names_one = OneOfTexts("session_id", "session_ids")
        return rows_with_session(table).filter(names_one)

    return Delete(build)


# -- sandboxes

INSERT_SANDBOX = Insert(Sandbox)
GET_SANDBOX = Select(_sandbox)
UPDATE_SANDBOX_STATE = _update(SANDBOXES, "state")
UPDATE_SANDBOX_STATE_IF = _update(SANDBOXES, "state", OneOfTexts("state", "only_if"))
UPDATE_SANDBOX_SESSION = _update(SANDBOXES, "session_id")


def _on_runner(scope: Scope) -> Any:
    """Match the sandboxes whose session is on the runner."""
    runner_id = text("runner_id")
    sessions = scope.rows(Session).of_runner(runner_id)
    return scope.rows(Sandbox).reserved_for(sessions)


LIST_SANDBOXES_BY_RUNNER = Select(lambda scope: _on_runner(scope).newest_first())


def _unused(state: SandboxState, scope: Scope) -> Any:
    """Match the sandboxes in that state that were last used before ``older_than``, the longest unused first."""
    unused = scope.rows(Sandbox).in_state(state).idle_since(instant("older_than"))
    return unused.least_recently_used_first()


GET_IDLE_SANDBOXES = Select(partial(_unused, SandboxState.WAITING))
GET_COLD_SANDBOXES = Select(partial(_unused, SandboxState.COLD))
_EVICTED_IN_TURN = (
    SandboxState.COLD,
    SandboxState.WARM,
    SandboxState.WAITING,
)


def _best(scope: Scope) -> Any:
    """Match the unused sandbox to evict first."""
    candidates = [_unused(state, scope).values("id")[:1] for state in _EVICTED_IN_TURN]
    # COALESCE stops at the first state with a sandbox: at most three probes of one index, and no sort.
    best = Coalesce(*candidates)
    return scope.rows(Sandbox).filter(IsRow(F("id"), best))


GET_BEST_EVICTION_CANDIDATE = Select(_best)


def _free(scope: Scope, state: SandboxState, rows: Any) -> Any:
    """Match the least recently used of these rows in that state, unless another transaction is writing it.

    PostgreSQL rechecks the conditions after it has waited for a row that another transaction changed. The subquery
    still reads the values from the start of the statement, so a sandbox touched meanwhile no longer equals them, and
    the next one is tried. CockroachDB's statements are serializable, and SQLite has one writer at a time.
    """
    if scope.vendor == "postgresql":
        same_row = Sandbox.objects.filter(id=OuterRef("id"))
        as_it_was = Subquery(same_row.values("last_used_at"))
        rows = rows.filter(Exact(F("last_used_at"), as_it_was))
    in_order = rows.least_recently_used_first()
    first = Locked(in_order.values("id")[:1])
    # Repeats the state but no other condition: with those PostgreSQL reads a range of an index instead of one row by
    # its key.
    return scope.rows(Sandbox).in_state(state).filter(IsRow(F("id"), first))


_TO_COLD = {"state": _COLD}


def _claim_eviction(state: SandboxState) -> Update | Delete:
    """Return what takes a sandbox in that state for one caller; its row is as it was if deleted, else now cold."""

    def build(scope: Scope) -> Any:
        return _free(scope, state, _unused(state, scope))

    if state == SandboxState.COLD:
        return Delete(build, returning="*")
    return Update(build, _TO_COLD, returning="*")


# In the order in which they are to be tried.
CLAIMS_OF_EVICTION = {state: _claim_eviction(state) for state in _EVICTED_IN_TURN}


def _in_pool(scope: Scope) -> Any:
    """Match the warm sandboxes of an agent that no session has."""
    warm = scope.tenant(Sandbox).in_state(SandboxState.WARM)
    return warm.filter(
        agent_name=text("agent_name"),
        session_id=None,
    )


CLAIM_WARM_SANDBOX = Update(
    lambda scope: _free(scope, SandboxState.WARM, _in_pool(scope)),
    {
        "state": SandboxState.WAITING.value,
        "session_id": text("session_id"),
        "last_used_at": _not_before("last_used_at"),
    },
    returning="*",
)


DELETE_SANDBOX = Delete(_sandbox)
# "Not equal" would read the whole table; "less or greater" reads two ranges of the index.
MARK_ALL_SANDBOXES_COLD = Update(
    lambda scope: _in_order(
        scope,
        scope.rows(Sandbox).filter(
            Q(state__lt=_COLD) | Q(state__gt=_COLD),
        ),
    ),
    _TO_COLD,
    bulk=True,
)
MARK_SANDBOXES_COLD_BY_RUNNER = Update(
    lambda scope: _in_order(scope, _on_runner(scope).exclude(state=_COLD)),
    _TO_COLD,
    bulk=True,
)

# -- API keys

GET_API_KEY_BY_HASH = Select(
    lambda scope: scope.rows(ApiKey).filter(key_hash=text("key_hash"))
)
GET_API_KEYS_BY_HASHES = Select(
    lambda scope: scope.rows(ApiKey).filter(
        key_hash__in=[text("key_hash"), text("bare_hash")]
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
INSERT_API_KEY = Insert(ApiKey)
LIST_API_KEYS = Select(lambda scope: scope.tenant(ApiKey).newest_first())
DELETE_API_KEY = Delete(_api_key)
