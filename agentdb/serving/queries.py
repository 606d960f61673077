"""Every query of the Db interface, written over the models."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from django.db.models import Case, F, IntegerField, Model, OuterRef, Q, Subquery, Value, When
from django.db.models.functions import Coalesce, Greatest
from django.db.models.lookups import Exact

from agentdb.expressions import CodePointOrder, SkipLocked, TextsOfJson, UnsyncedCommit
from agentdb.interface import SandboxState, SessionStatus
from agentdb.models import Agent, ApiKey, Sandbox, Session
from agentdb.serving.compiled import Delete, Insert, Parameters, Select, SelectCount, Update


def _not_before(column: str, p: Parameters) -> Greatest:
    """The present, or what is stored where that is later: of two calls the later one counts, in whatever order."""
    return Greatest(F(column), p.now())


@dataclass(frozen=True)
class Touch:
    """Writing that a row was used: whether it is due at all, the update, and one that waits for no disk."""

    is_due: Select  # one row with 0 or 1; none where there is no such row
    update: Update
    unsynced: Update


def _touch(model: type[Model], column: str, interval: float) -> Touch:
    def is_due(p: Parameters) -> Q:
        return Q(**{f"{column}__lt": p.past("touched_before", interval)}) if interval else Q()

    def row(p: Parameters):  # type: ignore[no-untyped-def]
        return p.rows(model).filter(id=p.text("id"))

    def values(p: Parameters) -> dict[str, object]:
        return {column: _not_before(column, p)}

    return Touch(
        Select(
            lambda p: row(p).values_list(
                Case(When(is_due(p), then=Value(1)), default=Value(0), output_field=IntegerField())
            )
        ),
        Update(lambda p: row(p).filter(is_due(p)), values),
        Update(lambda p: row(p).filter(is_due(p)).filter(Exact(UnsyncedCommit(), "off")), values),
    )


@cache
def touch_session(interval: float) -> Touch:
    """The queries for a time that is written again once it is ``interval`` seconds old; 0 is always.

    ``touched_before`` is the present less the interval, for SQLite.
    """
    return _touch(Session, "last_active_at", interval)


@cache
def touch_sandbox(interval: float) -> Touch:
    """The same for a sandbox."""
    return _touch(Sandbox, "last_used_at", interval)


# -- agents

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
GET_AGENT = Select(lambda p: p.tenant(Agent).filter(name=p.text("name")))
LIST_AGENTS = Select(lambda p: p.tenant(Agent).by_name())
DELETE_AGENT = Delete(lambda p: p.tenant(Agent).filter(name=p.text("name")))
DELETE_SESSIONS_OF_AGENT = Delete(lambda p: p.tenant(Session).filter(agent_name=p.text("name")))

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
GET_SESSION = Select(lambda p: p.rows(Session).filter(id=p.text("id")))


def _update_session(column: str) -> Update:
    def values(p: Parameters) -> dict[str, object]:
        return {column: p.text(column), "last_active_at": _not_before("last_active_at", p)}

    return Update(lambda p: p.rows(Session).filter(id=p.text("id")), values)


UPDATE_SESSION_STATUS = _update_session("status")
UPDATE_SESSION_SANDBOX = _update_session("sandbox_id")
UPDATE_SESSION_RUNNER = _update_session("runner_id")


def _list_sessions(*, agent: bool, before: bool, limit: bool) -> Select:
    def build(p: Parameters):  # type: ignore[no-untyped-def]
        sessions = p.tenant(Session)
        if agent:
            sessions = sessions.of_agent(p.text("agent"))
        if before:
            # The first condition bounds the range of the index, the second orders within one instant.
            created_at = p.instant("created_at")
            sessions = sessions.alias(ordered_id=CodePointOrder("id")).filter(
                Q(created_at__lt=created_at) | Q(ordered_id__lt=p.text("id")), created_at__lte=created_at
            )
        sessions = sessions.newest_first()
        return sessions[: p.limit("limit")] if limit else sessions

    return Select(build)


LIST_SESSIONS = {
    (agent, before, limit): _list_sessions(agent=agent, before=before, limit=limit)
    for agent in (False, True)
    for before in (False, True)
    for limit in (False, True)
}
LIST_SESSIONS_BY_RUNNER = Select(lambda p: p.rows(Session).of_runner(p.text("runner_id")).newest_first())


def _pause(p: Parameters) -> dict[str, object]:
    return {"status": SessionStatus.PAUSED.value, "last_active_at": _not_before("last_active_at", p)}


PAUSE_SESSIONS = Update(lambda p: p.rows(Session).live(), _pause)
PAUSE_SESSIONS_BY_RUNNER = Update(lambda p: p.rows(Session).of_runner(p.text("runner_id")).live(), _pause)


def _finished(p: Parameters):  # type: ignore[no-untyped-def]
    finished = p.rows(Session).finished().idle_since(p.instant("ended_before"))
    longest_inactive = finished.order_by("last_active_at", CodePointOrder("id").asc()).values("id")
    # The conditions once more: PostgreSQL looks at them again for a row that was changed meanwhile.
    return finished.filter(id__in=longest_inactive[: p.limit("limit")])


# An index in this order would have to hold last_active_at, and PostgreSQL would then write to every index of the table
# at every touch of a session, which it does now for one in a hundred.
PRUNE_SESSIONS = Delete(_finished, returning=True)
# A range of one state, so that SQLite begins with the few sessions and not with the many cold sandboxes.
PRUNE_SANDBOXES = Delete(
    lambda p: p.rows(Sandbox).filter(
        session_id__in=TextsOfJson(p.text("session_ids")),
        state__gte=SandboxState.COLD.value,
        state__lte=SandboxState.COLD.value,
    )
)

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
GET_SANDBOX = Select(lambda p: p.rows(Sandbox).filter(id=p.text("id")))
UPDATE_SANDBOX_STATE = Update(lambda p: p.rows(Sandbox).filter(id=p.text("id")), lambda p: {"state": p.text("state")})
UPDATE_SANDBOX_SESSION = Update(
    lambda p: p.rows(Sandbox).filter(id=p.text("id")), lambda p: {"session_id": p.text("session_id")}
)
COUNT_SANDBOXES = SelectCount(lambda p: p.rows(Sandbox))


def _first_of(p: Parameters, state: SandboxState):  # type: ignore[no-untyped-def]
    return p.rows(Sandbox).in_state(state).least_recently_used_first().values("id")[:1]


# COALESCE stops at the first state that has a sandbox: at most three probes of one index, and no sort.
GET_BEST_EVICTION_CANDIDATE = Select(
    lambda p: p.rows(Sandbox).filter(
        id=Coalesce(
            _first_of(p, SandboxState.COLD), _first_of(p, SandboxState.WARM), _first_of(p, SandboxState.WAITING)
        )
    )
)


def _free(p: Parameters, state: SandboxState):  # type: ignore[no-untyped-def]
    """The rows of the one sandbox that is first of its state, that nobody is writing, and that nobody has touched.

    PostgreSQL looks at the conditions again once it has a row that another had changed: a subquery still reads what
    was there when the statement began, so a sandbox touched meanwhile no longer equals it and the next one is tried.
    """
    as_it_was = Sandbox.objects.filter(id=OuterRef("id")).values("last_used_at")[:1]
    first = p.rows(Sandbox).in_state(state).filter(last_used_at=Subquery(as_it_was))
    one = first.least_recently_used_first().values("id")[:1]
    return p.rows(Sandbox).in_state(state).filter(id=SkipLocked(one))


CLAIM_COLD_SANDBOX = Delete(lambda p: _free(p, SandboxState.COLD), returning=True)
CLAIM_WARM_SANDBOX = Update(
    lambda p: _free(p, SandboxState.WARM), lambda p: {"state": SandboxState.COLD.value}, returning=True
)
CLAIM_WAITING_SANDBOX = Update(
    lambda p: _free(p, SandboxState.WAITING), lambda p: {"state": SandboxState.COLD.value}, returning=True
)


def _unused(state: SandboxState) -> Select:
    return Select(
        lambda p: p.rows(Sandbox).in_state(state).idle_since(p.instant("older_than")).least_recently_used_first()
    )


GET_IDLE_SANDBOXES = _unused(SandboxState.WAITING)
GET_COLD_SANDBOXES = _unused(SandboxState.COLD)
DELETE_SANDBOX = Delete(lambda p: p.rows(Sandbox).filter(id=p.text("id")))
# "Not equal" reads the whole table; "less or greater" reads the two ranges of the index on either side.
MARK_ALL_SANDBOXES_COLD = Update(
    lambda p: p.rows(Sandbox).filter(Q(state__lt=SandboxState.COLD.value) | Q(state__gt=SandboxState.COLD.value)),
    lambda p: {"state": SandboxState.COLD.value},
)

# -- API keys

GET_API_KEY_BY_HASH = Select(lambda p: p.rows(ApiKey).filter(key_hash=p.text("key_hash")))
GET_API_KEYS_BY_HASHES = Select(lambda p: p.rows(ApiKey).filter(key_hash__in=[p.text("key_hash"), p.text("bare_hash")]))
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
DELETE_API_KEY = Delete(lambda p: p.rows(ApiKey).filter(id=p.text("id")))
