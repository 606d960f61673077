"""Actions on rows: ask first, act through the Db in batches, write the audit log, and report what was done."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

from django.core import signing
from django.core.exceptions import SuspiciousOperation
from django.db import connections, router
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.functional import Promise
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.translation import gettext, gettext_lazy

from agentdb import inputs
from agentdb.admin.audit import Entry, log_in_project, record, refuse
from agentdb.admin.display import name_of, page
from agentdb.console.questions import ask
from agentdb.console.reading import is_unreadable, read, read_stored
from agentdb.errors import AgentDbError
from agentdb.interface import Db, SandboxState, SessionStatus
from agentdb.models import Session
from agentdb.querysets import ALIVE, LIVE
from agentdb.serving.adapter import DjangoDb

# Rows in one transaction, and in one response: locks are short, and the page shows the progress and requests the rest.
BATCH = 500
NAMED = 10  # rows named in a question; the others are counted
MOST_LISTED = 1_000  # rows that a result names
# Characters of a line for "Undo". Steps send it beside what they have done, within Django's limit for a request.
LONGEST_LINE = 1_000_000

# Sandboxes that are up and have a live session.
_ENDANGERED = Q(
    Exists(Session.objects.live().filter(pk=OuterRef("session_id"))),
    state__in=ALIVE,
)


class Asked(NamedTuple):
    """What the user confirmed, and how far it is done.

    It is in the form of the question and of each result, signed, so that nobody has edited it.
    """

    ids: Sequence[str]  # the next rows; all of them if they were ticked
    is_all: bool  # not ticked, but all that the list's filters leave
    confirmed: int  # rows
    at: str  # when the question was shown: later rows are not included
    back: str  # the page that the user came from
    done: int
    before: Mapping[str, Any]  # what the changed rows were, by id

    @classmethod
    def of(cls, request: HttpRequest) -> Self | None:
        """Return what the form has; None if the user has confirmed nothing yet."""
        try:
            found = signing.loads(request.POST.get("asked", ""), salt=__name__)
        except signing.BadSignature:
            return None
        return cls(*found)

    def __str__(self) -> str:
        return signing.dumps(self, salt=__name__, compress=True)


@dataclass(frozen=True)
class Action:
    """An action of Django's admin that asks first, and can also be done to one row on its page.

    ``act`` gets the id, and returns whether it changed the row. It may be called again after a conflict.
    """

    # Django reads __name__ and short_description, and its templates would call whatever can be called. The model admin
    # asks for the permission, of a project's actions too.
    do_not_call_in_templates: ClassVar = True
    name: str  # in Django's form
    verb: str  # in the audit log
    columns: tuple[str, ...]  # recorded there
    act: Callable[[Db, str], bool]
    button: str | Promise
    asks: str | Promise  # with how many of what
    done: str | Promise
    warning: str | Promise = ""  # what the question says besides
    short_description: str | Promise = ""  # in Django's form
    deletes: bool = False
    only: Collection[str] = ()  # the values of the first column that it changes, or all

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(
        self,
        model_admin: Any,
        request: HttpRequest,
        listed: QuerySet[Any],
    ) -> HttpResponse:
        """Ask; after the confirmation act on the next rows of those that were ticked, or that the filters leave."""
        # No list sends NUL, which PostgreSQL refuses in a text.
        if "%00" in request.POST.urlencode():
            raise SuspiciousOperation(gettext("An id has a NUL character."))
        rows = self._changed_of(listed)
        asked = Asked.of(request)
        if asked is None:
            return self._question(model_admin, request, rows)
        return self.run(model_admin, request, asked, rows)

    def changes(self, row: Any) -> bool:
        """Return whether it makes sense for the row."""
        value = getattr(row, self.columns[0])
        return not self.only or value in self.only

    def _changed_of(self, rows: QuerySet[Any]) -> QuerySet[Any]:
        """Return those of the rows that it changes, by id."""
        if self.only:
            column = self.columns[0]
            rows = rows.filter(Q((f"{column}__in", self.only)))
        return rows.order_by("pk")

    def _question(
        self,
        model_admin: Any,
        request: HttpRequest,
        rows: QuerySet[Any],
    ) -> HttpResponse:
        # Counted exactly, not up to a limit: the user confirms this number, and no more rows than that are changed.
        count = rows.count()
        named = read(rows[:NAMED], [])
        # A row that has come since is not included.
        ids = rows.values_list("pk", flat=True)[:count]
        is_all = request.POST.get("select_across") == "1"
        if is_all:
            ids = ids[:BATCH]
        endangered: int | None = 0
        if self is DELETE_SANDBOX:
            # All sandboxes of a large tenant may be meant: without an answer in time the page asks anyway.
            count_them = rows.filter(_ENDANGERED).count
            endangered = ask(connections[rows.db], count_them).value
        back = request.headers.get("Referer", "")
        if not url_has_allowed_host_and_scheme(back, request.get_host()):
            back = request.get_full_path()
        return self._page(
            model_admin,
            request,
            "confirm_action",
            self.asks,
            count,
            asked=Asked(
                list(ids),
                is_all,
                count,
                timezone.now().isoformat(),
                back,
                0,
                {},
            ),
            rows=named,
            more=count - len(named),
            asks_more=endangered != 0,
            endangered=endangered,
        )

    def run(
        self,
        model_admin: Any,
        request: HttpRequest,
        asked: Asked,
        rows: QuerySet[Any],
    ) -> HttpResponse:
        """Act on the next rows, and report what was done until now, with a form that requests the rest.

        If they were not ticked, the rest are those of ``rows`` with later ids, whatever was created or deleted
        meanwhile, and no more than the user confirmed.
        """
        ids, rest = asked.ids[:BATCH], asked.ids[BATCH:]
        entry, error = self._act(model_admin, request, ids)
        done = asked.done + len(entry.rows)
        if asked.is_all:
            later = rows.filter(pk__gt=ids[-1], created_at__lte=asked.at)
            left = asked.confirmed - done
            rest = list(later.values_list("pk", flat=True)[: min(left, BATCH)])
        before = {**asked.before, **entry.before}
        # Like a line of the audit log, for "Undo".
        line = json.dumps({"action": self.verb, "before": before})
        is_whole = len(before) == done and len(line) <= LONGEST_LINE
        # A part of them would undo a part of the work, and look like all of it.
        if not is_whole:
            before = {}
        listed = list(before.items())[:MOST_LISTED]
        return self._page(
            model_admin,
            request,
            "action_done",
            self.done,
            done,
            asked=asked._replace(ids=rest, done=done, before=before),
            goes_on=rest and not error,
            error=error,
            skipped=asked.confirmed - done,
            line=line,
            is_whole=is_whole,
            listed=listed,
            more=done - len(listed),
        )

    def _act(
        self,
        model_admin: Any,
        request: HttpRequest,
        ids: Sequence[str],
    ) -> tuple[Entry, str]:
        """Act on the rows and write the audit log, in one transaction.

        Return what was done, and '', or the reason why nothing was.
        """
        alias = router.db_for_write(model_admin.model)
        own = model_admin.get_queryset(request).using(alias)
        nothing = entry = Entry(self.verb)

        # After a conflict, run_transaction calls this again, and only what the last call noted was stored.
        def act_and_write(db: Db) -> None:
            nonlocal entry
            found = self._changed_of(own.filter(pk__in=ids))
            if self is DELETE_SANDBOX and request.POST.get("sure") != "1":
                found = found.exclude(_ENDANGERED)
            # As stored: no value that cannot be read may keep a key from being revoked.
            changed = [row for row in read_stored(found) if self.act(db, row.pk)]
            if own.model is Session:
                # An operator's write is not a sign of life, but the Db sets last_active_at with every status. The rows
                # were read in this transaction, so this writes back what it was, if that is a time.
                timed = [
                    row for row in changed if not is_unreadable(row.last_active_at)
                ]
                # A project's own queryset may leave out what is paused.
                sessions = Session.objects.using(alias)
                sessions.bulk_update(timed, ["last_active_at"])
            before = self._values(changed)
            written = own.filter(pk__in=list(before))
            # A row that was deleted is None.
            after = dict.fromkeys(before) | self._values(read_stored(written))
            entry = Entry(self.verb, changed, before, after)
            # Inside the transaction: if the line cannot be written, nothing happens.
            if changed:
                record(request, entry)

        try:
            DjangoDb(alias).run_transaction(act_and_write)
        except (AgentDbError, OSError) as error:
            # An OSError came from the audit log itself: it cannot record that either.
            if entry.rows and isinstance(error, AgentDbError):
                record(request, entry, "undone")
            return nothing, str(error)
        log_in_project(request, entry)
        return entry, ""

    def _values(self, rows: Iterable[Any]) -> dict[str, Any]:
        """Return what the audit log records of each row, by id: a value, or several by column."""
        # With one column, the log's line has {"id": "active"} instead of {"id": {"status": "active"}}.
        first, *others = self.columns
        values: dict[str, Any] = {}
        for row in rows:
            values[row.pk] = getattr(row, first)
            if others:
                values[row.pk] = {
                    column: getattr(row, column) for column in self.columns
                }
        return values

    def _page(
        self,
        model_admin: Any,
        request: HttpRequest,
        template: str,
        text: Any,
        count: int,
        **context: Any,
    ) -> HttpResponse:
        """Return a page about ``count`` rows, whose title is the text with their number and name."""
        name = name_of(model_admin.model, count)
        return page(
            model_admin,
            request,
            template,
            title=str(text) % f"{count:,} {name}",
            name=name,
            count=count,
            action=self,
            **context,
        )


def _pause(db: Db, id: str) -> bool:
    # The Db compares and writes in one statement, so that a session which ends meanwhile stays ended.
    return db.update_session_status(
        id,
        SessionStatus.PAUSED,
        only_if=(SessionStatus.ACTIVE, SessionStatus.STARTING),
    )


PAUSE = Action(
    "pause_sessions",
    "pause",
    ("status",),
    _pause,
    gettext_lazy("Pause"),
    gettext_lazy("Pause %s"),
    gettext_lazy("Paused %s"),
    gettext_lazy(
        "Only active and starting sessions are paused. This writes the status; it does not reach the runner."
    ),
    short_description=gettext_lazy("Pause selected sessions"),
    only=LIVE,
)
COOL = Action(
    "mark_cold",
    "mark cold",
    ("state",),
    lambda db, id: db.update_sandbox_state(id, SandboxState.COLD),
    gettext_lazy("Mark cold"),
    gettext_lazy("Mark %s cold"),
    gettext_lazy("Marked %s cold"),
    gettext_lazy("This records that no process runs in them; it does not stop one."),
    short_description=gettext_lazy("Mark selected sandboxes cold"),
    # A row that would not change does not belong in the audit log.
    only=[str(state) for state in SandboxState if state != SandboxState.COLD],
)
DELETE_SANDBOX = Action(
    "delete_sandboxes",
    "delete",
    ("state", "workspace_dir"),
    lambda db, id: db.delete_sandbox(id),
    gettext_lazy("Delete"),
    gettext_lazy("Delete %s"),
    gettext_lazy("Deleted %s"),
    gettext_lazy(
        "The rows are removed. Workspace folders stay on disk; the next page lists them."
    ),
    short_description=gettext_lazy("Delete selected sandboxes"),
    deletes=True,
)
REVOKE = Action(
    "revoke_keys",
    "revoke",
    ("label",),
    lambda db, id: db.delete_api_key(id),
    gettext_lazy("Revoke"),
    gettext_lazy("Revoke %s"),
    gettext_lazy("Revoked %s"),
    gettext_lazy(
        "Whoever uses one of them is locked out at once. This cannot be undone."
    ),
    short_description=gettext_lazy("Revoke selected API keys"),
    deletes=True,
)


def _paused_by(lines: str) -> dict[str, str]:
    """Return the statuses before the pause, by session id, from lines of the audit log.

    Raises ``ValueError`` for a line that does not record a pause.
    """
    statuses: dict[str, str] = {}
    for pasted in lines.splitlines():
        line = pasted.strip()
        if not line:
            continue
        known = {}
        # An error leaves none: the text may be anything.
        with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
            begin = line.index("{")  # after what a terminal has before it
            found = json.loads(line[begin:])
            is_done = found.get("outcome", "done") == "done"
            if is_done and found["action"].startswith(PAUSE.verb):
                # Only what a pause can have changed: the line may have been edited by hand. Ids are those that every
                # engine can store.
                before = found["before"].items()
                known = {
                    inputs.text("id", id): status
                    for id, status in before
                    if status in LIVE
                }
        if not known:
            text = gettext("This line does not say that sessions were paused: %s")
            raise ValueError(text % line[:80])
        statuses |= known
    return statuses


def undo(model_admin: Any, request: HttpRequest, allowed: object) -> HttpResponse:
    """Restore the status of sessions that are still paused, from lines of the audit log.

    The result of a pause sends its line. Later, somebody pastes them from the log.
    """
    if not model_admin.has_act_permission(request):
        refuse(request, "resume")
    problem = ""
    lines = request.POST.get("lines", "")
    if request.method == "POST":
        try:
            before = _paused_by(lines)
        except ValueError as error:
            problem = str(error)
        else:
            return _resume(model_admin, request, before)
    return page(
        model_admin,
        request,
        "undo",
        title=gettext("Resume what was paused"),
        lines=lines,
        problem=problem,
    )


def _resume(
    model_admin: Any,
    request: HttpRequest,
    before: Mapping[str, str],
) -> HttpResponse:
    """Set the sessions, those that are still paused, to the statuses by id."""

    def act(db: Db, id: str) -> bool:
        # Not if the lines were edited after the first step.
        return id in before and db.update_session_status(
            id,
            SessionStatus(before[id]),
            only_if=SessionStatus.PAUSED,
        )

    resume = Action(
        "resume",
        "resume",
        ("status",),
        act,
        gettext("Resume"),
        gettext("Resume %s"),
        gettext("Resumed %s"),
        only=(SessionStatus.PAUSED.value,),
    )
    # The ids are in the form, as if they were ticked: no query has to find them.
    asked = Asked.of(request) or Asked(list(before), False, len(before), "", "", 0, {})
    return resume.run(model_admin, request, asked, Session.objects.none())
