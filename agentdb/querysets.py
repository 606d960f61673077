"""Named filters for common questions: the managers of the models have them, and ``Db`` uses the same ones."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Self

from django.db.models import F, QuerySet

from agentdb.expressions import CodePointOrder, OneOfRows
from agentdb.interface import SandboxState, SessionStatus

# Newest first; the order among equals does not depend on the locale. The indexes of the models are built of the same
# expressions: PostgreSQL uses one only if its expression is the query's to the letter.
NEWEST_FIRST = (F("created_at").desc(), CodePointOrder("id").desc())
LEAST_RECENTLY_USED_FIRST = (F("last_used_at").asc(), CodePointOrder("id").asc())

LIVE = (SessionStatus.ACTIVE.value, SessionStatus.STARTING.value)
FINISHED = (
    SessionStatus.ENDED.value,
    SessionStatus.STOPPED.value,
    SessionStatus.ERROR.value,
)

# Sandboxes that a session has.
ALIVE = (
    SandboxState.RUNNING.value,
    SandboxState.WAITING.value,
)


class _OfTenant(QuerySet[Any]):
    def of_tenant(self, tenant_id: str) -> Self:
        """Those of one tenant."""
        return self.filter(tenant_id=tenant_id)

    def newest_first(self) -> Self:
        """In the order in which ``Db`` lists them."""
        return self.order_by(*NEWEST_FIRST)


class AgentQuerySet(_OfTenant):
    def by_name(self) -> Self:
        """In the order in which ``Db.list_agents`` lists them, whatever the database's locale."""
        return self.order_by(CodePointOrder("name").asc())


class SessionQuerySet(_OfTenant):
    def active(self) -> Self:
        """Those of status ``active``."""
        return self.filter(status=SessionStatus.ACTIVE.value)

    def live(self) -> Self:
        """Those that are active or starting."""
        return self.filter(status__in=LIVE)

    def finished(self) -> Self:
        """Those that ended, were stopped or failed."""
        return self.filter(status__in=FINISHED)

    def of_agent(self, name: str) -> Self:
        """Those of agents with this name, of all tenants."""
        return self.filter(agent_name=name)

    def of_runner(self, runner_id: str) -> Self:
        """Those on one runner."""
        return self.filter(runner_id=runner_id)

    def idle_since(self, instant: datetime | Any) -> Self:
        """Those without activity since then, an aware ``datetime``."""
        return self.filter(last_active_at__lt=instant)


class SandboxQuerySet(_OfTenant):
    def in_state(self, state: SandboxState | str) -> Self:
        """Those in this state."""
        return self.filter(state=str(state))

    # A subquery: session_id is not a foreign key, so Django knows no join.
    def reserved_for(self, sessions: QuerySet[Any]) -> Self:
        """Those whose session is one of these."""
        return self.filter(OneOfRows("session_id", sessions.values("pk")))

    def idle_since(self, instant: datetime | Any) -> Self:
        """Those not used since then, an aware ``datetime``."""
        return self.filter(last_used_at__lt=instant)

    def least_recently_used_first(self) -> Self:
        """In the order in which ``Db`` chooses the sandbox to evict."""
        return self.order_by(*LEAST_RECENTLY_USED_FIRST)


class ApiKeyQuerySet(_OfTenant):
    pass
