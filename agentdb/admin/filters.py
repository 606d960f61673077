"""The filters of the lists: by a typed or chosen value, by age, and by a check of the overview."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

from django.contrib.admin import SimpleListFilter
from django.db import connections
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.translation import gettext, gettext_lazy

from agentdb.admin.display import badge, viewable
from agentdb.console.checks import CAP, Fleet, check_of
from agentdb.console.figures import distinct_values
from agentdb.console.groups import moment
from agentdb.console.questions import ask
from agentdb.models import Agent, Session

SUGGESTIONS = 12
NEWEST_AGENTS = 500  # agents offered without a tenant filter


class ColumnFilter(SimpleListFilter):
    """A filter by one parameter of the query string.

    Unlike Django's, it takes any value, not only one of its choices; one that means nothing finds no row, and
    ``mistake`` says why.
    """

    template = "admin/agentdb/filter.html"
    parameter_name: str
    column: ClassVar[str]
    is_typed: ClassVar[bool] = False  # instead of chosen
    is_link_only: ClassVar[bool] = False  # shown in the bar only when a link has set it
    mistake = ""  # why the value means nothing, once ``queryset`` was called

    def value(self) -> str:
        return super().value() or ""

    @property
    def shown(self) -> str:
        """The value shown in the filter bar; empty without a filter."""
        return self.value()

    def condition(self, rows: QuerySet[Any]) -> Q:
        """Return what the rows must meet; ``queryset`` calls it only with a value.

        Raises ``ValueError`` with a sentence, which the list shows, for a value that means nothing.
        """
        return Q((self.column, self.value()))

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Return the rows that meet the condition; Django calls it once for each list or export."""
        if not self.value():
            return queryset
        try:
            return queryset.filter(self.condition(queryset))
        # A check reads ids; one that is not UTF-8 is the database's fault. UnicodeError is a ValueError too.
        except UnicodeError:
            raise
        except ValueError as error:
            # No rows below the sentence that the list shows, and no query: all rows would look like an answer.
            self.mistake = str(error)
            return queryset.none()

    def has_output(self) -> bool:
        # Django leaves out a filter without choices, but any value can be typed here.
        return True

    def lookups(self, request: HttpRequest, model_admin: Any) -> Sequence[Any] | None:
        return None


class TextFilter(ColumnFilter):
    """A typed value, for columns with too many values for a list."""

    is_typed = True

    def lookups(self, request: HttpRequest, model_admin: Any) -> Sequence[Any]:
        """Return values to suggest, each with itself as its label."""
        # Suggestions only: if they cannot be read, the list still works. Django asks for them when it makes the filter,
        # also for an export; that costs a few probes of an index.
        connection = connections[model_admin.alias]
        answer = ask(connection, partial(self.known_values, model_admin))
        # A link with an empty value would lead to all rows.
        return [(value, value) for value in answer.value or () if value]

    def known_values(self, model_admin: Any) -> Sequence[str]:
        """Return some values of the column, by its index, in order."""
        return distinct_values(
            connections[model_admin.alias],
            model_admin.model,
            self.column,
            limit=SUGGESTIONS,
        )


class AgentFilter(TextFilter):
    """Names of agents: those of the filtered tenant, or the newest ones."""

    title = gettext_lazy("agent")
    parameter_name = column = "agent_name"

    def known_values(self, model_admin: Any) -> Sequence[str]:
        """Return some of the names in order, each once; none to a user who may not see agents."""
        if Agent not in viewable(model_admin.admin_site, self.request):
            return ()
        # No index has the names alone: those of a tenant, or else of the newest agents.
        agents = Agent.objects.using(model_admin.alias).newest_first()
        tenant_id = self.request.GET.get("tenant_id")
        if tenant_id:
            agents = agents.of_tenant(tenant_id).order_by("name")
        names = agents.values_list("name", flat=True)
        # Agents of several tenants may have the same name.
        distinct = set(names[:NEWEST_AGENTS])
        return sorted(distinct)[:SUGGESTIONS]


class NameFilter(AgentFilter):
    title = gettext_lazy("name")
    parameter_name = column = "name"


class ChoiceFilter(ColumnFilter):
    """One of the known values; a newer server's, in the query string, is not offered."""

    def lookups(self, request: HttpRequest, model_admin: Any) -> Sequence[Any]:
        field = model_admin.opts.get_field(self.column)
        return [(value, badge(value)) for value, _ in field.choices]


class AgeFilter(ColumnFilter):
    """Ranges of a timestamp: 1h is the past hour, over7d is more than a week ago. The address may have others."""

    parameter_name = "age"
    buckets: ClassVar[dict[str, Any]] = {
        "5m": gettext_lazy("Past 5 minutes"),
        "1h": gettext_lazy("Past hour"),
        "24h": gettext_lazy("Past 24 hours"),
        "7d": gettext_lazy("Past 7 days"),
        "over30m": gettext_lazy("More than 30 minutes ago"),
        "over7d": gettext_lazy("More than 7 days ago"),
        "over30d": gettext_lazy("More than 30 days ago"),
    }

    @property
    def shown(self) -> str:
        return str(self.buckets.get(self.value(), self.value()))

    def condition(self, rows: QuerySet[Any]) -> Q:
        """Return the range of the timestamp. ``moment`` raises ``ValueError`` for a text that is not a time."""
        value = self.value()
        age = value.removeprefix("over")
        at = moment(age, timezone.now())
        # A row is older than an age if its timestamp is before that moment.
        lookup = "gte" if age == value else "lt"
        return Q((f"{self.column}__{lookup}", at))

    def lookups(self, request: HttpRequest, model_admin: Any) -> Sequence[Any]:
        return list(self.buckets.items())


class PeriodFilter(ColumnFilter):
    """One end of a period of the timestamp that has an index: 14:00, 2d, 2026-03-14."""

    is_link_only = is_typed = True
    lookup: ClassVar[str]

    def condition(self, rows: QuerySet[Any]) -> Q:
        at = moment(self.value(), timezone.now())
        indexed = "created_at" if rows.model is Session else "last_used_at"
        return Q((f"{indexed}__{self.lookup}", at))


class FromFilter(PeriodFilter):
    title = gettext_lazy("from")
    parameter_name = "from"
    lookup = "gte"


class ToFilter(PeriodFilter):
    title = gettext_lazy("to")
    parameter_name = "to"
    lookup = "lt"


class CheckFilter(ColumnFilter):
    """The rows that a check of the overview finds."""

    title = gettext_lazy("check")
    parameter_name = "check"
    is_link_only = True

    @property
    def shown(self) -> str:
        check = check_of(self.value())
        return str(check.title) if check else self.value()

    def condition(self, rows: QuerySet[Any]) -> Q:
        """Return the rows that the check finds now: their ids, or its query if they are ``CAP`` or more."""
        check = check_of(self.value())
        if check is None or check.model is not rows.model:
            text = gettext("%s is not a check of this table.")
            raise ValueError(text % self.value()[:60])
        found = check.counted(Fleet(rows.db)).order_by().values_list("pk", flat=True)
        # A check's conditions may be slow, and the page, its count and its export would each evaluate them again, in an
        # order that suits the list instead of the check. So find its rows once, and name them if they are few.
        ids = list(found[:CAP])
        if len(ids) < CAP:
            return Q(pk__in=ids)
        return Q(pk__in=found)


class TenantFilter(TextFilter):
    title = gettext_lazy("tenant")
    parameter_name = column = "tenant_id"


class RunnerFilter(TextFilter):
    title = gettext_lazy("runner")
    parameter_name = column = "runner_id"


class SandboxFilter(ColumnFilter):
    title = gettext_lazy("sandbox")
    parameter_name = column = "sandbox_id"
    is_typed = is_link_only = True  # the search finds ids


class SessionFilter(ColumnFilter):
    title = gettext_lazy("session")
    parameter_name = column = "session_id"
    is_typed = is_link_only = True


class StatusFilter(ChoiceFilter):
    title = gettext_lazy("status")
    parameter_name = column = "status"


class StateFilter(ChoiceFilter):
    title = gettext_lazy("state")
    parameter_name = column = "state"


class CreatedFilter(AgeFilter):
    title = gettext_lazy("created")
    column = "created_at"


class LastUsedFilter(AgeFilter):
    title = gettext_lazy("last used")
    column = "last_used_at"


class LastActiveFilter(AgeFilter):
    title = gettext_lazy("last active")
    parameter_name = "active"
    column = "last_active_at"
