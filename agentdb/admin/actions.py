"""What an operator can do to rows: ask, act through the Db in batches, write it down, and say what was done."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.contrib.admin import helpers
from django.db import connections, router
from django.db.models import Exists, OuterRef, QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from django.utils.functional import Promise
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.translation import gettext, gettext_lazy, ngettext

from agentdb.admin.audit import Outcome, log_in_project, record
from agentdb.admin.display import list_url, name_of, row_url, undo_url
from agentdb.console.questions import ask
from agentdb.console.reading import read
from agentdb.errors import AgentDbError
from agentdb.interface import Db, SandboxState, SessionStatus
from agentdb.models import Sandbox, Session
from agentdb.querysets import ALIVE, LIVE
from agentdb.serving.adapter import DjangoDb

# Rows that one transaction changes: a batch that fails undoes itself alone, and locks are held briefly.
BATCH = 200
# One answer of the server does batches for this long; the page then says how far it is, and asks for the rest.
STEP_SECONDS = 2.0
NAMED = 10  # in a question; of the others the number is said
MOST_LISTED = 1_000  # rows that a result names one by one
# Of a form field, below Django's own limit for a whole request: what later steps and "Undo" send back.
LONGEST_LINES = 1_500_000


@dataclass(frozen=True, slots=True)
class Action:
    """Something that can be done to a row; ``act`` returns why it was not done, or an empty text."""

    name: str
    verb: str  # what the audit log calls it, with the columns that it writes down, and what is there afterwards
    columns: tuple[str, ...]
    after: str | None
    button: str | Promise
    done: str | Promise
    act: Callable[[Db, str, bool], str]
    deletes: bool = False
    only: Collection[
        str
    ] = ()  # the values of the first column that it changes; all if empty
    warning: str | Promise = ""

    def change(self, rows: Sequence[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the rows were, as they were read before it, and what they are, by id."""
        before: dict[str, Any] = {}
        for row in rows:
            values = {column: getattr(row, column) for column in self.columns}
            before[row.pk] = values if len(values) > 1 else values[self.columns[0]]
        return before, dict.fromkeys(before, self.after)

    def endangers(self, rows: QuerySet[Any]) -> int:
        """How many of the rows a live session runs in, which deleting them would take away."""
        if not (self.deletes and rows.model is Sandbox):
            return 0
        live = Session.objects.using(rows.db).live().filter(pk=OuterRef("session_id"))
        return rows.filter(Exists(live), state__in=ALIVE).order_by().count()


def _pause(db: Db, id: str, sure: bool) -> str:
    session = db.get_session(id)
    if session is None:
        return gettext("no longer there")
    if session.status not in LIVE:
        return session.status
    return (
        ""
        if db.update_session_status(id, SessionStatus.PAUSED)
        else gettext("no longer there")
    )


def _cool(db: Db, id: str, sure: bool) -> str:
    sandbox = db.get_sandbox(id)
    if sandbox is not None and sandbox.state == SandboxState.COLD:
        return gettext("already cold")
    return (
        ""
        if db.update_sandbox_state(id, SandboxState.COLD)
        else gettext("no longer there")
    )


def _delete_sandbox(db: Db, id: str, sure: bool) -> str:
    sandbox = None if sure else db.get_sandbox(id)
    if sandbox is not None and sandbox.state in ALIVE and sandbox.session_id:
        session = db.get_session(sandbox.session_id)
        if session is not None and session.status in LIVE:
            return gettext("a live session runs in it")
    return "" if db.delete_sandbox(id) else gettext("no longer there")


def _revoke(db: Db, id: str, sure: bool) -> str:
    return "" if db.delete_api_key(id) else gettext("no longer there")


PAUSE = Action(
    "pause_sessions",
    "pause",
    ("status",),
    str(SessionStatus.PAUSED),
    gettext_lazy("Pause"),
    gettext_lazy("Paused"),
    _pause,
    only=LIVE,
    warning=gettext_lazy(
        "Only active and starting sessions are paused. This writes the status; it does not reach the runner."
    ),
)
COOL = Action(
    "mark_cold",
    "mark cold",
    ("state",),
    str(SandboxState.COLD),
    gettext_lazy("Mark cold"),
    gettext_lazy("Marked cold"),
    _cool,
    only=[str(state) for state in SandboxState if state != SandboxState.COLD],
    warning=gettext_lazy(
        "This records that no process runs in them; it does not stop one."
    ),
)
DELETE_SANDBOX = Action(
    "delete_sandboxes",
    "delete",
    ("state", "workspace_dir"),
    None,
    gettext_lazy("Delete"),
    gettext_lazy("Deleted"),
    _delete_sandbox,
    deletes=True,
    warning=gettext_lazy(
        "The rows are removed. Workspace folders stay on disk; the next page lists them."
    ),
)
REVOKE = Action(
    "revoke_keys",
    "revoke",
    ("label",),
    None,
    gettext_lazy("Revoke"),
    gettext_lazy("Revoked"),
    _revoke,
    deletes=True,
    warning=gettext_lazy(
        "Whoever uses one of them is locked out at once. This cannot be undone."
    ),
)

ACTIONS = {action.name: action for action in (PAUSE, COOL, DELETE_SANDBOX, REVOKE)}


@dataclass(frozen=True, slots=True)
class Asked:
    """What a form of an action says: the rows, whether that was confirmed, and how far it has come."""

    ids: Sequence[str]
    is_all: bool
    confirmed: int | None  # rows; None before the question was answered
    at: datetime  # when it was asked: rows that came later were not meant
    sure: bool
    after: str  # the last id that was tried
    done: int
    skipped: int
    lines: (
        str  # what the audit log has of the steps before, for the page that ends them
    )

    @classmethod
    def of(cls, request: HttpRequest) -> Asked:
        post = request.POST
        confirmed = post.get("confirmed", "")
        at = parse_datetime(post.get("asked_at", "")) if confirmed else None
        return cls(
            [
                id
                for id in post.getlist(helpers.ACTION_CHECKBOX_NAME)
                if id and "\x00" not in id
            ],
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


@dataclass(frozen=True, slots=True)
class Work:
    """What is done to each row of a batch, and what the audit log says of it."""

    verb: str
    act: Callable[[Db, str], str]
    change: Callable[[Sequence[Any]], tuple[dict[str, Any], dict[str, Any]]]


@dataclass(slots=True)
class Done:
    """What came of it so far. ``error`` is why it went no further."""

    rows: list[Any] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    reached: str = ""
    is_whole: bool = True
    error: str = ""

    def skip(self, id: str, why: str) -> None:
        self.skipped[why] += 1
        self.examples.setdefault(why, []).append(id)


def run(model_admin: Any, request: HttpRequest, action: Action) -> HttpResponse:
    """Ask, and once the answer is there act on the rows, ``BATCH`` to a transaction."""
    asked = Asked.of(request)
    rows = _rows(model_admin, request, asked)
    if asked.confirmed is None:
        return _question(model_admin, request, action, asked, rows)
    done = Done(reached=asked.after)
    work = Work(
        action.verb, lambda db, id: action.act(db, id, asked.sure), action.change
    )
    ends_at = time.monotonic() + STEP_SECONDS
    while not done.error and (ids := _next_ids(asked, rows, done)):
        _batch(model_admin, request, work, ids, done)
        if time.monotonic() > ends_at:
            done.is_whole = not _next_ids(asked, rows, done)
            break
    return _result(model_admin, request, action, asked, done)


def _rows(model_admin: Any, request: HttpRequest, asked: Asked) -> QuerySet[Any]:
    if asked.is_all:
        found: QuerySet[Any] = model_admin.get_changelist_instance(request).queryset
        return found.filter(created_at__lte=asked.at)
    rows: QuerySet[Any] = model_admin.get_queryset(request)
    return rows.filter(pk__in=asked.ids)


def _next_ids(asked: Asked, rows: QuerySet[Any], done: Done) -> list[str]:
    """The next batch. Ids that were chosen one by one are tried although their rows are gone, to say so."""
    if asked.is_all:
        rest = (asked.confirmed or 0) - asked.done - len(done.rows)
        following = rows.filter(pk__gt=done.reached) if done.reached else rows
        return list(
            following.order_by("pk").values_list("pk", flat=True)[
                : max(min(BATCH, rest), 0)
            ]
        )
    chosen = sorted(set(asked.ids))
    return [id for id in chosen if id > done.reached][:BATCH]


def _batch(
    model_admin: Any, request: HttpRequest, work: Work, ids: Sequence[str], done: Done
) -> None:
    """Do it to each row of a batch, all or nothing."""

    def act(db: Db) -> tuple[list[Any], list[tuple[str, str]]]:
        alias = router.db_for_write(model_admin.model)
        rows = {
            row.pk: row
            for row in model_admin.get_queryset(request).using(alias).filter(pk__in=ids)
        }
        outcomes = [(id, work.act(db, id)) for id in ids]
        return [
            rows[id] for id, problem in outcomes if not problem and id in rows
        ], outcomes

    for id, problem in _written_down(model_admin, request, work, act, done):
        done.reached = max(done.reached, id)
        if problem:
            done.skip(id, problem)


def _written_down(
    model_admin: Any,
    request: HttpRequest,
    work: Work,
    act: Callable[[Db], tuple[list[Any], list[tuple[str, str]]]],
    done: Done,
) -> list[tuple[str, str]]:
    """Act in one transaction that holds the audit log's line too, and return what came of each row."""
    written: list[Any] = []
    alias = router.db_for_write(model_admin.model)

    def write(outcome: Outcome) -> None:
        if written:
            record(request, work.verb, written, *work.change(written), outcome)

    def act_and_write(db: Db) -> list[tuple[str, str]]:
        written[:], outcomes = act(db)
        # An operator's write is not a sign of life of a session or its runner: the time of the server's last one stays.
        sessions = [row for row in written if isinstance(row, Session)]
        Session.objects.using(alias).bulk_update(
            sessions, ["last_active_at"], batch_size=BATCH
        )
        write("done")
        return outcomes

    try:
        outcomes = DjangoDb(alias).run_transaction(act_and_write)
    except (AgentDbError, OSError) as error:
        if isinstance(error, AgentDbError):
            write("undone")
        done.error = str(error)
        return []
    log_in_project(request, work.verb, written, *work.change(written))
    done.rows += written
    return outcomes


def pause_runner(
    model_admin: Any, request: HttpRequest, runner_id: str
) -> HttpResponse:
    """Pause all live sessions of a runner, in one transaction."""

    def act(db: Db) -> tuple[list[Any], list[tuple[str, str]]]:
        live = (
            Session.objects.using(router.db_for_write(Session))
            .of_runner(runner_id)
            .live()
        )
        rows = list(live.only("pk", "status", "last_active_at"))
        db.bulk_pause_sessions_by_runner(runner_id)
        return rows, []

    done = Done()
    work = Work(f"pause all of runner {runner_id}", lambda db, id: "", PAUSE.change)
    _written_down(model_admin, request, work, act, done)
    return _result(model_admin, request, PAUSE, Asked.of(request), done)


def _question(
    model_admin: Any,
    request: HttpRequest,
    action: Action,
    asked: Asked,
    rows: QuerySet[Any],
) -> HttpResponse:
    connection = connections[rows.db]
    named = read(rows.order_by("pk")[: NAMED if asked.is_all else MOST_LISTED], [])
    count = rows.order_by().count() if asked.is_all else len(named)
    endangered = ask(connection, lambda: action.endangers(rows)).value
    name = name_of(model_admin.model, count)
    context = {
        **_context(model_admin, request, action),
        "title": gettext("%(do)s %(n)s %(rows)s?")
        % {"do": action.button, "n": f"{count:,}", "rows": name},
        "rows": [
            (str(row), row_url(model_admin.admin_site, row)) for row in named[:NAMED]
        ],
        "more": count - len(named[:NAMED]),
        "ids": [
            row.pk for row in named[: 1 if asked.is_all else None]
        ],  # without one Django runs no action
        "is_all": asked.is_all,
        "asked_at": asked.at.isoformat(),
        "count": count,
        "name": name,
        "asks_more": action is DELETE_SANDBOX and endangered != 0,
        "endangered": endangered,
    }
    return TemplateResponse(request, "admin/agentdb/confirm_action.html", context)


def _context(model_admin: Any, request: HttpRequest, action: Action) -> dict[str, Any]:
    return {
        **model_admin.admin_site.each_context(request),
        "action": action,
        "opts": model_admin.opts,
        "media": model_admin.media,
        "list_url": request.get_full_path(),
        "next": _next(request),
        "checkbox_name": helpers.ACTION_CHECKBOX_NAME,
    }


def _result(
    model_admin: Any, request: HttpRequest, action: Action, asked: Asked, done: Done
) -> HttpResponse:
    count, lines = asked.done + len(done.rows), _lines(action, asked, done)
    skipped = asked.skipped + sum(done.skipped.values())
    context = {
        **_context(model_admin, request, action),
        **_said(model_admin, done),
        "title": f"{action.done} {count:,} {name_of(model_admin.model, count)}",
        "asked": asked,
        "asked_at": asked.at.isoformat(),
        "count": count,
        "skipped_count": skipped,
        "tried": count + skipped,
        "ids": asked.ids[:1] if asked.is_all else asked.ids,
        "lines": lines,
        "folders": _folders(lines) if action is DELETE_SANDBOX else [],
        "undo_url": undo_url(model_admin.admin_site)
        if action is PAUSE and lines
        else "",
    }
    return TemplateResponse(request, "admin/agentdb/action_done.html", context)


def _said(model_admin: Any, done: Done) -> dict[str, Any]:
    """What a result says of the rows that were changed, and of those that were not."""
    return {
        "done": done,
        "rows": [
            (row_url(model_admin.admin_site, row), row.pk)
            for row in done.rows[:MOST_LISTED]
        ],
        "skipped": [
            (number, why, ", ".join(done.examples[why][:3]), number - 3)
            for why, number in done.skipped.most_common()
        ],
    }


def _lines(action: Action, asked: Asked, done: Done) -> str:
    """What the rows of all steps were, as the audit log has it: a pause is taken back by it, and it names folders."""
    if action not in (PAUSE, DELETE_SANDBOX):
        return ""
    line = (
        json.dumps({"action": action.verb, "before": action.change(done.rows)[0]})
        if done.rows
        else ""
    )
    text = f"{asked.lines}\n{line}".strip()
    return text if len(text) <= LONGEST_LINES else ""


def _folders(lines: str) -> list[tuple[str, str]]:
    """The ids of deleted sandboxes with their workspace folders."""
    try:
        before = [
            json.loads(line)["before"].items() for line in lines.splitlines() if line
        ]
        return [(id, row["workspace_dir"]) for rows in before for id, row in rows][
            :MOST_LISTED
        ]
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
    ):  # the form was changed on its way
        return []


def _next(request: HttpRequest) -> str:
    """The page of this site that the form asks to be led to afterwards, if it asks for one."""
    url = request.POST.get("next", "")
    is_ours = url_has_allowed_host_and_scheme(
        url, {request.get_host()}, require_https=request.is_secure()
    )
    return url if is_ours else ""


# -- taking a pause back


def paused_by(text: str) -> dict[str, str]:
    """The statuses that lines of the audit log say sessions had before they were paused, by id.

    Text before the JSON of a line, as a terminal has it, is passed over. Raises ValueError for a line that is not one
    of a pause.
    """
    before: dict[str, str] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        try:
            found = json.loads(line[line.index("{") :])
            is_pause = (
                found["action"].startswith("pause")
                and found.get("outcome", "done") == "done"
            )
            values = found["before"].items() if is_pause else ()
            known = {str(id): status for id, status in values if status in LIVE}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                gettext("This is not a line of the audit log: %s") % line[:80]
            ) from error
        if not known:
            raise ValueError(
                gettext("This line does not say that sessions were paused: %s")
                % line[:80]
            )
        before |= known
    return before


def resume(
    model_admin: Any, request: HttpRequest, before: dict[str, str]
) -> HttpResponse:
    """Give sessions that are still paused the status they had, and say so."""

    def act(db: Db, id: str) -> str:
        session = db.get_session(id)
        if session is None:
            return gettext("no longer there")
        if session.status != SessionStatus.PAUSED:
            return session.status
        db.update_session_status(id, SessionStatus(before[id]))
        return ""

    def change(rows: Sequence[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        return {row.pk: row.status for row in rows}, {
            row.pk: before[row.pk] for row in rows
        }

    done, ids = Done(), sorted(before)
    for start in range(0, len(ids), BATCH):
        if not done.error:
            _batch(
                model_admin,
                request,
                Work("resume", act, change),
                ids[start : start + BATCH],
                done,
            )
    count = len(done.rows)
    context = {
        **model_admin.admin_site.each_context(request),
        **_said(model_admin, done),
        "title": ngettext("Resumed %d session", "Resumed %d sessions", count) % count,
        "opts": model_admin.opts,
        "media": model_admin.media,
        "count": count,
        "list_url": list_url(model_admin.admin_site, Session),
    }
    return TemplateResponse(request, "admin/agentdb/action_done.html", context)
