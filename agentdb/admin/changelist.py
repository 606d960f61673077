"""Admin lists whose pages take the same time at ten thousand rows and at a million: no COUNT(*), no OFFSET, no scan.

A page is found in one of two ways. Where one of the filters, or the search, leaves at most ``WINDOW`` rows by an index,
these rows are filtered and sorted: the list is complete, and counted. Otherwise the page follows an index in the order
of the list; filters that this index does not answer are tried on ``WINDOW`` rows, and a link continues after them.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
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
from django.utils.text import capfirst

from agentdb.admin.overview import distinct_values
from agentdb.expressions import CodePointOrder

WINDOW = 10_000
SUGGESTIONS = 8

AFTER = "after"
BEFORE = "before"
COLUMNS = "columns"


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


class ListedAdmin:
    """What a ``KeysetChangeList`` asks of the admin whose rows it lists."""

    # What the list is ordered by, newest first, and which columns an index finds: alone, and in the list's order.
    order_field: ClassVar[str] = "created_at"
    found_by: ClassVar[Sequence[tuple[str, ...]]]
    ordered_by: ClassVar[Sequence[tuple[str, ...]]] = ()

    def find_linked(self, rows: Sequence[Any]) -> None:
        """Look up what the rows refer to, with one query for each kind of it."""


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
        except (binascii.Error, UnicodeDecodeError, TypeError, ValueError) as error:
            raise IncorrectLookupParameters(error) from error
        if cursor.at.tzinfo is None or not isinstance(id, str):
            raise IncorrectLookupParameters(text)
        return cursor


class ColumnFilter(ListFilter):
    """A filter by one parameter of the query string."""

    parameter: ClassVar[str]

    def __init__(
        self, request: HttpRequest, params: dict[str, list[str]], model: type[Model], model_admin: Any
    ) -> None:
        super().__init__(request, params, model, model_admin)
        self.value = params.pop(self.parameter, [""])[-1].replace("\x00", "")
        self.model = model

    def equals(self) -> dict[str, str]:
        """The columns that must have a value."""
        return {}

    def since(self, now: datetime) -> Q:
        """The range of the timestamp that orders the list."""
        return Q()

    def has_output(self) -> bool:
        return True

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        return None

    def expected_parameters(self) -> list[str | None]:
        return [self.parameter]


class TextFilter(ColumnFilter):
    """One value typed in, for columns of which nobody wants to see ten thousand values in a list."""

    template = "admin/agentdb/filter_text.html"
    column: ClassVar[str]
    suggests: ClassVar[bool] = False

    def equals(self) -> dict[str, str]:
        return {self.column: self.value} if self.value else {}

    def choices(self, changelist: ChangeList) -> Iterator[Any]:
        yield {
            "parameter": self.parameter,
            "value": self.value,
            "hidden": [pair for pair in changelist.params.items() if pair[0] != self.parameter],
            "clear": changelist.get_query_string(remove=[self.parameter]),
            "suggestions": [
                {"value": value, "query_string": changelist.get_query_string({self.parameter: value})}
                for value in self.suggestions(changelist)
            ],
        }

    def suggestions(self, changelist: ChangeList) -> list[str]:
        """Values that begin with the one that was typed, if that one has no rows."""
        if not self.suggests or not self.value or changelist.result_list:
            return []
        connection = connections[changelist.root_queryset.db]
        values = distinct_values(connection, self.model, self.column, at_least=self.value, limit=SUGGESTIONS + 1)
        return [value for value in values if value.startswith(self.value) and value != self.value][:SUGGESTIONS]


class ChoiceFilter(ColumnFilter):
    """One of the values the servers write; a value of the query string that is none of them is offered too."""

    column: ClassVar[str]
    values: ClassVar[Sequence[str]]

    def equals(self) -> dict[str, str]:
        return {self.column: self.value} if self.value else {}

    def choices(self, changelist: ChangeList) -> Iterator[Any]:
        yield {
            "selected": not self.value,
            "query_string": changelist.get_query_string(remove=[self.parameter]),
            "display": "All",
        }
        unknown = [self.value] if self.value and self.value not in self.values else []
        for value in [*self.values, *unknown]:
            yield {
                "selected": self.value == value,
                "query_string": changelist.get_query_string({self.parameter: value}),
                "display": value,
            }


class AgeFilter(ColumnFilter):
    """Ranges of the timestamp that orders the list, so that its index answers them."""

    parameter = "age"
    column: ClassVar[str]
    buckets: ClassVar[dict[str, tuple[str, timedelta, bool]]] = {
        "1h": ("Past hour", timedelta(hours=1), True),
        "24h": ("Past 24 hours", timedelta(hours=24), True),
        "7d": ("Past 7 days", timedelta(days=7), True),
        "over7d": ("More than 7 days ago", timedelta(days=7), False),
        "over30d": ("More than 30 days ago", timedelta(days=30), False),
    }

    def since(self, now: datetime) -> Q:
        if self.value not in self.buckets:
            return Q()
        _, age, newer = self.buckets[self.value]
        return Q(**{f"{self.column}__{'gte' if newer else 'lt'}": now - age})

    def choices(self, changelist: ChangeList) -> Iterator[Any]:
        yield {
            "selected": self.value not in self.buckets,
            "query_string": changelist.get_query_string(remove=[self.parameter]),
            "display": "Any time",
        }
        for value, (title, _, _) in self.buckets.items():
            yield {
                "selected": self.value == value,
                "query_string": changelist.get_query_string({self.parameter: value}),
                "display": title,
            }


class KeysetChangeList(ChangeList):
    """A list in descending order of one timestamp and the id."""

    model_admin: Any  # a ListedAdmin that is a ModelAdmin

    def get_filters_params(self, params: Any = None) -> dict[str, Any]:
        own = (AFTER, BEFORE, COLUMNS)
        return {name: value for name, value in super().get_filters_params(params).items() if name not in own}

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> QuerySet[Any]:
        # A link that changes a filter begins at the first page again.
        for name in (AFTER, BEFORE):
            self.params.pop(name, None)
            self.filter_params.pop(name, None)
        specs, self.has_filters, rest, _, self.has_active_filters = self.get_filters(request)
        self.filter_specs = specs
        self.clear_all_filters_qs = self.get_query_string(new_params=rest, remove=list(self.get_filters_params()))

        self.query = self.query.replace("\x00", "").strip()
        self.equal: dict[str, str] = {}
        self.since = Q()
        now = timezone.now()
        for spec in specs:
            if isinstance(spec, ColumnFilter):
                self.equal |= spec.equals()
                self.since &= spec.since(now)
        return self.root_queryset.filter(self.since, **self.equal)

    def get_results(self, request: HttpRequest) -> None:
        self.at = self.model_admin.order_field
        self.forward = BEFORE not in request.GET
        cursor = request.GET.get(AFTER) or request.GET.get(BEFORE)
        self.cursor = Cursor.parse(cursor) if cursor else None
        self.note = self.total = self.window_end = ""
        self.other_search: str | None = None

        found = self._find()
        more = len(found) > self.list_per_page
        found = found[: self.list_per_page]
        # Where the page was read, the list goes on behind its last row, or behind the rows that were looked through.
        end = (str(self._place(found[-1])) if more else "") or self.window_end
        start = str(self._place(found[0])) if found and self.cursor else str(self.cursor or "")
        if not self.forward:
            found.reverse()
        self.older = self._page_link(AFTER, end if self.forward else start)
        self.newer = self._page_link(BEFORE, start if self.forward else end)
        if self.window_end and not more:
            side = "older" if self.forward else "newer"
            self.note = f"Looked through {WINDOW:,} rows; there are {side} ones."

        self.export_query = self.get_query_string(remove=[AFTER, BEFORE])
        self.model_admin.find_linked(found)
        self.heading = capfirst(self.opts.verbose_name_plural)
        self.result_list = found
        self.result_count = self.full_result_count = len(found)
        self.show_full_result_count = False
        self.show_admin_actions = bool(found)
        self.can_show_all = True
        self.multi_page = False
        self.paginator = self.model_admin.paginator(found, self.list_per_page)

    def _page_link(self, name: str, cursor: str) -> str:
        return self.get_query_string({name: cursor}) if cursor else ""

    def _place(self, row: Any) -> Cursor:
        return Cursor(getattr(row, self.at), row.pk)

    def _find(self) -> list[Any]:
        """The rows of the page and, if there is one, a row more."""
        rows = self.root_queryset
        residual = Q()
        ids: list[str] = []
        if self.query and COLUMNS not in self.filter_params:
            ids = self._ids_that_begin_with_query()
        if ids:
            if not set(ids) <= {self.query}:
                self.other_search = self.get_query_string({COLUMNS: "1"})
            found_by: tuple[str, ...] | None = ("id",)
            few = rows.filter(pk__in=ids)
        else:
            found_by = self._few_rows_by()
            few = rows.filter(**{name: self.equal[name] for name in found_by or ()})
            if self.query:
                for column in self.search_fields:
                    residual |= Q(**{f"{column}__icontains": self.query})

        if found_by is not None:
            for name, value in self.equal.items():
                if name not in found_by:
                    few = few.filter(Exact(Unindexed(F(name)), value))
            few = few.filter(residual)
            # Unless an index has these very rows in this very order, PostgreSQL may prefer to walk the whole
            # table in the order of another one, hoping to meet enough of them early.
            sort = found_by == () or found_by in self.model_admin.ordered_by
            few = few.filter(self.since)
            self.total = f"{few.count():,}"
            page = few.filter(self._beyond(self.cursor)).order_by(*self._order(indexed=sort))
            return list(page[: self.list_per_page + 1])
        return self._find_in_order(residual)

    def _find_in_order(self, residual: Q) -> list[Any]:
        rows = self.root_queryset
        driver: tuple[str, ...] = ()
        for names in self.model_admin.ordered_by:
            if set(names) <= self.equal.keys():
                driver = names
                break
        rows = rows.filter(self.since, self._beyond(self.cursor), **{name: self.equal[name] for name in driver})
        rows = rows.order_by(*self._order(indexed=True))
        others = {name: value for name, value in self.equal.items() if name not in driver}
        if others or residual:
            # Whole rows: for two columns SQLite would read and sort an index that has both, in another order.
            for row in rows[WINDOW - 1 : WINDOW]:
                end = self._place(row)
                self.window_end = str(end)
                rows = rows.filter(self._up_to(end))
            for name, value in others.items():
                rows = rows.filter(Exact(Unindexed(F(name)), value))
            rows = rows.filter(residual)
        else:
            self.total = f"more than {WINDOW:,}" if driver == tuple(self.equal) and not self.since else ""
        return list(rows[: self.list_per_page + 1])

    def _few_rows_by(self) -> tuple[str, ...] | None:
        """The columns whose values the fewest rows have, if an index finds them and they are few."""
        groups = [names for names in self.model_admin.found_by if set(names) <= self.equal.keys()]
        groups = [names for names in groups if not any(set(names) < set(other) for other in groups)]
        if not groups:
            groups = [()]
        counts = {
            names: self.root_queryset.filter(**{name: self.equal[name] for name in names})[: WINDOW + 1].count()
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
        return [at.desc(), id.desc()] if self.forward else [at.asc(), id.asc()]

    def _beyond(self, cursor: Cursor | None) -> Q:
        """The rows on the far side of a place, in the direction of reading."""
        if cursor is None:
            return Q()
        compare, lookup = (LessThan, "lt") if self.forward else (GreaterThan, "gt")
        return Q(**{f"{self.at}__{lookup}e": cursor.at}) & (
            Q(**{f"{self.at}__{lookup}": cursor.at}) | Q(compare(CodePointOrder("id"), cursor.id))
        )

    def _up_to(self, cursor: Cursor) -> Q:
        """The rows on the near side of a place, and the one that is there."""
        compare, lookup = (GreaterThan, "gt") if self.forward else (LessThan, "lt")
        return Q(**{f"{self.at}__{lookup}e": cursor.at}) & (
            Q(**{f"{self.at}__{lookup}": cursor.at}) | Q(compare(CodePointOrder("id"), cursor.id)) | Q(pk=cursor.id)
        )
