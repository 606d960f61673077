"""Actions on rows: ask first, act through the Db in batches, write the audit log, and report what was done."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from django.contrib.admin import helpers
from django.db import connections, router
from django.db.models import Exists, OuterRef, QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from django.utils.functional import Promise
from django.utils.translation import gettext, gettext_lazy

from agentdb.admin.audit import Outcome, log_in_project, record, refuse
from agentdb.admin.display import name_of, own_url, page, page_url
from agentdb.admin.guard import guard
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
LONGEST_LINES = 1_500_000
# Instead of such lines, so that the last page knows that some are missing.
TOO_LONG = "too long"


@dataclass(frozen=True, slots=True)
class Action:
    """Something that can be done to a row; ``act`` returns the reason if it was skipped, else ''."""

    name: str
    verb: str  # its name in the audit log, and the columns recorded there
    columns: tuple[str, ...]
    act: Callable[[Db, str, bool], str]
    button: str | Promise
    asks: str | Promise  # with how many of what
    done: str | Promise
    warning: str | Promise = ""
    deletes: bool = False
    keeps_lines: bool = False  # the result needs what the rows were before
    only: Collection[str] = ()  # the values of the first column that it changes, or all

    def changes(self, row: Any) -> bool:
        return not self.only or getattr(row, self.columns[0]) in self.only


def _pause(db: Db, id: str, sure: bool) -> str:
    session = db.get_session(id)
    if session is None:
        return _gone()
    if session.status not in LIVE:
        return session.status
    return _gone(db.update_session_status(id, SessionStatus.PAUSED))


def _cool(db: Db, id: str, sure: bool) -> str:
    sandbox = db.get_sandbox(id)
    if sandbox is not None and sandbox.state == SandboxState.COLD:
        return gettext("already cold")
    return _gone(db.update_sandbox_state(id, SandboxState.COLD))


def _delete_sandbox(db: Db, id: str, sure: bool) -> str:
    sandbox = None if sure else db.get_sandbox(id)
    if sandbox is not None and sandbox.state in ALIVE and sandbox.session_id:
        session = db.get_session(sandbox.session_id)
        if session is not None and session.status in LIVE:
            return gettext("a live session runs in it")
    return _gone(db.delete_sandbox(id))


def _revoke(db: Db, id: str, sure: bool) -> str:
    return _gone(db.delete_api_key(id))


def _gone(is_there: bool = False) -> str:
    return "" if is_there else gettext("no longer there")


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
    keeps_lines=True,
    only=LIVE,
)
COOL = Action(
    "mark_cold",
    "mark cold",
    ("state",),
    _cool,
    gettext_lazy("Mark cold"),
    gettext_lazy("Mark %s cold"),
    gettext_lazy("Marked %s cold"),
    gettext_lazy("This records that no process runs in them; it does not stop one."),
    only=[str(state) for state in SandboxState if state != SandboxState.COLD],
)
DELETE_SANDBOX = Action(
    "delete_sandboxes",
    "delete",
    ("state", "workspace_dir"),
    _delete_sandbox,
    gettext_lazy("Delete"),
    gettext_lazy("Delete %s"),
    gettext_lazy("Deleted %s"),
    gettext_lazy(
        "The rows are removed. Workspace folders stay on disk; the next page lists them."
    ),
    deletes=True,
    keeps_lines=True,
)
REVOKE = Action(
    "revoke_keys",
    "revoke",
    ("label",),
    _revoke,
    gettext_lazy("Revoke"),
    gettext_lazy("Revoke %s"),
    gettext_lazy("Revoked %s"),
    gettext_lazy(
        "Whoever uses one of them is locked out at once. This cannot be undone."
    ),
    deletes=True,
)


# Its ``act`` depends on the statuses to restore.
RESUME = Action(
    "resume",
    "resume",
    ("status",),
    _pause,
    gettext_lazy("Resume"),
    gettext_lazy("Resume %s"),
    gettext_lazy("Resumed %s"),
)


@dataclass(frozen=True, slots=True)
class Asked:
    """The form of an action: the rows, whether the user confirmed, and the progress."""

    ids: Sequence[str]
    is_all: bool
    confirmed: int | None  # rows; None before the user confirmed
    at: datetime  # when the question was shown: later rows are not included
    sure: bool
    reached: str  # the last id that was processed
    done: int
    skipped: int
    lines: str  # audit lines of earlier steps, for the final page

    @classmethod
    def of(cls, request: HttpRequest) -> Asked:
        post = request.POST
        confirmed = post.get("confirmed", "")
        at = parse_datetime(post.get("asked_at", "")) if confirmed else None
        chosen = post.getlist(helpers.ACTION_CHECKBOX_NAME)
        return cls(
            [id for id in chosen if id and "\x00" not in id],
            post.get("select_across") == "1",
            _number(confirmed) if confirmed else None,
            at if at is not None and at.tzinfo is not None else timezone.now(),
            post.get("sure") == "1",
            post.get("reached", "").replace("\x00", ""),
            _number(post.get("done", "")),
            _number(post.get("skipped", "")),
            post.get("lines", ""),
        )


def _number(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 12 else 0


@dataclass(slots=True)
class Work:
    """The work of one response on the rows, and its results. ``error`` says why it stopped."""

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
        reached, ends_at = self.asked.reached, time.monotonic() + STEP_SECONDS
        ids = _next_ids(self.asked, rows, reached, 0)
        while ids:
            self._each(ids)
            reached = ids[-1]
            ids = _next_ids(self.asked, rows, reached, len(self.rows))
            if self.error or time.monotonic() > ends_at:
                break
        return self.result("" if self.error or not ids else reached)

    def _each(self, ids: Sequence[str]) -> None:
        def act(db: Db) -> dict[str, str]:
            reasons = {id: self.action.act(db, id, self.asked.sure) for id in ids}
            return {id: why for id, why in reasons.items() if why}

        self.batch(self._all().filter(pk__in=ids), act)

    def _all(self) -> Any:
        alias = router.db_for_write(self.model_admin.model)
        return self.model_admin.get_queryset(self.request).using(alias)

    def batch(self, rows: QuerySet[Any], act: Callable[[Db], dict[str, str]]) -> None:
        """Act and write the audit log in one transaction. ``act`` returns the reasons of the skipped ids."""
        written: list[Any] = []
        before: dict[str, Any] = {}
        after: dict[str, Any] = {}

        def write(outcome: Outcome) -> None:
            if written:
                verb = self.action.verb
                record(self.request, verb, written, before, after, outcome)

        def act_and_write(db: Db) -> dict[str, str]:
            found = list(rows)
            skipped = act(db)
            written[:] = [row for row in found if row.pk not in skipped]
            if rows.model is Session:
                # An operator's write is not a sign of life, but the Db sets last_active_at with every status. The rows
                # were read in this transaction, so this writes back what it was.
                sessions = Session.objects.using(rows.db)
                sessions.bulk_update(written, ["last_active_at"], batch_size=BATCH)
            # After a conflict run_transaction calls this again, and what the first attempt noted is void.
            before.clear()
            before.update({row.pk: self._value(row) for row in written})
            now = self._all().filter(pk__in=list(before))
            after.clear()
            after.update(dict.fromkeys(before))
            after.update({row.pk: self._value(row) for row in now})
            # Inside the transaction: if the line cannot be written, nothing happens.
            write("done")
            return skipped

        try:
            skipped = DjangoDb(rows.db).run_transaction(act_and_write)
        except (AgentDbError, OSError) as error:
            # An OSError came from the audit log itself: it cannot record that either.
            if isinstance(error, AgentDbError):
                write("undone")
            self.error = str(error)
            return
        log_in_project(self.request, self.action.verb, written, before, after)
        self.rows += written
        self.before |= before
        for id, why in skipped.items():
            self.skipped.setdefault(why, []).append(id)

    def _value(self, row: Any) -> Any:
        """Return the audit log's entry for a row: a value, or several by column."""
        values = {column: getattr(row, column) for column in self.action.columns}
        return values if len(values) > 1 else values[self.action.columns[0]]

    def _page(
        self, template: str, count: int, text: Any, **context: Any
    ) -> HttpResponse:
        name = name_of(self.model_admin.model, count)
        text = str(text) % f"{count:,} {name}"
        form = {
            "action": self.action,
            "asked": self.asked,
            "list_url": self.request.get_full_path(),
            "next": own_url(self.request, "next"),
        }
        context |= {"title": text, "name": name, "count": count, **form}
        return page(self.model_admin, self.request, template, **context)

    def question(self, rows: QuerySet[Any]) -> HttpResponse:
        is_all = self.asked.is_all
        named = read(rows.order_by("pk")[: NAMED if is_all else MOST_LISTED], [])
        count = rows.order_by().count() if is_all else len(named)
        endangered = _endangered(rows) if self.action is DELETE_SANDBOX else 0
        return self._page(
            "confirm_action",
            count,
            self.action.asks,
            rows=named[:NAMED],
            more=count - len(named[:NAMED]),
            # Django runs no action without a ticked row, also if all are meant.
            ids=[row.pk for row in named[: 1 if is_all else None]],
            asks_more=endangered != 0,
            endangered=endangered,
        )

    def result(self, reached: str = "") -> HttpResponse:
        """Return what was done and skipped, and a form that continues after ``reached`` if there is more."""
        action, asked = self.action, self.asked
        count = asked.done + len(self.rows)
        skipped = asked.skipped + sum(map(len, self.skipped.values()))
        ids = self.request.POST.getlist(helpers.ACTION_CHECKBOX_NAME)
        lines = self._lines()
        folders = _folders(lines) if action is DELETE_SANDBOX else []
        rows = self.rows[:MOST_LISTED]
        may_undo = action.verb.startswith(PAUSE.verb) and lines
        undo_url = page_url(self.model_admin.admin_site, "undo") if may_undo else ""
        return self._page(
            "action_done",
            count,
            action.done,
            work=self,
            rows=rows,
            more=count - len(folders or rows),
            reached=reached,
            skipped_count=skipped,
            tried=count + skipped,
            ids=ids[:1] if asked.is_all else ids,
            lines=lines,
            folders=folders,
            is_too_long=lines == TOO_LONG,
            undo_url=undo_url,
        )

    def _lines(self) -> str:
        """Return the audit lines of all steps. Undoing a pause needs them, and they name workspace folders."""
        lines, action = self.asked.lines, self.action
        if lines == TOO_LONG or not (action.keeps_lines and self.before):
            return lines
        line = json.dumps({"action": action.verb, "before": self.before})
        lines = f"{lines}\n{line}".strip()
        return lines if len(lines) <= LONGEST_LINES else TOO_LONG


def run(
    action: Action, model_admin: Any, request: HttpRequest, listed: QuerySet[Any]
) -> HttpResponse:
    """Ask; after confirmation act on the rows."""
    asked = Asked.of(request)
    rows = model_admin.get_queryset(request).filter(pk__in=asked.ids)
    if asked.is_all:
        rows = listed.filter(created_at__lte=asked.at)
    work = Work(action, model_admin, request, asked)
    return work.question(rows) if asked.confirmed is None else work.run(rows)


def _next_ids(
    asked: Asked, rows: QuerySet[Any], reached: str, done: int
) -> Sequence[str]:
    """Return the next batch. Ticked ids are included even if their rows are gone, so that the result says so."""
    # By id, so that each request begins where the one before ended, whatever was created or deleted meanwhile. No more
    # rows than the user confirmed.
    if not asked.is_all:
        return [id for id in sorted(set(asked.ids)) if id > reached][:BATCH]
    rest = (asked.confirmed or 0) - asked.done - done
    if reached:
        rows = rows.filter(pk__gt=reached)
    ids = rows.order_by("pk").values_list("pk", flat=True)
    return list(ids[: max(min(BATCH, rest), 0)])


def pause_runner(
    model_admin: Any, request: HttpRequest, runner_id: str
) -> HttpResponse:
    """Pause all live sessions of a runner, in one transaction."""

    def act(db: Db) -> dict[str, str]:
        db.bulk_pause_sessions_by_runner(runner_id)
        return {}

    pause = replace(PAUSE, verb=f"pause all of runner {runner_id}")
    work = Work(pause, model_admin, request, Asked.of(request))
    alias = router.db_for_write(Session)
    work.batch(Session.objects.using(alias).of_runner(runner_id).live(), act)
    return work.result()


def _endangered(rows: QuerySet[Any]) -> int | None:
    """Return how many of the sandboxes have a live session; None if that takes too long."""
    live = Session.objects.using(rows.db).live().filter(pk=OuterRef("session_id"))
    # All sandboxes of a large tenant may be meant: the question is bounded, and without an answer the page asks anyway.
    found = rows.filter(Exists(live), state__in=ALIVE).order_by()
    return ask(connections[rows.db], found.count).value


# -- lines of the audit log: what rows were before


def _read_lines(text: str) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield the beginning, the action and the earlier rows by id of each line. Raises ValueError for anything else.

    Ignores text before the JSON of a line, as in a terminal.
    """
    for line in filter(None, map(str.strip, text.splitlines())):
        try:
            found = json.loads(line[line.index("{") :])
            is_done = found.get("outcome", "done") == "done"
            yield (
                line[:80],
                f"{found['action']}" if is_done else "",
                {**found["before"]},
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                gettext("This is not a line of the audit log: %s") % line[:80]
            ) from error


def _folders(lines: str) -> list[tuple[str, str]]:
    """Return the ids of deleted sandboxes with their workspace folders."""
    # The form may have been tampered with.
    with suppress(ValueError, TypeError, KeyError):
        rows = [row for _, _, before in _read_lines(lines) for row in before.items()]
        return [(id, row["workspace_dir"]) for id, row in rows[:MOST_LISTED]]
    return []


def _paused_by(text: str) -> dict[str, str]:
    """Return the statuses before the pause, by session id, from lines of the audit log.

    Raises ValueError for a line that does not record a pause.
    """
    statuses: dict[str, str] = {}
    for line, action, before in _read_lines(text):
        known = {id: status for id, status in before.items() if status in LIVE}
        if not (known and action.startswith(PAUSE.verb)):
            raise ValueError(
                gettext("This line does not say that sessions were paused: %s") % line
            )
        statuses |= known
    return statuses


@guard
def undo(model_admin: Any, request: HttpRequest) -> HttpResponse:
    """Restore the status of sessions that are still paused, from lines of the audit log."""
    if not model_admin.has_act_permission(request):
        refuse(request, RESUME.verb)
    problem, lines = "", request.POST.get("lines", "")
    if request.method == "POST":
        try:
            return _resume(model_admin, request, _paused_by(lines))
        except ValueError as error:
            problem = str(error)
    title = gettext("Resume what was paused")
    context = {"title": title, "lines": lines, "problem": problem}
    return page(model_admin, request, "undo", **context)


def _resume(
    model_admin: Any, request: HttpRequest, before: Mapping[str, str]
) -> HttpResponse:
    def act(db: Db, id: str, sure: bool) -> str:
        session = db.get_session(id)
        if session is None:
            return _gone()
        if session.status != SessionStatus.PAUSED:
            return session.status
        return _gone(db.update_session_status(id, SessionStatus(before[id])))

    asked = replace(Asked.of(request), ids=list(before), confirmed=len(before))
    work = Work(replace(RESUME, act=act), model_admin, request, asked)
    return work.run(Session.objects.none())
