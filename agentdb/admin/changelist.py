"""Admin lists whose pages take the same time at ten thousand rows and at a million: no COUNT(*), no OFFSET, no scan.

A page is found in one of two ways. Where one of the filters, or the search, leaves at most ``WINDOW`` rows by an index,
these rows are filtered and sorted: the list is complete, and counted. Otherwise the page follows an index in the order
of the list; filters that this index does not answer are tried on ``WINDOW`` rows at a time for ``SEARCH_SECONDS``, and
a link continues after them.
"""

from __future__ import annotations

import base64
import binascii
import json
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from django.contrib.admin import ListFilter
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ChangeList
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import DateTimeField, F, Func, Model, Q, QuerySet, TextField
from django.db.models.lookups import Exact, GreaterThan, LessThan
from django.db.models.sql.compiler import SQLCompiler
from django.http import HttpRequest
from django.utils import timezone
from django.utils.safestring import SafeString
from django.utils.text import capfirst
from django.utils.translation import gettext, gettext_lazy, ngettext

from agentdb.admin.display import badge, heading_of, name_of, viewable
from agentdb.admin.overview import CAP, Amount, capped_count, distinct_counts, distinct_values
from agentdb.console.questions import Problem, ask
from agentdb.console.reading import read
from agentdb.console.unreadable import is_unreadable
from agentdb.expressions import CodePointOrder
from agentdb.models import Agent

WINDOW = 10_000
# Of the five that a page has: a search that finds too little in the newest rows goes on by itself for this long.
SEARCH_SECONDS = 1.5
SUGGESTIONS = 12
NEWEST_AGENTS = 500  # whose names are offered where no tenant is filtered by

# What the query string of a list may say beside its filters. The first two are places to read on from, in the order of
# the list; the third is how many rows the pages before have looked through.
AFTER = "after"
BEFORE = "before"
LOOKED = "looked"
COLUMNS = "columns"
SORT = "sort"
OLDEST_FIRST = "oldest"


class Unindexed(Func):
    """A text column in a form that no index has, so that the planner cannot choose the wrong one."""

    template = "(%(expressions)s || '')"
    output_field = TextField()


class UnindexedInstant(Func):
    """The same for a timestamp."""

    template = "(%(expressions)s + interval '0')"
    output_field = DateTimeField()

    def as_sqlite(self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **extra: Any) -> Any:
        return self.as_sql(compiler, connection, template="(%(expressions)s || '')", **extra)


def _without_index(equal: dict[str, str], found_by: Sequence[str]) -> list[Exact]:
    """The conditions on the columns that have been found by no index, so that the planner takes none for them."""
    return [Exact(Unindexed(F(name)), value) for name, value in equal.items() if name not in found_by]


class ListedAdmin:
    """What a ``KeysetChangeList`` asks of the admin whose rows it lists."""

    # The timestamps that rows can be ordered by, and what each order is called from either end. By the first an index
    # orders all rows; by the others those are ordered that the filters leave, where they are few.
    orders: ClassVar[Mapping[str, tuple[Any, Any]]] = {
        "created_at": (gettext_lazy("newest first"), gettext_lazy("oldest first"))
    }
    # The columns that an index finds: alone, and in the order of the first timestamp.
    found_by: ClassVar[Sequence[tuple[str, ...]]]
    ordered_by: ClassVar[Sequence[tuple[str, ...]]] = ()

    def find_linked(self, rows: Sequence[Any], allowed: Collection[type[Model]], problems: list[Problem]) -> None:
        """Look up what the rows refer to, with one query for each kind of it that the user may see.

        Of a kind that cannot be looked up a row says what it says of one that the user may not see.
        """
        for row in rows:
            row.allowed = allowed


@dataclass(frozen=True, slots=True)
class Cursor:
    """A row's place in the list: its timestamp, and its id where timestamps are equal."""

    at: datetime
    id: str

    def __str__(self) -> str:
        text = json.dumps([self.at.isoformat(), self.id])
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> Cursor:
        try:
            at, id = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
            cursor = cls(datetime.fromisoformat(at), id)
            cursor.at.astimezone(UTC)  # which the ends of the calendar do not survive
        except (binascii.Error, UnicodeDecodeError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise IncorrectLookupParameters(error) from error
        if cursor.at.tzinfo is None or not isinstance(id, str) or not _is_storable(id):
            raise IncorrectLookupParameters(text)
        return cursor


@dataclass(frozen=True, slots=True)
class Choice:
    """One value that a filter offers: what it is called, its link, and how many rows have it, where that is cheap."""

    display: str | SafeString
    query_string: str
    selected: bool = False
    rows: Amount | None = None


def _is_storable(text: str) -> bool:
    """No engine has a text with a NUL or half a surrogate pair in it."""
    return "\x00" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


class ColumnFilter(ListFilter):
    """A filter by one parameter of the query string."""

    template = "admin/agentdb/filter.html"
    parameter: ClassVar[str]
    is_typed: ClassVar[bool] = False  # rather than chosen
    is_link_only: ClassVar[bool] = False  # in the bar only where a link has set it

    def __init__(
        self, request: HttpRequest, params: dict[str, list[str]], model: type[Model], model_admin: Any
    ) -> None:
        super().__init__(request, params, model, model_admin)
        self.value = params.pop(self.parameter, [""])[-1].replace("\x00", "")
        self.model = model
        self.note = ""
        self.hidden: list[tuple[str, str]] = []
        self.clear = ""

    @property
    def parameter_name(self) -> str:
        """Django's own name for it, which themes ask for."""
        return self.parameter

    @property
    def shown(self) -> str:
        """The value as the bar of filters has it; empty where nothing is filtered."""
        return self.value

    def equals(self) -> dict[str, str]:
        """The columns that must have a value."""
        return {}

    def since(self, now: datetime) -> Q:
        """The range of the timestamp that orders the list."""
        return Q()

    def narrows(self, now: datetime) -> Q:
        """A condition that no index answers."""
        return Q()

    def has_output(self) -> bool:
        return True

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        return None

    def expected_parameters(self) -> list[str | None]:
        return [self.parameter]

    def choices(self, changelist: ChangeList) -> Iterator[Any]:
        self.hidden = [pair for pair in changelist.params.items() if pair[0] != self.parameter]
        self.clear = changelist.get_query_string(remove=[self.parameter])
        connection = connections[changelist.root_queryset.db]
        # The values are a help: a table that cannot say them does not take the list down.
        yield from ask(connection, lambda: list(self.offered(changelist))).value or ()

    def offered(self, changelist: ChangeList) -> Iterator[Choice]:
        raise NotImplementedError

    def choice(
        self, changelist: ChangeList, value: str, display: str | SafeString = "", rows: Amount | None = None
    ) -> Choice:
        link = changelist.get_query_string({self.parameter: value})
        return Choice(display or value, link, value == self.value, rows)


class TextFilter(ColumnFilter):
    """One value typed in, for columns of which nobody wants to see ten thousand values in a list."""

    is_typed = True
    column: ClassVar[str]

    def equals(self) -> dict[str, str]:
        return {self.column: self.value} if self.value else {}

    def known_values(self, changelist: ChangeList, beginning: str) -> list[str]:
        """Some values that the column has, in order, from the first that could have this beginning; none by default."""
        return []

    def offered(self, changelist: ChangeList) -> Iterator[Choice]:
        values = self.known_values(changelist, "")
        if len(values) > SUGGESTIONS:
            self.note = gettext("The first by name; type to filter by another.")
        for value in values[:SUGGESTIONS]:
            yield self.choice(changelist, value)

    def alike(self, changelist: ChangeList) -> list[Choice]:
        """The values that begin with the one that was typed."""
        known = self.known_values(changelist, self.value) if self.value else []
        alike = [value for value in known if value.startswith(self.value) and value != self.value]
        return [self.choice(changelist, value) for value in alike[:SUGGESTIONS]]


class IndexedTextFilter(TextFilter):
    """A text filter of a column whose index gives its values without reading the table."""

    def known_values(self, changelist: ChangeList, beginning: str) -> list[str]:
        connection = connections[changelist.root_queryset.db]
        return distinct_values(connection, self.model, self.column, at_least=beginning, limit=SUGGESTIONS + 1)


class AgentNameFilter(TextFilter):
    """Names of agents, from their own table: within the tenant that is filtered by, or the agents made last."""

    def __init__(
        self, request: HttpRequest, params: dict[str, list[str]], model: type[Model], model_admin: Any
    ) -> None:
        super().__init__(request, params, model, model_admin)
        self.may_see_agents = Agent in viewable(model_admin.admin_site, request)

    def known_values(self, changelist: Any, beginning: str) -> list[str]:
        if not self.may_see_agents:
            return []
        names = Agent.objects.using(changelist.root_queryset.db).values_list("name", flat=True)
        if (tenant_id := changelist.equal.get("tenant_id")) is not None:
            within = names.filter(tenant_id=tenant_id, name__gte=beginning).order_by("name")
            return list(within[: SUGGESTIONS + 1])
        newest = names.order_by("-created_at", CodePointOrder("id").desc())[:NEWEST_AGENTS]
        return sorted({name for name in newest if name >= beginning})


class ChoiceFilter(ColumnFilter):
    """One of the values the servers write; a value of the query string that is none of them is offered too."""

    column: ClassVar[str]
    values: ClassVar[Sequence[str]]

    def equals(self) -> dict[str, str]:
        return {self.column: self.value} if self.value else {}

    def offered(self, changelist: ChangeList) -> Iterator[Choice]:
        counted = self._counts(changelist)
        unknown = [self.value] if self.value and self.value not in self.values else []
        for value in [*self.values, *unknown]:
            yield self.choice(changelist, value, badge(value), counted.get(value, Amount(0)) if counted else None)

    def _counts(self, changelist: Any) -> dict[str, Amount]:
        # An index counts the rows of each value; which of them other filters leave, it does not know.
        if not set(changelist.equal) <= {self.column} or changelist.since or changelist.narrows or changelist.query:
            return {}
        connection = connections[changelist.root_queryset.db]
        limit = 2 * len(self.values)
        return dict(distinct_counts(connection, self.model, self.column, limit=limit, cap=CAP))


class AgeFilter(ColumnFilter):
    """Ranges of the timestamp that orders the list, so that its index answers them."""

    parameter = "age"
    column: ClassVar[str]
    buckets: ClassVar[dict[str, tuple[Any, timedelta, bool]]] = {
        "5m": (gettext_lazy("Past 5 minutes"), timedelta(minutes=5), True),
        "1h": (gettext_lazy("Past hour"), timedelta(hours=1), True),
        "24h": (gettext_lazy("Past 24 hours"), timedelta(hours=24), True),
        "7d": (gettext_lazy("Past 7 days"), timedelta(days=7), True),
        "over30m": (gettext_lazy("More than 30 minutes ago"), timedelta(minutes=30), False),
        "over7d": (gettext_lazy("More than 7 days ago"), timedelta(days=7), False),
        "over30d": (gettext_lazy("More than 30 days ago"), timedelta(days=30), False),
    }

    @property
    def shown(self) -> str:
        return str(self.buckets[self.value][0]) if self.value in self.buckets else ""

    def since(self, now: datetime) -> Q:
        if self.value not in self.buckets:
            return Q()
        _, age, newer = self.buckets[self.value]
        return Q(**{f"{self.column}__{'gte' if newer else 'lt'}": now - age})

    def offered(self, changelist: ChangeList) -> Iterator[Choice]:
        for value, (title, _, _) in self.buckets.items():
            yield self.choice(changelist, value, title)


class UnindexedAgeFilter(AgeFilter):
    """The same for a timestamp without an index."""

    def since(self, now: datetime) -> Q:
        return Q()

    def narrows(self, now: datetime) -> Q:
        return super().since(now)


@dataclass(frozen=True, slots=True)
class Emptied:
    """A filter of a list without rows: how many rows it leaves alone, how many the others leave without it."""

    name: str
    value: str
    alone: Amount | None
    without: Amount | None
    remove: str
    alike: Sequence[Choice] = ()


class KeysetChangeList(ChangeList):
    """A list in descending order of one timestamp and the id."""

    model_admin: Any  # a ListedAdmin that is a ModelAdmin

    def get_filters_params(self, params: Any = None) -> dict[str, Any]:
        own = (AFTER, BEFORE, LOOKED, COLUMNS, SORT)
        return {name: value for name, value in super().get_filters_params(params).items() if name not in own}

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> QuerySet[Any]:
        # A link that changes a filter begins at the first page again.
        for name in (AFTER, BEFORE, LOOKED):
            self.params.pop(name, None)
            self.filter_params.pop(name, None)
        specs, self.has_filters, rest, _, self.has_active_filters = self.get_filters(request)
        self.filter_specs = specs
        self.clear_all_filters_qs = self.get_query_string(new_params=rest, remove=list(self.get_filters_params()))

        self.query = self.query.replace("\x00", "").strip()
        self.equal: dict[str, str] = {}
        self.since = Q()
        self.narrows = Q()
        self.now = timezone.now()
        self.active = [spec for spec in specs if isinstance(spec, ColumnFilter) and spec.shown]
        for spec in self.active:
            self.equal |= spec.equals()
            self.since &= spec.since(self.now)
            self.narrows &= spec.narrows(self.now)
        return self.root_queryset.filter(self.since, self.narrows, **self.equal)

    def get_results(self, request: HttpRequest) -> None:
        self.forward = BEFORE not in request.GET
        self.indexed_order = next(iter(self.model_admin.orders))
        self.at, self.oldest_first = self._asked_order(request.GET.get(SORT, ""))
        cursor = request.GET.get(AFTER) or request.GET.get(BEFORE)
        self.cursor = Cursor.parse(cursor) if cursor else None
        looked = request.GET.get(LOOKED, "")
        self.looked = int(looked) if looked.isdecimal() and len(looked) < 12 else 0
        self.note = self.total = self.window_end = self.order_note = ""
        self.other_search: str | None = None
        # All rows that the filters and the search leave, where they are few enough to count.
        self.everything: QuerySet[Any] | None = None
        self.everything_count = 0

        self.problems: list[Problem] = []
        found = self._find()
        more = len(found) > self.list_per_page
        found = found[: self.list_per_page]
        # Where the page was read, the list goes on behind its last row, or behind the rows that were looked through.
        end = str((self._first_place(reversed(found)) if more else None) or self.window_end)
        start = str((self._first_place(found) if found and self.cursor else self.cursor) or "")
        if not self.forward:
            found.reverse()
        newest_first = not self.oldest_first
        looked_further = {LOOKED: str(self.looked)} if self.window_end and not more else {}
        self.next_url = self._page_link(AFTER, end if self.forward else start, looked_further if self.forward else {})
        self.previous_url = self._page_link(BEFORE, start if self.forward else end, {})
        self.next_name, self.previous_name = gettext("Older"), gettext("Newer")
        if self.oldest_first:
            self.next_name, self.previous_name = self.previous_name, self.next_name
        # With nothing to show yet, the script follows the link by itself.
        self.goes_on = bool(looked_further) and not found and self.forward
        if looked_further:
            older_remain = self.forward == newest_first
            self.note = (
                gettext("Looked through %s rows; there are older ones.")
                if older_remain
                else gettext("Looked through %s rows; there are newer ones.")
            ) % f"{self.looked:,}"

        self.export_query = self.get_query_string(remove=[AFTER, BEFORE, LOOKED])
        self.order_name = self.model_admin.orders[self.at][self.oldest_first]
        self.other_order = self.order_link(self.at, oldest_first=newest_first)
        self.other_order_name = self.model_admin.orders[self.at][newest_first]
        self.model_admin.find_linked(found, viewable(self.model_admin.admin_site, request), self.problems)
        self.names, self.heading = name_of(self.model, 0), heading_of(self.model)
        self.result_list = found
        self.result_count = self.full_result_count = len(found)
        self.show_full_result_count = False
        self.show_admin_actions = bool(found)
        self.can_show_all = True
        self.multi_page = False
        self.paginator = self.model_admin.paginator(found, self.list_per_page)
        self.emptied = self._what_empties() if not found and not self.cursor else []

    def _asked_order(self, asked: str) -> tuple[str, bool]:
        """The timestamp, and whether its beginning comes first."""
        name = asked.removeprefix("-")
        if name in self.model_admin.orders:
            return name, name == asked
        return self.indexed_order, asked == OLDEST_FIRST

    def order_link(self, at: str, *, oldest_first: bool) -> str:
        if at == self.indexed_order:
            order = {SORT: OLDEST_FIRST} if oldest_first else {}
        else:
            order = {SORT: at if oldest_first else f"-{at}"}
        return self.get_query_string(order, remove=[AFTER, BEFORE, LOOKED, SORT])

    def can_order_by(self, at: str) -> bool:
        """Whether the rows that the filters leave can be ordered so without reading them all."""
        return at == self.indexed_order or (at in self.model_admin.orders and self.everything is not None)

    @property
    def emptied_title(self) -> str:
        kind = name_of(self.model)
        if self.window_end:
            return gettext("No %s found so far") % kind
        if self.cursor:
            return gettext("No further %s") % kind
        if not self.emptied:
            return gettext("There is no %s yet") % kind
        if not self.active:
            return gettext("No %s matches the search") % kind
        return ngettext("No %s matches the filter", "No %s matches all the filters", len(self.emptied)) % kind

    def _what_empties(self) -> list[Emptied]:
        """What each filter does to a list without rows, and the search, which is one more of them."""
        search = self.matches() if self.query else Q()
        lines = []
        for spec in self.active:
            others = [other for other in self.active if other is not spec]
            lines.append(
                Emptied(
                    capfirst(str(spec.title)),
                    spec.shown,
                    self._amount([spec], Q()),
                    self._amount(others, search),
                    spec.clear or self.get_query_string(remove=[spec.parameter]),
                    spec.alike(self) if isinstance(spec, TextFilter) else (),
                )
            )
        if self.query:
            remove = self.get_query_string(remove=["q", COLUMNS])
            lines.append(
                Emptied(gettext("Search"), self.query, self._amount([], search), self._amount(self.active, Q()), remove)
            )
        return lines

    def _amount(self, specs: Sequence[ColumnFilter], search: Q) -> Amount | None:
        """How many rows some of the filters leave; None if finding out would take reading more than ``WINDOW``."""
        equal: dict[str, str] = {}
        rest = search
        for spec in specs:
            equal |= spec.equals()
            rest &= spec.since(self.now) & spec.narrows(self.now)
        found_by = self._few_rows_by(equal)
        if found_by is None:
            by_index = next((names for names in self.model_admin.found_by if set(names) == equal.keys()), None)
            return capped_count(self.root_queryset.filter(**equal)) if by_index is not None and not rest else None
        few = self.root_queryset.filter(**{name: equal[name] for name in found_by})
        return capped_count(few.filter(*_without_index(equal, found_by), rest))

    def _page_link(self, name: str, cursor: str, more: dict[str, str]) -> str:
        return self.get_query_string({name: cursor, **more}) if cursor else ""

    def _first_place(self, rows: Iterable[Any]) -> Cursor | None:
        """The place of the first of the rows that has one that can be read."""
        for row in rows:
            if not is_unreadable(at := getattr(row, self.at)) and not is_unreadable(row.pk):
                return Cursor(at, row.pk)
        return None

    def _find(self) -> list[Any]:
        """The rows of the page and, if there is one, a row more."""
        rows = self.root_queryset
        residual = self.narrows
        ids: list[str] = []
        if self.query and COLUMNS not in self.filter_params:
            ids = self._ids_that_begin_with_query()
        if ids:
            if not set(ids) <= {self.query}:
                self.other_search = self.get_query_string({COLUMNS: "1"})
            found_by: tuple[str, ...] | None = ("id",)
            few = rows.filter(pk__in=ids)
        else:
            found_by = self._few_rows_by(self.equal)
            few = rows.filter(**{name: self.equal[name] for name in found_by or ()})
            if self.query:
                residual &= self.matches()

        if found_by is not None:
            few = few.filter(*_without_index(self.equal, found_by), residual, self.since)
            # Unless an index has these very rows in this very order, PostgreSQL may prefer to walk the whole
            # table in the order of another one, hoping to meet enough of them early.
            by_index = found_by == () or found_by in self.model_admin.ordered_by
            sort = by_index and self.at == self.indexed_order
            self.everything, self.everything_count = few, few.count()
            self.total = f"{self.everything_count:,}"
            page = few.filter(self._beyond(self.cursor)).order_by(*self._order(indexed=sort))
            return read(page[: self.list_per_page + 1], self.problems)
        if self.at != self.indexed_order:
            self.at, self.oldest_first, self.cursor = self.indexed_order, False, None
            self.order_note = (
                gettext("More than %s rows are left, too many for that order; filter further to have it.")
                % f"{WINDOW:,}"
            )
        return self._find_in_order(residual)

    def matches(self) -> Q:
        """What the search finds in the columns."""
        matches = Q()
        for column in self.search_fields:
            matches |= Q(**{f"{column}__icontains": self.query})
        return matches

    def _find_in_order(self, residual: Q) -> list[Any]:
        rows = self.root_queryset
        driver: tuple[str, ...] = ()
        for names in self.model_admin.ordered_by:
            if set(names) <= self.equal.keys():
                driver = names
                break
        rows = rows.filter(self.since, **{name: self.equal[name] for name in driver})
        rows = rows.order_by(*self._order(indexed=True))
        others = _without_index(self.equal, driver)
        if not others and not residual:
            self.total = f"more than {WINDOW:,}" if driver == tuple(self.equal) and not self.since else ""
            return read(rows.filter(self._beyond(self.cursor))[: self.list_per_page + 1], self.problems)
        return self._look_through(rows, (*others, residual))

    def _look_through(self, rows: QuerySet[Any], conditions: Sequence[Any]) -> list[Any]:
        """The rows that match, one window of the list after the other, until the page is full or the time is up."""
        ends_at = time.monotonic() + SEARCH_SECONDS
        wanted = self.list_per_page + 1
        found: list[Any] = []
        start = self.cursor
        while True:
            window = rows.filter(self._beyond(start))
            # Whole rows: for two columns SQLite would read and sort an index that has both, in another order. A few of
            # them, because the last one may be one that cannot be read.
            last = read(window[max(WINDOW - 5, 0) : WINDOW], self.problems)
            end = self._first_place(reversed(last)) if len(last) == min(WINDOW, 5) else None
            if end is not None:
                window = window.filter(self._up_to(end))
            found += read(window.filter(*conditions)[: wanted - len(found)], self.problems)
            if end is None:
                return found
            self.looked += WINDOW
            if len(found) == wanted or time.monotonic() > ends_at:
                self.window_end = str(end)
                return found
            start = end

    def _few_rows_by(self, equal: dict[str, str]) -> tuple[str, ...] | None:
        """The columns whose values the fewest rows have, if an index finds them and they are few."""
        groups = [names for names in self.model_admin.found_by if set(names) <= equal.keys()]
        groups = [names for names in groups if not any(set(names) < set(other) for other in groups)]
        if not groups:
            groups = [()]
        counts = {
            names: self.root_queryset.filter(**{name: equal[name] for name in names})[: WINDOW + 1].count()
            for names in groups
        }
        fewest = min(groups, key=lambda names: counts[names])
        return fewest if counts[fewest] <= WINDOW else None

    def _ids_that_begin_with_query(self) -> list[str]:
        # In most collations the ids that begin with a text are the first ones at or after it. Where they are not, only
        # the exact id is found here, and the search goes on in the columns.
        ids = self.root_queryset.filter(pk__gte=self.query).order_by("pk").values_list("pk", flat=True)
        return [id for id in ids[: self.list_per_page] if id.startswith(self.query)]

    def _order(self, *, indexed: bool) -> list[Any]:
        at: Any = F(self.at) if indexed else UnindexedInstant(F(self.at))
        id = CodePointOrder("id")
        return [at.desc(), id.desc()] if self._descends() else [at.asc(), id.asc()]

    def in_order(self, rows: QuerySet[Any]) -> QuerySet[Any]:
        """The rows in the order of the list."""
        return rows.order_by(*self._order(indexed=True))

    def _descends(self) -> bool:
        """Whether the rows are read from the newest to the oldest."""
        return self.forward != self.oldest_first

    def _beyond(self, cursor: Cursor | None) -> Q:
        """The rows on the far side of a place, in the direction of reading."""
        if cursor is None:
            return Q()
        compare, lookup = (LessThan, "lt") if self._descends() else (GreaterThan, "gt")
        return Q(**{f"{self.at}__{lookup}e": cursor.at}) & (
            Q(**{f"{self.at}__{lookup}": cursor.at}) | Q(compare(CodePointOrder("id"), cursor.id))
        )

    def _up_to(self, cursor: Cursor) -> Q:
        """The rows on the near side of a place, and the one that is there."""
        compare, lookup = (GreaterThan, "gt") if self._descends() else (LessThan, "lt")
        return Q(**{f"{self.at}__{lookup}e": cursor.at}) & (
            Q(**{f"{self.at}__{lookup}": cursor.at}) | Q(compare(CodePointOrder("id"), cursor.id)) | Q(pk=cursor.id)
        )
