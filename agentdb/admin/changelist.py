"""Lists whose pages take the same time at ten thousand rows and at a million: no OFFSET, no scan.

A page is found in one of two ways. If the filters leave at most ``WINDOW`` rows by an index, these are counted and
sorted, by whichever timestamp. Otherwise the page follows an index in the order of the list; what this index does not
answer is tried on ``WINDOW`` rows at a time for ``SEARCH_SECONDS``, and the link to older rows continues after them.
"""

from __future__ import annotations

import base64
import binascii
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ERROR_FLAG, ChangeList
from django.core.paginator import Paginator
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import DateTimeField, F, Func, Q, QuerySet, TextField
from django.db.models.lookups import Exact, GreaterThan, LessThan
from django.db.models.sql.compiler import SQLCompiler
from django.http import HttpRequest
from django.utils import timezone
from django.utils.text import capfirst
from django.utils.translation import gettext

from agentdb.admin.display import heading_of, name_of, undo_url, viewable
from agentdb.admin.filters import ColumnFilter
from agentdb.console.display import exact
from agentdb.console.questions import Problem
from agentdb.console.reading import read
from agentdb.console.unreadable import is_unreadable
from agentdb.expressions import CodePointOrder
from agentdb.interface import SessionStatus
from agentdb.models import Session

WINDOW = 10_000
# Of the five that a page has: a search that finds too little in the newest rows goes on for this long.
SEARCH_SECONDS = 1.5

# What the query string of a list may say beside its filters.
AFTER = "after"  # a place in the order of the list, behind which the page begins
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

    def as_sqlite(
        self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **extra: Any
    ) -> Any:
        return self.as_sql(
            compiler, connection, template="(%(expressions)s || '')", **extra
        )


@dataclass(frozen=True, slots=True)
class Cursor:
    """A row's place in the list: its timestamp, and its id if timestamps are equal."""

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
        except (
            binascii.Error,
            UnicodeDecodeError,
            TypeError,
            ValueError,
            OverflowError,
            RecursionError,
        ) as error:
            raise IncorrectLookupParameters(error) from error
        if cursor.at.tzinfo is None or not isinstance(id, str) or not _is_storable(id):
            raise IncorrectLookupParameters(text)
        return cursor


def _is_storable(text: str) -> bool:
    """No engine has a text with a NUL or half a surrogate pair in it."""
    return "\x00" not in text and not any(
        "\ud800" <= character <= "\udfff" for character in text
    )


@dataclass(frozen=True, slots=True)
class Order:
    """The timestamp that a list is ordered by, and which end of it comes first."""

    at: str
    oldest_first: bool = False

    @property
    def parameter(self) -> str:
        return self.at if self.oldest_first else f"-{self.at}"

    def expressions(self, *, indexed: bool = True) -> list[Any]:
        at: Any = F(self.at) if indexed else UnindexedInstant(F(self.at))
        id = CodePointOrder("id")
        return [at.asc(), id.asc()] if self.oldest_first else [at.desc(), id.desc()]

    def beyond(self, cursor: Cursor | None) -> Q:
        """The rows behind a place."""
        if cursor is None:
            return Q()
        compare, lookup = (GreaterThan, "gt") if self.oldest_first else (LessThan, "lt")
        # The first condition alone finds the place by an index.
        return Q(**{f"{self.at}__{lookup}e": cursor.at}) & (
            Q(**{f"{self.at}__{lookup}": cursor.at})
            | Q(compare(CodePointOrder("id"), cursor.id))
        )

    def first_place(self, rows: Iterable[Any]) -> Cursor | None:
        """The place of the first of the rows that has one that can be read."""
        for row in rows:
            if not is_unreadable(at := getattr(row, self.at)) and not is_unreadable(
                row.pk
            ):
                return Cursor(at, row.pk)
        return None


@dataclass(frozen=True, slots=True)
class PageOfRows:
    """One page of a list. ``total`` is None if it is not known, and above ``WINDOW`` if there are more."""

    rows: Sequence[Any]
    order: Order
    total: int | None = None
    end: Cursor | None = None  # where the next page begins
    searched_to: Cursor | None = None  # behind it rows were not looked at
    problems: Sequence[Problem] = ()
    note: str = ""

    @property
    def shown_total(self) -> str:
        if self.total is None:
            return ""
        return f"{WINDOW:,}+" if self.total > WINDOW else f"{self.total:,}"


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a table: the rows that its indexes leave, and what else is demanded of them."""

    rows: QuerySet[Any]
    equal: Mapping[str, str]
    rest: Q
    # The columns that an index finds: alone, and in the order of the list's first timestamp.
    found_by: Sequence[tuple[str, ...]]
    ordered_by: Sequence[tuple[str, ...]]

    def everything(self) -> QuerySet[Any]:
        return self.rows.filter(self.rest, **self.equal).order_by("pk")

    def few(self) -> QuerySet[Any] | None:
        """All rows that are asked for, if an index leaves few enough of them to be sorted."""
        groups = [
            names for names in self.found_by if set(names) <= self.equal.keys()
        ] or [()]
        counts = {names: self._having(names)[: WINDOW + 1].count() for names in groups}
        fewest = min(groups, key=lambda names: counts[names])
        if counts[fewest] > WINDOW:
            return None
        return self._having(fewest).filter(*self._others(fewest))

    def page(
        self, orders: Sequence[str], order: Order, cursor: Cursor | None, size: int
    ) -> PageOfRows:
        few = self.few()
        if few is not None:
            return self._sorted(few, order, cursor, size)
        note = ""
        if order.at != orders[0]:
            note = gettext(
                "More than %s rows are left, too many for that order; filter further to have it."
            )
            note %= f"{WINDOW:,}"
            order, cursor = Order(orders[0]), None
        return self._walked(order, cursor, size, note)

    def _having(self, names: Sequence[str]) -> QuerySet[Any]:
        return self.rows.filter(**{name: self.equal[name] for name in names})

    def _others(self, names: Sequence[str]) -> list[Any]:
        """What the named columns leave to be demanded, so that the planner takes no index for it."""
        equal = [
            Exact(Unindexed(F(name)), value)
            for name, value in self.equal.items()
            if name not in names
        ]
        return [*equal, self.rest] if self.rest else list(equal)

    def _sorted(
        self, few: QuerySet[Any], order: Order, cursor: Cursor | None, size: int
    ) -> PageOfRows:
        problems: list[Problem] = []
        # PostgreSQL may walk the table in the order of an index, hoping to meet enough of these rows early.
        rows = few.filter(order.beyond(cursor)).order_by(
            *order.expressions(indexed=False)
        )
        found = read(rows[: size + 1], problems)
        end = order.first_place(reversed(found[:size])) if len(found) > size else None
        return PageOfRows(found[:size], order, few.count(), end, problems=problems)

    def _walked(
        self, order: Order, cursor: Cursor | None, size: int, note: str
    ) -> PageOfRows:
        problems: list[Problem] = []
        driver = next(
            (names for names in self.ordered_by if set(names) <= self.equal.keys()), ()
        )
        rows = self._having(driver).order_by(*order.expressions())
        conditions = self._others(driver)
        searched_to = total = None
        if conditions:
            found, searched_to = _search(
                rows, order, cursor, conditions, size + 1, problems
            )
        else:
            found, total = (
                read(rows.filter(order.beyond(cursor))[: size + 1], problems),
                WINDOW + 1,
            )
        end = (
            order.first_place(reversed(found[:size]))
            if len(found) > size
            else searched_to
        )
        searched_to = None if len(found) > size else searched_to
        return PageOfRows(found[:size], order, total, end, searched_to, problems, note)


def _search(
    rows: QuerySet[Any],
    order: Order,
    cursor: Cursor | None,
    conditions: Sequence[Any],
    wanted: int,
    problems: list[Problem],
) -> tuple[list[Any], Cursor | None]:
    """The rows that match, one window after the other, until enough are found or the time is up; and where that was."""
    ends_at = time.monotonic() + SEARCH_SECONDS
    found: list[Any] = []
    reached = Order(order.at, not order.oldest_first)
    while True:
        window = rows.filter(order.beyond(cursor))
        # Whole rows: for two columns SQLite would read and sort an index that has both, in another order. A few of
        # them, because the last one may be one that cannot be read.
        last = read(window[max(WINDOW - 5, 0) : WINDOW], problems)
        end = order.first_place(reversed(last)) if len(last) == min(WINDOW, 5) else None
        if end is not None:
            window = window.filter(reached.beyond(end) | Q(pk=end.id))
        found += read(window.filter(*conditions)[: wanted - len(found)], problems)
        if end is None or len(found) == wanted or time.monotonic() > ends_at:
            return found, end
        cursor = end


class Uncounted(Paginator):  # type: ignore[type-arg]
    """Django's change list asks its paginator for the number of all rows, which would read them."""

    count = 0


class RowList(ChangeList):
    """Django's change list, with a ``PageOfRows`` in place of its pages."""

    model_admin: Any  # a ReadFirstAdmin
    question: Question
    page: PageOfRows

    def get_filters_params(self, params: Any = None) -> dict[str, Any]:
        return {
            name: value
            for name, value in super().get_filters_params(params).items()
            if name not in (AFTER, SORT)
        }

    def get_queryset(
        self, request: HttpRequest, exclude_parameters: Any = None
    ) -> QuerySet[Any]:
        for given in (self.params, self.filter_params):
            given.pop(
                AFTER, None
            )  # a link that changes a filter begins at the first page again
        self.query = self.query.replace("\x00", "").strip()
        rows = (
            super().get_queryset(request, exclude_parameters).order_by()
        )  # or each count would sort
        equal: dict[str, str] = {}
        rest = self.model_admin.containing(self.query) if self.query else Q()
        for spec in self.active:
            equal |= spec.equal
            rest &= spec.rest
        self.question = Question(
            rows, equal, rest, self.model_admin.found_by, self.model_admin.ordered_by
        )
        return self.question.everything()

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        after = request.GET.get(AFTER, "")
        cursor = Cursor.parse(after) if after else None
        order = self._asked_order(request.GET.get(SORT, ""))
        self.page = self.question.page(
            list(self.model_admin.orders), order, cursor, self.list_per_page
        )
        rows, problems = self.page.rows, self.page.problems
        self.model_admin.find_linked(
            rows, viewable(self.model_admin.admin_site, request), problems
        )
        self.result_list = rows
        self.result_count = len(rows)
        self.is_first = cursor is None
        self.sentences = self._sentences(request)

    @property
    def active(self) -> list[ColumnFilter]:
        return [
            spec
            for spec in self.filter_specs
            if isinstance(spec, ColumnFilter) and spec.shown
        ]

    @property
    def set_filters(self) -> list[tuple[str, str, str]]:
        """Of each filter and the search its name, its value, and the link without it."""
        found = [
            (capfirst(str(each.title)), each.shown, self.without(each.parameter))
            for each in self.active
        ]
        return (
            [*found, (gettext("Contains"), self.query, self.without("q"))]
            if self.query
            else found
        )

    def without(self, parameter: str) -> str:
        return self.get_query_string(remove=[parameter])

    @property
    def without_query(self) -> str:
        return self.without("q")

    def _sentences(self, request: HttpRequest) -> list[str]:
        """What the reader has to know about this page."""
        found = [spec.problem for spec in self.active if spec.problem]
        asked = request.GET.get(SORT, "")
        if (
            asked
            and asked != OLDEST_FIRST
            and asked.removeprefix("-") not in self.model_admin.orders
        ):
            found.append(
                gettext("%s is not an order of this list.") % f"{SORT}={asked[:60]}"
            )
        if ERROR_FLAG in request.GET:
            found.append(
                gettext(
                    "The link named a place that this list does not have; this is the first page."
                )
            )
        if self.page.note:
            found.append(self.page.note)
        if self.page.searched_to is not None:
            so_far = gettext(
                "Searched %(way)s to %(time)s. Rows beyond that were not searched yet."
            )
            way = (
                gettext("forward") if self.page.order.oldest_first else gettext("back")
            )
            found.append(so_far % {"way": way, "time": exact(self.page.searched_to.at)})
        return found

    @property
    def empty_title(self) -> str:
        kind = name_of(self.model, 0)
        if self.page.searched_to is not None:
            return gettext("No %s found so far") % kind
        if not self.is_first:
            return gettext("No further %s") % kind
        if self.set_filters:
            return gettext("No %s match") % kind
        return gettext("There are no %s yet") % kind

    @property
    def further_url(self) -> str:
        return (
            self.get_query_string({AFTER: str(self.page.end)}) if self.page.end else ""
        )

    @property
    def further_name(self) -> str:
        return gettext("Newer") if self.page.order.oldest_first else gettext("Older")

    @property
    def first_url(self) -> str:
        return "" if self.is_first else self.get_query_string()

    @property
    def resume_url(self) -> str:
        """Where paused sessions are resumed as they were."""
        is_paused = (
            self.model is Session
            and self.question.equal.get("status") == SessionStatus.PAUSED
        )
        return undo_url(self.model_admin.admin_site) if is_paused else ""

    @property
    def goes_on(self) -> bool:
        """With nothing to show yet, the script follows the link by itself."""
        return self.page.searched_to is not None and not self.page.rows

    @property
    def names(self) -> str:
        return name_of(
            self.model, self.page.total if self.page.total is not None else 0
        )

    @property
    def heading(self) -> str:
        return heading_of(self.model)

    @property
    def now(self) -> datetime:
        return timezone.now()

    def _asked_order(self, asked: str) -> Order:
        name = asked.removeprefix("-")
        if name in self.model_admin.orders:
            return Order(name, name == asked)
        first = next(iter(self.model_admin.orders))
        return Order(first, asked == OLDEST_FIRST)

    def order_url(self, order: Order) -> str:
        if order == self._asked_order(""):
            return self.get_query_string(remove=[SORT])
        first = next(iter(self.model_admin.orders))
        return self.get_query_string(
            {SORT: OLDEST_FIRST if order.at == first else order.parameter}
        )

    def can_order_by(self, at: str) -> bool:
        """Whether the rows can be ordered so without reading them all."""
        is_few = self.page.total is not None and self.page.total <= WINDOW
        return at in self.model_admin.orders and (
            is_few or at == self._asked_order("").at
        )

    @property
    def order_name(self) -> str:
        return str(
            self.model_admin.orders[self.page.order.at][self.page.order.oldest_first]
        )

    @property
    def other_order(self) -> Order:
        return Order(self.page.order.at, not self.page.order.oldest_first)

    @property
    def other_order_url(self) -> str:
        return self.order_url(self.other_order)

    @property
    def other_order_name(self) -> str:
        return str(
            self.model_admin.orders[self.other_order.at][self.other_order.oldest_first]
        )
