"""The lists: Django's change list, except that it neither counts a whole table nor skips rows by OFFSET.

A page begins after the last row of the page before, whose timestamp and id are in the address. So a late page is as
fast as the first, and new rows do not move others to another page.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ERROR_FLAG, ChangeList
from django.db import connections
from django.db.models import F, OrderBy, Q
from django.db.models.lookups import GreaterThan, LessThan
from django.http import HttpRequest
from django.utils import timezone
from django.utils.text import capfirst
from django.utils.translation import gettext

from agentdb.admin.display import name_of, viewable
from agentdb.admin.filters import ColumnFilter
from agentdb.admin.rows import find_linked
from agentdb.console.figures import Figure, capped_count
from agentdb.console.questions import Problem, Unanswered, ask, question
from agentdb.console.reading import is_unreadable, read
from agentdb.expressions import CodePointOrder

COUNT_SECONDS = 1.0
# Out of the five seconds of a page. A query without an index reads a million rows in less than a second.
SEARCH_SECONDS = 3.0

AFTER = "after"  # the query parameter of a page's place


class Order(NamedTuple):
    """The timestamp that orders a list, and its direction; the id decides between rows of the same instant."""

    at: str
    oldest_first: bool = False

    def expressions(self) -> list[Any]:
        # The id makes the order total: without it, rows of the same instant could be on two pages or on none. Its order
        # is that of the index, whatever the locale of the server.
        return [
            OrderBy(each, descending=not self.oldest_first)
            for each in (F(self.at), CodePointOrder("id"))
        ]

    def place(self, rows: Iterable[Any]) -> str | None:
        """Return the place of the first row whose timestamp and id can be read, for ``beyond``; None if there is none.

        Called with the last row of a page first: the next page begins after it.
        """
        for row in rows:
            at = getattr(row, self.at)
            if is_unreadable(at) or is_unreadable(row.pk):
                continue
            return f"{at.isoformat()},{row.pk}"
        return None

    def beyond(self, place: str) -> Q:
        """Return the condition of the rows after a place, which comes from the address.

        Raises ``IncorrectLookupParameters`` for a place that is none; Django then redirects to the first page.
        """
        # Whoever edits the address can name times outside the calendar.
        text, _, id = place.partition(",")
        try:
            at = datetime.fromisoformat(text).astimezone(UTC)
        except (ValueError, OverflowError) as error:
            raise IncorrectLookupParameters(error) from error
        lookup = "gt" if self.oldest_first else "lt"
        compare = GreaterThan if self.oldest_first else LessThan
        # An index finds the place by the first condition alone, which the second implies. The second leaves out rows
        # of the same instant that the page before has shown. Django has no row values, (at, id) < (x, y).
        from_here = Q((f"{self.at}__{lookup}e", at))
        later = Q((f"{self.at}__{lookup}", at))
        behind = Q(compare(CodePointOrder("id"), id))
        return from_here & (later | behind)


class RowList(ChangeList):
    """Django's change list, page by page from a place in its order.

    The template gets the rows in ``result_list``, and what else it shows of the list in the attributes below.
    """

    model_admin: Any  # a ReadFirstAdmin
    order: Order
    total: Figure | None = None  # rows on all pages; None if that took too long
    is_cut_off = False  # not all rows were searched
    is_first: bool  # the page
    end: str | None = None  # the place after which the next page begins, if any
    problems: list[Problem]  # what could not be read
    sentences: list[str]  # what the address means, where that is not what it says

    def get_filters(self, request: HttpRequest) -> Any:
        """Leave out our own parameter, which Django would take for a lookup on a column, and refuse."""
        # Django builds the links of filters and headings from these parameters too. Without the place in them, a link
        # that changes a filter leads to the first page.
        self.params.pop(AFTER, None)
        self.filter_params.pop(AFTER, None)
        return super().get_filters(request)

    def get_ordering(self, request: HttpRequest, queryset: Any) -> Any:
        """Return the order that Django reads from the address, or the list's own one; sets ``order``."""
        # Django sorts by several columns, of which a list takes the first.
        asked = str(super().get_ordering(request, queryset)[0])
        at = asked.removeprefix("-")
        self.order = Order(at, oldest_first=at == asked)
        return self.order.expressions()

    def get_results(self, request: HttpRequest) -> None:
        """Read the page's rows, and what they name, and count all that match."""
        # Django's own part sets what templates of Django and of themes read, and counts no rows.
        found = self.queryset
        self.queryset = found.none()
        super().get_results(request)
        self.queryset = found
        self.now = timezone.now()
        self.problems = []
        self.sentences = [spec.mistake for spec in self._active if spec.mistake]
        if ERROR_FLAG in request.GET:
            self.sentences.append(
                gettext("The link names an invalid position; this is the first page.")
            )
        after = request.GET.get(AFTER, "")
        self.is_first = not after
        rows = self._rows(after)
        self.result_list = rows[: self.list_per_page]
        self.result_count = len(self.result_list)
        # No number is known then, and there are no rows to look anything up for.
        if self.is_cut_off:
            return
        has_more = len(rows) > self.list_per_page
        if has_more:
            last_first = reversed(self.result_list)
            self.end = self.order.place(last_first)
        if self.is_first and not has_more:
            self.total = Figure(self.result_count)
        else:
            # None if counting, up to the limit of capped_count, takes too long.
            count = partial(capped_count, self.queryset)
            connection = connections[self.queryset.db]
            self.total = ask(connection, count, seconds=COUNT_SECONDS).value
        allowed = viewable(self.model_admin.admin_site, request)
        find_linked(self.result_list, self.queryset.db, allowed, self.problems)

    def _rows(self, after: str) -> list[Any]:
        """Return the rows after a place, and one more than a page has if there are more.

        A search without an index is stopped after ``SEARCH_SECONDS``; the page then says so.
        """
        # The extra row says whether there is a next page, which otherwise would need a count.
        rows = self.queryset
        if after:
            rows = rows.filter(self.order.beyond(after))
        wanted = rows[: self.list_per_page + 1]
        try:
            with question(connections[rows.db], SEARCH_SECONDS):
                return read(wanted, self.problems)
        except Unanswered as error:
            # The list's own order has an index. If even that query is slow, the database has a problem.
            is_indexed = f"-{self.order.at}" in self.model_admin.ordering
            is_search = self.set_filters or not is_indexed
            if not (error.is_cut_off and is_search):
                raise
        self.is_cut_off = True
        text = gettext(
            "The search was stopped after %g seconds. Add a filter, or a period such as &from=2h."
        )
        self.sentences.append(text % SEARCH_SECONDS)
        return []

    @property
    def _active(self) -> list[ColumnFilter]:
        """The filters that the address sets. A host project's own admin may have others, of other classes."""
        return [
            spec
            for spec in self.filter_specs
            if isinstance(spec, ColumnFilter) and spec.shown
        ]

    @property
    def set_filters(self) -> list[tuple[str, str]]:
        """Return the name and value of each set filter and the search."""
        found = [(capfirst(str(spec.title)), spec.shown) for spec in self._active]
        if self.query:
            found.append((gettext("Contains"), self.query))
        return found

    @property
    def names(self) -> str:
        """The model's name, in the number of the rows on all pages; the plural if that is unknown."""
        rows = self.total.rows if self.total else 0
        return name_of(self.model, rows)
