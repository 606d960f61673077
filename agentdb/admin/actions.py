"""Actions on rows: ask first, act through the Db in batches, write the audit log, and report what was done."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, NamedTuple

from django.contrib.admin import helpers
from django.db import connections, router
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.http import HttpRequest, HttpResponse, QueryDict
from django.utils import timezone
from django.utils.functional import Promise
from django.utils.translation import gettext, gettext_lazy

from agentdb.admin.audit import Entry, log_in_project, record, refuse
from agentdb.admin.display import name_of, own_url, page, page_url
from agentdb.admin.guard import guard
from agentdb.console.display import readable
from agentdb.console.questions import ask
from agentdb.console.reading import read
from agentdb.errors import AgentDbError
from agentdb.interface import Db, SandboxState, SessionStatus
from agentdb.models import Session
from agentdb.querysets import ALIVE, LIVE
from agentdb.serving.adapter import DjangoDb

# Rows in one transaction: a failing batch rolls back alone, and locks are short.
BATCH = 200
# Seconds of batches in one response; then the page shows the progress and requests the rest.
STEP_SECONDS = 2.0
NAMED = 10  # rows named in a question; the others are counted
MOST_LISTED = 1_000  # rows that a result names
# Bytes of a form field for later steps and "Undo", below Django's limit for a whole request.
LONGEST_LINE = 1_500_000


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
    keeps_before: bool = False  # the result needs what the rows were before
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
        """Ask; after confirmation act on the ticked rows, or on all that the list's filters leave."""
        asked = Asked.of(request)
        work = Work(self, model_admin, request, asked)
        if asked.is_all:
            rows = listed.filter(created_at__lte=asked.at)
            # Without those that would be skipped: a runner may have millions of ended sessions.
            if self.only:
                column = self.columns[0]
                rows = rows.filter(Q((f"{column}__in", self.only)))
        else:
            # The list's filters may leave out a ticked row that has changed since.
            own = model_admin.get_queryset(request)
            rows = own.filter(pk__in=asked.ids)
        if asked.confirmed is None:
            return work.question(rows)
        return work.run(rows)

    def changes(self, row: Any) -> bool:
        """Return whether it makes sense for the row."""
        value = getattr(row, self.columns[0])
        return not self.only or value in self.only


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
    keeps_before=True,
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
    keeps_before=True,
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


class Asked(NamedTuple):
    """The form of an action: the rows, whether the user confirmed, and the progress.

    Django's list sends the first one. The question and each result send the next, until all rows were acted on.
    """

    ids: Sequence[str]
    is_all: bool
    confirmed: int | None  # rows; None before the user confirmed
    at: datetime  # when the question was shown: later rows are not included
    sure: bool
    reached: str  # the last id that was processed
    done: int
    skipped: int
    before: Mapping[str, Any]  # what the rows of earlier steps were, by id

    @classmethod
    def of(cls, request: HttpRequest) -> Asked:
        """Read the form. Whoever edits it by hand gets the defaults of what cannot be read."""
        post = request.POST
        # PostgreSQL refuses NUL in a text.
        chosen = post.getlist(helpers.ACTION_CHECKBOX_NAME)
        ids = [id for id in chosen if id and "\x00" not in id]
        reached = post.get("reached", "")
        asked_at = readable(post.get("asked_at"))
        return cls(
            ids=ids,
            is_all=post.get("select_across") == "1",
            confirmed=_number(post, "confirmed") if post.get("confirmed") else None,
            at=asked_at or timezone.now(),
            sure=post.get("sure") == "1",
            reached=reached.replace("\x00", ""),
            done=_number(post, "done"),
            skipped=_number(post, "skipped"),
            # Nothing if it was edited by hand, or was too long for the form.
            before=_read_line(post.get("lines", ""))[1],
        )


def _number(post: QueryDict, field: str) -> int:
    """Return the number in a field of a form, or 0."""
    text = post.get(field, "")
    # int() raises for a text of thousands of digits.
    if text.isdecimal() and len(text) < 12:
        return int(text)
    return 0


@dataclass
class Work:
    """The work of one response on the rows, and its results. ``error`` says why it stopped.

    A response asks first; after that it acts for ``STEP_SECONDS``, and its page requests the next one by itself.
    """

    action: Action
    model_admin: Any
    request: HttpRequest
    asked: Asked
    rows: list[Any] = field(default_factory=list)
    before: dict[str, Any] = field(default_factory=dict)
    skipped: dict[str, list[str]] = field(default_factory=dict)  # ids by the reason
    error: str = ""

    def run(self, rows: QuerySet[Any]) -> HttpResponse:
        """Act on the rows, ``BATCH`` in each transaction, for a while."""
        # At least one batch in each response, or a slow database would never come to an end.
        ends_at = time.monotonic() + STEP_SECONDS
        begin = reached = self.asked.reached
        while ids := self._next_ids(rows, reached):
            if reached != begin and time.monotonic() > ends_at:
                return self.result(reached)
            self._act(ids)
            if self.error:
                break
            reached = ids[-1]
        return self.result()

    def _next_ids(self, rows: QuerySet[Any], reached: str) -> Sequence[str]:
        """Return the next batch after ``reached``, by id, and no more rows than the user confirmed.

        Ticked ids are included even if their rows are gone, so that the result says so.
        """
        # By id, so that each request begins where the one before ended, whatever was created or deleted meanwhile.
        asked = self.asked
        if not asked.is_all:
            rest = [id for id in set(asked.ids) if id > reached]
            return sorted(rest)[:BATCH]
        confirmed = asked.confirmed or 0
        allowed = confirmed - asked.done - len(self.rows)
        if allowed <= 0:
            return []
        if reached:
            rows = rows.filter(pk__gt=reached)
        ids = rows.order_by("pk").values_list("pk", flat=True)
        return list(ids[:allowed][:BATCH])

    def _act(self, ids: Sequence[str]) -> None:
        """Act on a batch and write the audit log, in one transaction; sets ``error`` if it is rolled back."""
        alias = router.db_for_write(self.model_admin.model)
        rows = self.model_admin.get_queryset(self.request).using(alias)
        entry = Entry(self.action.verb)
        reasons: dict[str, str] = {}

        # After a conflict, run_transaction calls this again, and only what the last call noted was stored.
        def act_and_write(db: Db) -> None:
            nonlocal entry
            found = rows.filter(pk__in=ids).order_by("pk")
            kept = self._kept(found)
            row_of = {row.pk: row for row in found}
            for id in ids:
                reasons[id] = self._change(db, row_of.get(id), kept)
            changed = [row for row in found if not reasons[row.pk]]
            if rows.model is Session:
                # An operator's write is not a sign of life, but the Db sets last_active_at with every status. The rows
                # were read in this transaction, so this writes back what it was.
                sessions = Session.objects.using(alias)
                sessions.bulk_update(changed, ["last_active_at"], batch_size=BATCH)
            before = self._values(changed)
            written = rows.filter(pk__in=list(before))
            # A row that was deleted is None.
            after = dict.fromkeys(before) | self._values(written)
            entry = Entry(
                self.action.verb,
                changed,
                before,
                after,
            )
            # Inside the transaction: if the line cannot be written, nothing happens.
            if changed:
                record(self.request, entry)

        try:
            DjangoDb(alias).run_transaction(act_and_write)
        except (AgentDbError, OSError) as error:
            self.error = str(error)
            # An OSError came from the audit log itself: it cannot record that either.
            if entry.rows and isinstance(error, AgentDbError):
                record(self.request, entry, "undone")
            return
        log_in_project(self.request, entry)
        self.rows += entry.rows
        self.before |= entry.before
        self._skip(reasons)

    def _skip(self, reasons: Mapping[str, str]) -> None:
        """Note the ids that were skipped, by the reason, which is '' for the others."""
        for id, why in reasons.items():
            if why:
                self.skipped.setdefault(why, []).append(id)

    def _kept(self, rows: QuerySet[Any]) -> Collection[str]:
        """Return the ids of the rows that are changed only if the user is sure."""
        if self.action is not DELETE_SANDBOX or self.asked.sure:
            return ()
        endangered = _endangered(rows)
        return {row.pk for row in endangered}

    def _change(self, db: Db, row: Any, kept: Collection[str]) -> str:
        """Act on a row, which is None if it is gone. Return why it was skipped, or '' if it was changed."""
        if row is None:
            return gettext("no longer there")
        if row.pk in kept:
            return gettext("a live session runs in it")
        if self.action.changes(row) and self.action.act(db, row.pk):
            return ""
        return str(getattr(row, self.action.columns[0]))

    def _values(self, rows: Iterable[Any]) -> dict[str, Any]:
        """Return what the audit log records of each row, by id: a value, or several by column."""
        # With one column, the log's line has {"id": "active"} instead of {"id": {"status": "active"}}.
        first, *others = self.action.columns
        values: dict[str, Any] = {}
        for row in rows:
            values[row.pk] = getattr(row, first)
            if others:
                values[row.pk] = {
                    column: getattr(row, column) for column in self.action.columns
                }
        return values

    def question(self, rows: QuerySet[Any]) -> HttpResponse:
        """Ask whether to act on the rows; the form has their number, and their ids if they were ticked."""
        # Counted exactly, not up to a limit: the user confirms this number, and no more rows than that are changed.
        in_order = rows.order_by("pk")
        if self.asked.is_all:
            found = read(in_order[:NAMED], [])
            count = rows.count()
        else:
            found = read(in_order[:MOST_LISTED], [])
            count = len(found)
        named = found[:NAMED]
        endangered: int | None = 0
        if self.action is DELETE_SANDBOX:
            # All sandboxes of a large tenant may be meant: without an answer in time the page asks anyway.
            count_them = _endangered(rows).count
            endangered = ask(connections[rows.db], count_them).value
        return self._page(
            "confirm_action",
            count,
            self.action.asks,
            rows=named,
            more=count - len(named),
            # Django runs no action without a ticked row, also if all are meant.
            ids=[row.pk for row in found],
            asks_more=endangered != 0,
            endangered=endangered,
        )

    def result(self, reached: str = "") -> HttpResponse:
        """Return what was done and skipped, and a form that continues after ``reached`` if there is more."""
        asked = self.asked
        # Of all steps: the form has the numbers of those before.
        count = asked.done + len(self.rows)
        skipped = asked.skipped
        skipped += sum(len(ids) for ids in self.skipped.values())
        before = {**asked.before, **self.before}
        line = self._line(before)
        # A part of them would undo a part of the work, and look like all of it.
        is_whole = bool(line) and len(before) >= count
        folders: list[tuple[str, Any]] = []
        if self.action is DELETE_SANDBOX and is_whole:
            folders = list(before.items())[:MOST_LISTED]
        rows = self.rows[:MOST_LISTED]
        undo_url = ""
        if count and self.action is PAUSE:
            undo_url = page_url(self.model_admin.admin_site, "undo")
        return self._page(
            "action_done",
            count,
            self.action.done,
            work=self,
            rows=rows,
            more=count - len(folders or rows),
            reached=reached,
            skipped_count=skipped,
            tried=count + skipped,
            ids=asked.ids,
            lines=line,
            folders=folders,
            is_too_long=count and self.action.keeps_before and not is_whole,
            undo_url=undo_url,
        )

    def _page(
        self,
        template: str,
        count: int,
        text: Any,
        **context: Any,
    ) -> HttpResponse:
        """Return a page about ``count`` rows, with what the next step of its form needs."""
        name = name_of(self.model_admin.model, count)
        return page(
            self.model_admin,
            self.request,
            template,
            title=str(text) % f"{count:,} {name}",
            name=name,
            count=count,
            action=self.action,
            asked=self.asked,
            next=own_url(self.request, "next"),
            **context,
        )

    def _line(self, before: Mapping[str, Any]) -> str:
        """Return a line like those of the audit log, for "Undo" and the next step; '' if it is too long for a form."""
        if not self.action.keeps_before:
            # The next step of a resume needs what it has resumed until now.
            return self.request.POST.get("lines", "")
        entry = {
            "action": self.action.verb,
            "before": before,
        }
        line = json.dumps(entry)
        return line if len(line) <= LONGEST_LINE else ""


def _endangered(sandboxes: QuerySet[Any]) -> QuerySet[Any]:
    """Return those of the sandboxes that are up and have a live session."""
    live = Session.objects.using(sandboxes.db).live()
    its_session = live.filter(pk=OuterRef("session_id"))
    return sandboxes.filter(
        Exists(its_session),
        state__in=ALIVE,
    )


# -- lines of the audit log: what rows were before


def _read_line(line: str) -> tuple[str, Mapping[str, Any]]:
    """Return the action and the earlier rows by id; text before the JSON, as in a terminal, is ignored.

    The action is '' if it was refused or rolled back, or if the text is not a line of the audit log.
    """
    try:
        begin = line.index("{")
        found = json.loads(line[begin:])
        # The lines of a form have no outcome.
        is_done = found.get("outcome", "done") == "done"
        action = str(found["action"]) if is_done else ""
        # Unlike dict(), this refuses a list of pairs.
        before = {**found["before"]}
    except (ValueError, KeyError, TypeError, RecursionError):
        return "", {}
    return action, before


def _paused_by(lines: str) -> dict[str, str]:
    """Return the statuses before the pause, by session id, from lines of the audit log.

    Raises ``ValueError`` for a line that does not record a pause.
    """
    statuses: dict[str, str] = {}
    for pasted in lines.splitlines():
        line = pasted.strip()
        if not line:
            continue
        action, before = _read_line(line)
        # Only what a pause can have changed: the line may have been edited by hand.
        known = {id: status for id, status in before.items() if status in LIVE}
        is_pause = action.startswith(PAUSE.verb)
        if not is_pause or not known:
            text = gettext("This line does not say that sessions were paused: %s")
            raise ValueError(text % line[:80])
        statuses |= known
    return statuses


@guard
def undo(model_admin: Any, request: HttpRequest) -> HttpResponse:
    """Restore the status of sessions that are still paused, from lines of the audit log.

    The result of a pause sends its lines. Later, somebody pastes them from the log.
    """
    if not model_admin.has_act_permission(request):
        refuse(request, "resume")
    problem = ""
    lines = request.POST.get("lines", "")
    if request.method == "POST":
        try:
            return _resume(model_admin, request, _paused_by(lines))
        except ValueError as error:
            problem = str(error)
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
        return db.update_session_status(
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
    )
    asked = Asked.of(request)._replace(ids=list(before), confirmed=len(before))
    work = Work(resume, model_admin, request, asked)
    # The ids are in the form, as if they were ticked: no query has to find them.
    return work.run(Session.objects.none())
