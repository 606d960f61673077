"""The four tables in Django's admin: to look at, with a few actions that go through the Db."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from django import forms
from django.contrib import admin, messages
from django.contrib.admin import helpers
from django.core.exceptions import PermissionDenied
from django.db import connections, router
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils import timezone
from django.utils.decorators import method_decorator
from django.utils.functional import Promise
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.safestring import SafeString
from django.utils.text import capfirst
from django.utils.translation import gettext, gettext_lazy
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_protect

from agentdb.admin import overview, pages, rows
from agentdb.admin.audit import Outcome, keeps_history, log_in_project, record
from agentdb.admin.changelist import (
    WINDOW,
    AgeFilter,
    AgentNameFilter,
    ChoiceFilter,
    IndexedTextFilter,
    KeysetChangeList,
    ListedAdmin,
    TextFilter,
    UnindexedAgeFilter,
)
from agentdb.admin.display import (
    badge,
    column_value,
    cut,
    heading_of,
    history_url,
    id_link,
    link,
    list_url,
    missing,
    name_of,
    none,
    row_url,
    runner_url,
    short_path,
    tenant_url,
    viewable,
    when,
)
from agentdb.admin.export import as_json, export
from agentdb.admin.guard import WRITE_SECONDS, guarded
from agentdb.console.questions import Budget, Problem, ask
from agentdb.console.reading import read
from agentdb.console.report import MOST_LISTED
from agentdb.errors import AgentDbError
from agentdb.interface import Db, SandboxState, SessionStatus
from agentdb.models import Agent, ApiKey, Sandbox, Session
from agentdb.querysets import ALIVE, LIVE
from agentdb.serving.adapter import DjangoDb

if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin[Any]
else:
    ModelAdmin = admin.ModelAdmin  # no generic class at run time

# Rows of an action that one transaction changes: a batch that fails undoes itself alone, and locks are held briefly.
BATCH = 200
LONGEST_JSON = 20_000  # of a row, which its page has for copying
NAMED = 10  # in a question; of the others the number is said
UNUSED_FORMS = "agentdb_unused_key_forms"


class TenantFilter(IndexedTextFilter):
    title = gettext_lazy("tenant")
    parameter = column = "tenant_id"


class AgentFilter(AgentNameFilter):
    title = gettext_lazy("agent")
    parameter = column = "agent_name"


class NameFilter(AgentNameFilter):
    title = gettext_lazy("name")
    parameter = column = "name"


class RunnerFilter(IndexedTextFilter):
    title = gettext_lazy("runner")
    parameter = column = "runner_id"


class SandboxFilter(TextFilter):
    title = gettext_lazy("sandbox")
    parameter = column = "sandbox_id"
    is_link_only = True  # the search finds ids


class SessionFilter(TextFilter):
    title = gettext_lazy("session")
    parameter = column = "session_id"
    is_link_only = True


class StatusFilter(ChoiceFilter):
    title = gettext_lazy("status")
    parameter = column = "status"
    values = tuple(map(str, SessionStatus))


class StateFilter(ChoiceFilter):
    title = gettext_lazy("state")
    parameter = column = "state"
    values = tuple(map(str, SandboxState))


class CreatedFilter(AgeFilter):
    title = gettext_lazy("created")
    column = "created_at"


class LastUsedFilter(AgeFilter):
    title = gettext_lazy("last used")
    column = "last_used_at"


class LastActiveFilter(UnindexedAgeFilter):
    title = gettext_lazy("last active")
    parameter = "active"
    column = "last_active_at"


class ReadFirstAdmin(ListedAdmin, ModelAdmin):
    """Looking needs the view permission. Actions need the change permission; no form edits a row, whoever looks."""

    list_per_page = 50
    sortable_by = ()
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    actions_selection_counter = True
    list_display_links = None
    change_form_template = "admin/agentdb/row.html"

    @property
    def media(self) -> forms.Media:
        # Of Django's scripts those that its page of a row starts with. The one for actions looks for parts of a bar
        # that these lists do not have, and stops with an error.
        scripts: list[Any] = ["admin/js/vendor/jquery/jquery.min.js", "admin/js/jquery.init.js"]
        scripts.append(forms.Script("agentdb/console.js", defer=True))
        return forms.Media(css={"all": ["agentdb/console.css"]}, js=scripts)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return super().has_view_permission(request, obj) or self.has_act_permission(request)

    def has_act_permission(self, request: HttpRequest) -> bool:
        return super().has_change_permission(request)

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> Any:
        if (asked := request.POST.get("action")) and not self.has_act_permission(request):
            record(request, f"{asked[:100]} of {self.opts.verbose_name_plural}", [], {}, {}, "refused")
            raise PermissionDenied
        view = super().changelist_view
        return guarded(request, self.admin_site, self.model, lambda: view(request, extra_context))

    def get_urls(self) -> list[URLPattern]:
        def exported(request: HttpRequest, kind: str) -> Any:
            if not self.has_view_permission(request):
                raise PermissionDenied
            view = partial(self.export_view, request, kind)
            return guarded(request, self.admin_site, self.model, view, WRITE_SECONDS)

        view = self.admin_site.admin_view(exported)
        name = f"agentdb_{self.opts.model_name}_export"
        return [path("export/<slug:kind>/", view, name=name), *super().get_urls()]

    def export_view(self, request: HttpRequest, kind: str) -> HttpResponseBase:
        """All that the list's filters leave, as CSV or JSON."""
        return export(request, cast(KeysetChangeList, self.get_changelist_instance(request)), kind)

    def change_view(self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None) -> Any:
        view = super().change_view
        return guarded(request, self.admin_site, self.model, lambda: view(request, object_id, form_url, extra_context))

    @property
    def alias(self) -> str:
        return router.db_for_read(self.model)

    def row_page(self, row: Any, allowed: rows.Allowed) -> rows.RowPage:
        """What the row's page shows beside its columns."""
        raise NotImplementedError

    def row_actions(self, request: HttpRequest, row: Any) -> list[Action]:
        """What this user can do to the row, as it is."""
        if not self.has_act_permission(request):
            return []
        mine = [ACTIONS[str(name)] for name in self.actions or ()]
        return [action for action in mine if not action.only or getattr(row, action.column) in action.only]

    def render_change_form(
        self,
        request: HttpRequest,
        context: Any,
        add: bool = False,
        change: bool = False,
        form_url: str = "",
        obj: Any = None,
    ) -> Any:
        if obj is not None:
            page, json = self.row_page(obj, obj.allowed), as_json(obj)
            context |= {
                "title": f"{capfirst(name_of(self.model))} {page.title}",
                "subtitle": None,
                "page": page,
                "problems": obj.problems,
                "stored": rows.stored(obj),
                "json": json if len(json) <= LONGEST_JSON else "",
                "now": timezone.now(),
                "list_url": list_url(self.admin_site, self.model),
                "row_actions": self.row_actions(request, obj),
                "history_url": history_url(self.admin_site, obj) if keeps_history() else "",
            }
        return super().render_change_form(request, context, add, change, form_url, obj)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[KeysetChangeList]:
        return KeysetChangeList

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest | None = None) -> bool:
        # Django allows any lookup on a column, which would try key hashes prefix by prefix, or scan a table.
        return lookup in {spec.parameter for spec in self.list_filter}  # type: ignore[union-attr]

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        if "\x00" in object_id:
            return None
        problems: list[Problem] = []
        found = read(self.get_queryset(request).filter(pk=object_id), problems)
        self.find_linked(found, viewable(self.admin_site, request), problems)
        for row in found:
            row.problems = problems
        return found[0] if found else None

    def action_checkbox(self, obj: Any) -> SafeString:
        label = gettext("Select %s") % cut(obj.pk)
        attributes = {"class": "action-select", "aria-label": label}
        return forms.CheckboxInput(attributes, lambda value: False).render(helpers.ACTION_CHECKBOX_NAME, obj.pk)

    def _list_link(self, row: Any, model: type[Model], name: str, **filters: str) -> SafeString:
        url = list_url(self.admin_site, model, **filters) if model in row.allowed else ""
        return link(url, gettext(name)) if url else none()

    @admin.display(description=gettext_lazy("id"), ordering="id")
    def id_link(self, row: Any) -> SafeString:
        return id_link(row_url(self.admin_site, row), row.pk)

    @admin.display(description=gettext_lazy("tenant"))
    def tenant(self, row: Any) -> SafeString:
        return link(tenant_url(self.admin_site, row.tenant_id), row.tenant_id)

    @admin.display(description=gettext_lazy("created"), ordering="created_at")
    def created(self, row: Any) -> SafeString:
        return when(row.created_at)

    def run_action(self, request: HttpRequest, action: Action) -> HttpResponse | None:
        """Ask, and once the answer is there act on the selected rows through the Db, ``BATCH`` to a transaction."""
        is_all = request.POST.get("select_across") == "1"
        if is_all:
            everything = cast(KeysetChangeList, self.get_changelist_instance(request)).everything
            if everything is None:
                problem = gettext("Nothing was changed. The filters leave more than %s rows; filter further.")
                self.message_user(request, problem % f"{WINDOW:,}", messages.ERROR)
                return None
            ids = list(everything.order_by("pk").values_list("pk", flat=True))
        else:
            ids = [id for id in request.POST.getlist(helpers.ACTION_CHECKBOX_NAME) if id and "\x00" not in id]
            ids = ids[:MOST_LISTED]  # what a page of the console shows at most
        confirmed = request.POST.get("confirmed", "")
        # Rows that came in while the question was read were not asked for.
        if not confirmed or (is_all and len(ids) > (int(confirmed) if confirmed.isdecimal() else 0)):
            return self._ask(request, action, ids, is_all=is_all)

        outcomes: list[tuple[str, str]] = []
        back = _next(request)
        done = HttpResponseRedirect(back) if back else None  # without it Django leads to the list
        for start in range(0, len(ids), BATCH):
            try:
                outcomes += self._act(request, action, ids[start : start + BATCH])
            except (AgentDbError, OSError) as error:
                self._report(request, action, outcomes)
                begin = gettext("Of the rest nothing was changed.") if outcomes else gettext("Nothing was changed.")
                self.message_user(request, f"{begin} {error}", messages.ERROR)
                return done
        self._report(request, action, outcomes)
        return done

    def _act(self, request: HttpRequest, action: Action, ids: list[str]) -> list[tuple[str, str]]:
        """Do it to each row and write down that it was done, all or nothing: each id with why it was left alone."""
        alias = router.db_for_write(self.model)
        written: list[Any] = []

        def act(db: Db) -> list[tuple[str, str]]:
            rows = {row.pk: row for row in self.get_queryset(request).using(alias).filter(pk__in=ids)}
            outcomes = [(id, action.act(db, id)) for id in ids]
            written[:] = [rows[id] for id, problem in outcomes if not problem and id in rows]
            if written:
                self._record(request, action, written, "done")
            return outcomes

        try:
            outcomes = DjangoDb(alias).run_transaction(act)
        except AgentDbError:
            if written:
                self._record(request, action, written, "undone")
            raise
        log_in_project(request, action.verb, written, *action.change(written))
        return outcomes

    def _record(self, request: HttpRequest, action: Action, rows: list[Any], outcome: Outcome) -> None:
        record(request, action.verb, rows, *action.change(rows), outcome)

    def _ask(self, request: HttpRequest, action: Action, ids: list[str], *, is_all: bool) -> HttpResponse:
        rows = read(self.get_queryset(request).filter(pk__in=ids[:MOST_LISTED]), [])
        count = len(ids) if is_all else len(rows)
        context = {
            **self.admin_site.each_context(request),
            "title": action.question,
            "action": action,
            "rows": [(str(row), row_url(self.admin_site, row)) for row in rows[:NAMED]],
            "more": count - len(rows[:NAMED]),
            "ids": [row.pk for row in rows[: 1 if is_all else None]],  # without one of them Django runs no action
            "is_all": is_all,
            "count": count,
            "name": name_of(self.model, count),
            "opts": self.opts,
            "media": self.media,
            "list_url": request.get_full_path(),
            "next": _next(request),
            "checkbox_name": helpers.ACTION_CHECKBOX_NAME,
        }
        return TemplateResponse(request, "admin/agentdb/confirm_action.html", context)

    def _report(self, request: HttpRequest, action: Action, outcomes: list[tuple[str, str]]) -> None:
        done = [id for id, problem in outcomes if not problem]
        if done:
            self.message_user(request, f"{action.done} {self._names(done)}.", messages.SUCCESS)
        problems: dict[str, list[str]] = {}
        for id, problem in outcomes:
            if problem:
                problems.setdefault(problem, []).append(id)
        for problem, ids in problems.items():
            self.message_user(
                request,
                gettext("Left alone, because %(why)s: %(rows)s.") % {"why": problem, "rows": self._names(ids)},
                messages.WARNING,
            )

    def _names(self, ids: list[str]) -> str:
        kind = name_of(self.model, len(ids))
        shown = ", ".join(ids[:3])
        more = gettext(" and %s more") % f"{len(ids) - 3:,}" if len(ids) > 3 else ""
        return f"{len(ids):,} {kind} ({shown}{more})"


@dataclass(frozen=True, slots=True)
class Action:
    """Something that can be done to a row; ``act`` returns why it was not done, or an empty text."""

    name: str
    verb: str  # what the audit log calls it, with the column that it writes down, and what is there afterwards
    column: str
    after: str | None
    question: str | Promise
    button: str | Promise
    done: str | Promise
    act: Callable[[Db, str], str]
    deletes: bool = False
    only: Collection[str] = ()  # the values of the column that it changes; all if empty
    warning: str | Promise = ""

    def change(self, rows: list[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the rows were, as they were read before it, and what they are, by id."""
        before = {row.pk: getattr(row, self.column) for row in rows}
        return before, dict.fromkeys(before, self.after)


def _pause(db: Db, id: str) -> str:
    session = db.get_session(id)
    if session is None:
        return gettext("it is gone")
    if session.status not in LIVE:
        return gettext("it is %s") % session.status
    return "" if db.update_session_status(id, SessionStatus.PAUSED) else gettext("it is gone")


def _cool(db: Db, id: str) -> str:
    sandbox = db.get_sandbox(id)
    if sandbox is not None and sandbox.state == SandboxState.COLD:
        return gettext("it is cold already")
    return "" if db.update_sandbox_state(id, SandboxState.COLD) else gettext("it is gone")


def _delete_sandbox(db: Db, id: str) -> str:
    return "" if db.delete_sandbox(id) else gettext("it is gone")


def _revoke(db: Db, id: str) -> str:
    return "" if db.delete_api_key(id) else gettext("it is gone")


PAUSE = Action(
    "pause_sessions",
    "pause",
    "status",
    str(SessionStatus.PAUSED),
    gettext_lazy("Pause these sessions?"),
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
    "state",
    str(SandboxState.COLD),
    gettext_lazy("Mark these sandboxes cold?"),
    gettext_lazy("Mark cold"),
    gettext_lazy("Marked cold:"),
    _cool,
    only=[str(state) for state in SandboxState if state != SandboxState.COLD],
    warning=gettext_lazy("This says that no process runs in them any more; it does not end one."),
)
DELETE_SANDBOX = Action(
    "delete_sandboxes",
    "delete",
    "state",
    None,
    gettext_lazy("Delete these sandboxes?"),
    gettext_lazy("Delete"),
    gettext_lazy("Deleted"),
    _delete_sandbox,
    deletes=True,
    warning=gettext_lazy("The rows are removed. Workspace folders stay on disk."),
)
REVOKE = Action(
    "revoke_keys",
    "revoke",
    "label",
    None,
    gettext_lazy("Revoke these API keys?"),
    gettext_lazy("Revoke"),
    gettext_lazy("Revoked"),
    _revoke,
    deletes=True,
    warning=gettext_lazy("Whoever uses one of them is locked out at once. This cannot be undone."),
)


ACTIONS = {action.name: action for action in (PAUSE, COOL, DELETE_SANDBOX, REVOKE)}


def _next(request: HttpRequest) -> str:
    """The page of this site that the form asks to be led to afterwards, if it asks for one."""
    url = request.POST.get("next", "")
    is_ours = url_has_allowed_host_and_scheme(url, {request.get_host()}, require_https=request.is_secure())
    return url if is_ours else ""


class LinkedAdmin(ReadFirstAdmin):
    """Rows that name an agent of their tenant."""

    def find_linked(self, rows: Sequence[Any], allowed: Collection[type[Model]], problems: list[Problem]) -> None:
        names = {(row.tenant_id, row.agent_name) for row in rows}
        tenants, agents = {tenant_id for tenant_id, _ in names}, {name for _, name in names}
        found = self.linked(Agent, allowed, problems, tenant_id__in=tenants, name__in=agents) if rows else []
        by_name = {(agent.tenant_id, agent.name): agent for agent in found or ()}
        for row in rows:
            row.linked_agent = by_name.get((row.tenant_id, row.agent_name))
        super().find_linked(rows, allowed if found is not None else {*allowed} - {Agent}, problems)

    def linked(
        self,
        model: type[Model],
        allowed: Collection[type[Model]],
        problems: list[Problem],
        **conditions: Collection[str | None],
    ) -> list[Any] | None:
        """The rows of the model that others name; None where the user may not see them, or they cannot be read."""
        if model not in allowed:
            return None
        rows = model._default_manager.using(self.alias).filter(**conditions)
        return ask(connections[self.alias], lambda: read(rows, problems), problems).value

    @admin.display(description=gettext_lazy("agent"))
    def agent(self, row: Any) -> SafeString:
        if Agent not in row.allowed:
            return link("", row.agent_name)
        if row.linked_agent is None:
            return missing(row.agent_name, matters=isinstance(row, Session) and row.status in LIVE)
        return link(row_url(self.admin_site, row.linked_agent), row.agent_name)


@admin.register(Agent)
class AgentAdmin(ReadFirstAdmin):
    orders = {
        **ListedAdmin.orders,
        "updated_at": (gettext_lazy("deployed last first"), gettext_lazy("deployed longest ago first")),
    }
    list_display = ("name_link", "tenant", "version", "shown_path", "sessions", "sandboxes", "updated", "created")
    list_filter = (TenantFilter, NameFilter, CreatedFilter)
    search_fields = ("name", "path", "tenant_id")
    search_help_text = gettext_lazy(
        "The beginning of an id, or a part of a name, path or tenant. Lists too long to search at once are searched "
        "10,000 rows at a time, newest first."
    )
    found_by = (("tenant_id", "name"), ("tenant_id",))

    def row_page(self, row: Agent, allowed: rows.Allowed) -> rows.RowPage:
        return rows.agent_page(self.admin_site, row, self.alias, allowed)

    @admin.display(description=gettext_lazy("name"))
    def name_link(self, row: Agent) -> SafeString:
        return link(row_url(self.admin_site, row), row.name)

    @admin.display(description=gettext_lazy("sessions"))
    def sessions(self, row: Agent) -> SafeString:
        return self._list_link(row, Session, "sessions", tenant_id=row.tenant_id, agent_name=row.name)

    @admin.display(description=gettext_lazy("sandboxes"))
    def sandboxes(self, row: Agent) -> SafeString:
        return self._list_link(row, Sandbox, "sandboxes", tenant_id=row.tenant_id, agent_name=row.name)

    @admin.display(description=gettext_lazy("path"))
    def shown_path(self, row: Agent) -> SafeString:
        return short_path(row.path)

    @admin.display(description=gettext_lazy("updated"), ordering="updated_at")
    def updated(self, row: Agent) -> SafeString:
        return when(row.updated_at)

    def get_urls(self) -> list[URLPattern]:
        def tenant(request: HttpRequest) -> Any:
            return guarded(request, self.admin_site, self.model, lambda: self.tenant_view(request))

        view = self.admin_site.admin_view(tenant)
        return [path("tenant/", view, name="agentdb_tenant"), *super().get_urls()]

    def tenant_view(self, request: HttpRequest) -> HttpResponse:
        """One tenant: how much of everything it has, and links to it."""
        tenant_id = request.GET.get("id", "").replace("\x00", "")
        allowed = viewable(self.admin_site, request)
        if not allowed:
            raise PermissionDenied
        with Budget(connections[self.alias]) as page:
            return self._tenant_page(request, page, tenant_id, allowed)

    def _tenant_page(
        self, request: HttpRequest, page: Budget, tenant_id: str, allowed: set[type[Model]]
    ) -> TemplateResponse:
        site, answer = self.admin_site, page.ask

        totals = {
            model: answer(partial(overview.amount, self.alias, model, tenant_id))
            for model in (Session, Sandbox, Agent, ApiKey)
        }
        statuses = answer(lambda: overview.tenant_sessions_by_status(self.alias, tenant_id))
        sessions = totals[Session].value
        context = {
            **site.each_context(request),
            "title": gettext("Tenant %s") % tenant_id,
            "tenant_id": tenant_id,
            "opts": self.opts,
            "media": self.media,
            "now": timezone.now(),
            "parts": [
                (heading_of(model), total, list_url(site, model, tenant_id=tenant_id))
                for model, total in totals.items()
                if model in allowed
            ],
            "query": tenant_url(site, tenant_id).partition("?")[2],
            "activity": overview.activity_chart(request, page, tenant_id=tenant_id) if Session in allowed else None,
            "statuses": overview.mapped(
                statuses,
                lambda figures: overview.share_bars(
                    figures, lambda status: list_url(site, Session, tenant_id=tenant_id, status=status)
                ),
            )
            if Session in allowed
            else None,
            "sample": f"{overview.SAMPLE:,}" if sessions and sessions.rows > overview.SAMPLE else "",
            "is_empty": all(total.value is not None and not total.value.rows for total in totals.values()),
        }
        return TemplateResponse(request, "admin/agentdb/tenant.html", context)


@admin.register(Session)
class SessionAdmin(LinkedAdmin):
    orders = {
        **ListedAdmin.orders,
        "last_active_at": (gettext_lazy("last active first"), gettext_lazy("longest silent first")),
    }
    list_display = ("id_link", "status_badge", "agent", "tenant", "sandbox", "runner", "last_active", "created")
    list_filter = (
        StatusFilter, TenantFilter, AgentFilter, RunnerFilter, SandboxFilter, LastActiveFilter, CreatedFilter
    )  # fmt: skip
    search_fields = ("id", "agent_name", "sandbox_id", "runner_id", "tenant_id")
    search_help_text = gettext_lazy(
        "The beginning of an id, or a part of an agent's name, sandbox, runner or tenant. Lists too long to search at "
        "once are searched 10,000 rows at a time, newest first."
    )
    found_by = (("runner_id",), ("tenant_id", "agent_name"), ("tenant_id",), ("status",))
    ordered_by = (("runner_id",), ("tenant_id", "agent_name"), ("tenant_id",), ("status",))
    actions = ("pause_sessions",)

    def get_urls(self) -> list[URLPattern]:
        return [*pages.urls(self), *super().get_urls()]

    def find_linked(self, rows: Sequence[Any], allowed: Collection[type[Model]], problems: list[Problem]) -> None:
        found = self.linked(Sandbox, allowed, problems, pk__in={row.sandbox_id for row in rows})
        sandboxes = {sandbox.pk: sandbox for sandbox in found or ()}
        for row in rows:
            row.linked_sandbox = sandboxes.get(row.sandbox_id)
        super().find_linked(rows, allowed if found is not None else {*allowed} - {Sandbox}, problems)

    def row_page(self, row: Any, allowed: rows.Allowed) -> rows.RowPage:
        return rows.session_page(self.admin_site, row, self.alias, allowed)

    @admin.display(description=gettext_lazy("status"))
    def status_badge(self, row: Session) -> SafeString:
        return badge(row.status)

    @admin.display(description=gettext_lazy("sandbox"))
    def sandbox(self, row: Any) -> SafeString:
        if not row.sandbox_id:
            return none()
        if Sandbox not in row.allowed:
            return id_link("", row.sandbox_id)
        if row.linked_sandbox is None:
            return missing(row.sandbox_id, is_id=True, matters=row.status in LIVE)
        return id_link(row_url(self.admin_site, row.linked_sandbox), row.sandbox_id)

    @admin.display(description=gettext_lazy("runner"))
    def runner(self, row: Session) -> SafeString:
        if row.runner_id is None:
            return none()
        return id_link(runner_url(self.admin_site, row.runner_id), row.runner_id)

    @admin.display(description=gettext_lazy("last active"), ordering="last_active_at")
    def last_active(self, row: Session) -> SafeString:
        return when(row.last_active_at)

    @admin.action(description=gettext_lazy("Pause selected sessions"), permissions=["act"])
    def pause_sessions(self, request: HttpRequest, queryset: QuerySet[Session]) -> HttpResponse | None:
        return self.run_action(request, PAUSE)


@admin.register(Sandbox)
class SandboxAdmin(LinkedAdmin):
    orders = {
        "last_used_at": (gettext_lazy("last used first"), gettext_lazy("longest unused first")),
        **ListedAdmin.orders,
    }
    list_display = ("id_link", "state_badge", "agent", "tenant", "session", "workspace", "last_used", "created")
    list_filter = (StateFilter, TenantFilter, AgentFilter, SessionFilter, LastUsedFilter)
    search_fields = ("id", "agent_name", "session_id", "workspace_dir", "tenant_id")
    search_help_text = gettext_lazy(
        "The beginning of an id, or a part of an agent's name, session, workspace or tenant. Lists too long to search "
        "at once are searched 10,000 rows at a time, last used first."
    )
    found_by = (("session_id",), ("tenant_id",), ("state",))
    ordered_by = (("state",),)
    actions = ("mark_cold", "delete_sandboxes")

    def find_linked(self, rows: Sequence[Any], allowed: Collection[type[Model]], problems: list[Problem]) -> None:
        found = self.linked(Session, allowed, problems, pk__in={row.session_id for row in rows if row.session_id})
        sessions = {session.pk: session for session in found or ()}
        for row in rows:
            row.linked_session = sessions.get(row.session_id)
        super().find_linked(rows, allowed if found is not None else {*allowed} - {Session}, problems)

    def row_page(self, row: Any, allowed: rows.Allowed) -> rows.RowPage:
        return rows.sandbox_page(self.admin_site, row, self.alias, allowed)

    @admin.display(description=gettext_lazy("state"))
    def state_badge(self, row: Sandbox) -> SafeString:
        return badge(row.state)

    @admin.display(description=gettext_lazy("session"))
    def session(self, row: Any) -> SafeString:
        if not row.session_id:
            return none()
        if Session not in row.allowed:
            return id_link("", row.session_id)
        if row.linked_session is None:
            return missing(row.session_id, is_id=True, matters=row.state in ALIVE)
        return id_link(row_url(self.admin_site, row.linked_session), row.session_id)

    @admin.display(description=gettext_lazy("workspace dir"))
    def workspace(self, row: Sandbox) -> SafeString:
        return short_path(row.workspace_dir)

    @admin.display(description=gettext_lazy("last used"), ordering="last_used_at")
    def last_used(self, row: Sandbox) -> SafeString:
        return when(row.last_used_at)

    @admin.action(description=gettext_lazy("Mark selected sandboxes cold"), permissions=["act"])
    def mark_cold(self, request: HttpRequest, queryset: QuerySet[Sandbox]) -> HttpResponse | None:
        return self.run_action(request, COOL)

    @admin.action(description=gettext_lazy("Delete selected sandboxes"), permissions=["act"])
    def delete_sandboxes(self, request: HttpRequest, queryset: QuerySet[Sandbox]) -> HttpResponse | None:
        return self.run_action(request, DELETE_SANDBOX)


class _Secret:
    """A text for a template; error reports, which show the variables of each frame, show this object's address."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return self._text


class IssueKeyForm(forms.Form):
    tenant_id = forms.CharField(
        label=gettext_lazy("Tenant"), strip=False, widget=forms.TextInput(attrs={"autofocus": True})
    )
    label = forms.CharField(required=False, help_text=gettext_lazy("What the key is for: a person, a program."))
    once = forms.CharField(widget=forms.HiddenInput)

    def clean_tenant_id(self) -> str:
        tenant_id: str = self.cleaned_data["tenant_id"]
        if not tenant_id.strip():
            raise forms.ValidationError(gettext("A tenant of blanks looks like none. Name the tenant."))
        return tenant_id


@admin.register(ApiKey)
class ApiKeyAdmin(ReadFirstAdmin):
    list_display = ("label_link", "tenant", "id_link", "masked_hash", "created")
    list_filter = (TenantFilter, CreatedFilter)
    search_fields = ("label", "tenant_id")
    search_help_text = gettext_lazy(
        "The beginning of an id, or a part of a label or tenant. Lists too long to search at once are searched 10,000 "
        "rows at a time, newest first."
    )
    found_by = (("tenant_id",),)
    ordered_by = (("tenant_id",),)
    actions = ("revoke_keys",)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return admin.ModelAdmin.has_add_permission(self, request)

    def row_page(self, row: ApiKey, allowed: rows.Allowed) -> rows.RowPage:
        return rows.key_page(self.admin_site, row)

    @admin.display(description=gettext_lazy("label"))
    def label_link(self, row: ApiKey) -> SafeString:
        return link(row_url(self.admin_site, row), row.label or gettext("(no label)"))

    @admin.display(description=gettext_lazy("hash"))
    def masked_hash(self, row: ApiKey) -> str:
        return str(column_value(row, "key_hash"))

    @admin.action(description=gettext_lazy("Revoke selected API keys"), permissions=["act"])
    def revoke_keys(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> HttpResponse | None:
        return self.run_action(request, REVOKE)

    @method_decorator(csrf_protect)
    @method_decorator(never_cache)
    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> Any:
        """Issue a key. The page that answers the form is the only place where it is ever shown."""
        return guarded(request, self.admin_site, self.model, partial(self.issue_view, request))

    def issue_view(self, request: HttpRequest) -> HttpResponse:
        if not self.has_add_permission(request):
            record(request, "issue", [], {}, {}, "refused")
            raise PermissionDenied
        form = IssueKeyForm(request.POST if request.method == "POST" else None, initial={"once": secrets.token_hex(8)})
        if request.method == "POST" and form.is_valid():
            # Loading the answer again sends the form again, which must not issue a second key unasked.
            unused: list[str] = request.session.get(UNUSED_FORMS, [])
            once = form.cleaned_data["once"]
            if once not in unused:
                self.message_user(
                    request,
                    gettext("This form was used already. A key is shown once; issue another one if it was lost."),
                    messages.WARNING,
                )
                return HttpResponseRedirect(list_url(self.admin_site, ApiKey))
            try:
                response = self._issue(request, form.cleaned_data["tenant_id"], form.cleaned_data["label"])
            except AgentDbError as error:
                form.add_error(None, str(error))
            else:
                request.session[UNUSED_FORMS] = [each for each in unused if each != once]
                return response
        elif request.method != "POST":
            unused = request.session.get(UNUSED_FORMS, [])
            request.session[UNUSED_FORMS] = [*unused, form.initial["once"]][-10:]
        context = {
            **self.admin_site.each_context(request),
            "title": gettext("Issue API key"),
            "form": form,
            "opts": self.opts,
            "media": self.media,
        }
        return TemplateResponse(request, "admin/agentdb/issue_key.html", context)

    def _issue(self, request: HttpRequest, tenant_id: str, label: str) -> HttpResponse:
        is_new = not any(
            overview.amount(self.alias, model, tenant_id).rows for model in (Agent, Session, Sandbox, ApiKey)
        )
        plain, issued = DjangoDb(router.db_for_write(ApiKey)).issue_api_key(tenant_id, label)
        secret = _Secret(plain)
        del plain
        row = self.get_queryset(request).get(pk=issued.id)
        record(request, "issue", [row], {}, {row.pk: row.label})
        log_in_project(request, "issue", [row], {}, {row.pk: row.label})
        context = {
            **self.admin_site.each_context(request),
            "title": gettext("API key issued"),
            "plain": secret,
            "row": row,
            "is_new": is_new,
            "opts": self.opts,
            "media": self.media,
            "list_url": list_url(self.admin_site, ApiKey, tenant_id=tenant_id),
        }
        # Rendered here, so that no response object carries the key through middleware that may log it.
        response = TemplateResponse(request, "admin/agentdb/key_issued.html", context).render()
        return HttpResponse(response.content, headers={"Cache-Control": "no-store"})
