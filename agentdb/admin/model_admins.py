"""The four tables in Django's admin: read-only, with a few actions that go through the Db."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, cast

from django import forms
from django.contrib import admin
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.db import router
from django.http import HttpRequest
from django.urls import URLPattern, path
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext, gettext_lazy

from agentdb.admin import find, keys, pages, rows
from agentdb.admin.actions import (
    COOL,
    DELETE_SANDBOX,
    PAUSE,
    REVOKE,
    Action,
    undo,
)
from agentdb.admin.audit import refuse
from agentdb.admin.changelist import RowList
from agentdb.admin.display import (
    badge,
    cut,
    page,
    row_link,
    runner_link,
    short_path,
    tenant_link,
    viewable,
    when,
)
from agentdb.admin.export import as_json, export
from agentdb.admin.filters import (
    AgentFilter,
    CheckFilter,
    CreatedFilter,
    FromFilter,
    LastActiveFilter,
    LastUsedFilter,
    NameFilter,
    RunnerFilter,
    SandboxFilter,
    SessionFilter,
    StateFilter,
    StatusFilter,
    TenantFilter,
    ToFilter,
)
from agentdb.admin.guard import WRITE_SECONDS, guard
from agentdb.console.display import masked
from agentdb.console.questions import Problem
from agentdb.console.reading import read
from agentdb.models import Agent, ApiKey, Sandbox, Session

if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin[Any]
else:
    ModelAdmin = admin.ModelAdmin  # not generic at run time

LONGEST_JSON = 20_000  # characters of a row as JSON that its page offers to copy


# A method of a model admin that gets a row, and returns what the row's cell in the list shows.
Cell = Callable[[Any, Any], Any]


def linked(
    name: Any,
    show: Callable[[Any, Any], Any],
    ordering: str | None = None,
) -> Cell:
    """Return a column of a list that shows something of a row, with links to other pages of the site.

    ``show`` gets the site and the row. The heading sorts by the column ``ordering``.
    """

    @admin.display(description=name, ordering=ordering)
    def cell(model_admin: Any, row: Any) -> Any:
        return show(model_admin.admin_site, row)

    return cell


def shown(column: str, name: Any, show: Callable[[Any], Any]) -> Cell:
    """Return a column of a list that shows a value."""
    return linked(name, lambda site, row: show(getattr(row, column)))


def timed(column: str, name: Any) -> Cell:
    """Return a column of a list that shows a timestamp as a relative time, and whose heading sorts by it."""
    return linked(name, lambda site, row: when(getattr(row, column)), column)


def never(model_admin: Any, request: HttpRequest, *row: Any, **more: Any) -> bool:
    return False


class ReadFirstAdmin(ModelAdmin):
    """A read-only admin: pages need the view permission, actions the change permission, and no form edits a row."""

    # By the timestamp that has an index, newest first. By another one, a page sorts the table.
    ordering = ("-created_at",)
    actions: Sequence[Action] = ()
    # Pages besides lists and rows: functions of the model admin, the request, and the tables that the user may see.
    views: ClassVar[Mapping[str, Callable[..., Any]]] = {}
    list_per_page = 50
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER  # they count the rows of each choice
    list_display_links = None  # the columns have links of their own

    # None of Django's scripts: the one for actions needs elements that these lists do not have. See head.html for ours.
    media = forms.Media()

    # Django draws a form if a user may change a row, and offers to delete it. So these are denied to all, and the
    # actions ask for a permission of their own, which the project's change permission gives.
    has_add_permission = has_change_permission = has_delete_permission = never

    def has_act_permission(self, request: HttpRequest) -> bool:
        return super().has_change_permission(request)

    @guard
    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> Any:
        """Show the list, or run an action of its form; 403 for an action of somebody who may not act."""
        # Django would ignore the action of somebody who may not act. It belongs in the audit log.
        asked = request.POST.get("action")
        if asked and not self.has_act_permission(request):
            rows = self.opts.verbose_name_plural
            refuse(request, f"{asked[:100]} of {rows}")
        return super().changelist_view(request, extra_context)

    @guard
    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        *args: Any,
        **more: Any,
    ) -> Any:
        """Show a row with what it names, and its actions, instead of Django's form."""
        row = None
        if request.method != "POST":
            row = self.get_object(request, unquote(object_id))
        # Django answers 403, or says that the row is gone. A project's own permissions may depend on the row.
        if row is None or not self.has_view_permission(request, row):
            return super().change_view(request, object_id)
        about = rows.about(self.admin_site, row, self.alias)
        json = as_json(row)
        actions = self.actions if self.has_act_permission(request) else ()
        return page(
            self,
            request,
            "row",
            **about,
            title=cut(str(row)),
            original=row,
            problems=row.problems,
            json=json if len(json) <= LONGEST_JSON else "",
            row_actions=[action for action in actions if action.changes(row)],
        )

    def get_urls(self) -> list[URLPattern]:
        """Return the pages of ``views``, the export, and Django's own."""
        # Before Django's, whose last pattern takes any text for an id.
        view = self.admin_site.admin_view
        own = [
            path(
                "export/<slug:kind>/",
                view(self.export_view),
                name=f"agentdb_{self.opts.model_name}_export",
            )
        ]
        for name, show in self.views.items():
            answer = view(partial(self.page_view, show=show))
            own.append(path(f"{name}/", answer, name=f"agentdb_{name}"))
        return [*own, *super().get_urls()]

    # Both read the row first. Nobody may delete one.
    history_view = guard(ModelAdmin.history_view)
    delete_view = guard(ModelAdmin.delete_view)

    @guard
    def page_view(self, request: HttpRequest, show: Callable[..., Any]) -> Any:
        """Show a page of ``views``; 403 to a user who may see none of the tables."""
        allowed = viewable(self.admin_site, request)
        if not allowed:
            refuse(request, show.__name__)
        return show(self, request, allowed)

    @partial(guard, read_seconds=WRITE_SECONDS)
    def export_view(self, request: HttpRequest, kind: str) -> Any:
        """Export all rows that the list's filters leave, as CSV or JSON."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        rows = self.get_changelist_instance(request)
        return export(cast(RowList, rows), kind)

    @property
    def alias(self) -> str:
        return router.db_for_read(self.model)

    # Django 6.1 passes the page's kind to a parameter of this name, and warns if there is none.
    def get_actions(self, request: HttpRequest, action_location: Any = None) -> Any:
        """Return Django's actions of the list, none of them for those who may not act.

        Django would offer them a project's actions for all models, which name no permission.
        """
        if not self.has_act_permission(request):
            return {}
        where = () if action_location is None else (action_location,)
        return super().get_actions(request, *where)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[RowList]:
        return RowList

    def lookup_allowed(
        self,
        lookup: str,
        value: str,
        request: HttpRequest | None,
    ) -> bool:
        """Return whether an address may filter by the lookup: only by the parameters of our filters."""
        # Django allows any lookup on a column: one could guess key hashes by prefix, or scan a table.
        filters: Any = self.list_filter
        return lookup in {each.parameter_name for each in filters}

    def get_object(
        self,
        request: HttpRequest,
        object_id: str,
        *to_field: Any,
        **more: Any,
    ) -> Any:
        """Return the row with what it names, also if a value cannot be read; None if it is not there.

        Django's own uses ``get()``, which raises for a value that cannot be read.
        """
        if "\x00" in object_id:  # which PostgreSQL refuses in a text
            return None
        problems: list[Problem] = []
        wanted = self.get_queryset(request).filter(pk=object_id)
        found = read(wanted, problems)
        allowed = viewable(self.admin_site, request)
        rows.find_linked(found, self.alias, allowed, problems)
        if not found:
            return None
        found[0].problems = problems
        return found[0]

    def action_checkbox(self, obj: Any) -> SafeString:
        """Return Django's checkbox with a short name for screen readers."""
        return format_html(
            '<input type="checkbox" name="_selected_action" value="{}" class="action-select" aria-label="{}">',
            obj.pk,
            gettext("Select %s") % cut(obj.pk),
        )

    id_link = linked(gettext_lazy("id"), row_link)
    tenant = linked(
        gettext_lazy("tenant"),
        lambda site, row: tenant_link(site, row.tenant_id),
    )
    agent = linked(gettext_lazy("agent"), rows.agent_link)
    created = timed("created_at", gettext_lazy("created"))


@admin.register(Agent)
class AgentAdmin(ReadFirstAdmin):
    list_display = (
        "name_link",
        "tenant",
        "shown_version",
        "shown_path",
        "sessions",
        "updated",
        "created",
    )
    list_filter = (
        TenantFilter,
        NameFilter,
        CreatedFilter,
    )
    search_fields = (
        "id",
        "name",
        "path",
        "tenant_id",
    )

    name_link = linked(
        gettext_lazy("name"),
        lambda site, row: row_link(site, row, row.name),
    )
    sessions = linked(gettext_lazy("sessions"), rows.sessions_link)
    # A column of the model's own would sort the list, by something else than a timestamp.
    shown_version = shown("version", gettext_lazy("version"), str)
    shown_path = shown("path", gettext_lazy("path"), short_path)
    updated = timed("updated_at", gettext_lazy("updated"))

    views = {"tenant": pages.tenant}


@admin.register(Session)
class SessionAdmin(ReadFirstAdmin):
    list_display = (
        "id_link",
        "status_badge",
        "agent",
        "tenant",
        "sandbox",
        "runner",
        "last_active",
        "created",
    )
    list_filter = (
        StatusFilter,
        TenantFilter,
        AgentFilter,
        RunnerFilter,
        SandboxFilter,
        LastActiveFilter,
        CreatedFilter,
        FromFilter,
        ToFilter,
        CheckFilter,
    )
    search_fields = (
        "id",
        "agent_name",
        "sandbox_id",
        "runner_id",
        "tenant_id",
    )
    actions = (PAUSE,)

    views = {
        "runner": pages.runner,
        "attention": pages.attention,
        "groups": pages.groups,
        "changes": pages.what_changed,
        "find": find.find,
        "undo": undo,
    }

    status_badge = shown("status", gettext_lazy("status"), badge)

    sandbox = linked(gettext_lazy("sandbox"), rows.other_link)
    runner = linked(
        gettext_lazy("runner"),
        lambda site, row: runner_link(site, row.runner_id),
    )
    last_active = timed("last_active_at", gettext_lazy("last active"))


@admin.register(Sandbox)
class SandboxAdmin(ReadFirstAdmin):
    ordering = ("-last_used_at",)
    list_display = (
        "id_link",
        "state_badge",
        "agent",
        "tenant",
        "session",
        "workspace",
        "last_used",
        "created",
    )
    list_filter = (
        StateFilter,
        TenantFilter,
        AgentFilter,
        SessionFilter,
        LastUsedFilter,
        FromFilter,
        ToFilter,
        CheckFilter,
    )
    search_fields = (
        "id",
        "agent_name",
        "session_id",
        "workspace_dir",
        "tenant_id",
    )
    actions = (COOL, DELETE_SANDBOX)

    state_badge = shown("state", gettext_lazy("state"), badge)

    session = linked(gettext_lazy("session"), rows.other_link)
    workspace = shown("workspace_dir", gettext_lazy("workspace dir"), short_path)
    last_used = timed("last_used_at", gettext_lazy("last used"))


@admin.register(ApiKey)
class ApiKeyAdmin(ReadFirstAdmin):
    list_display = (
        "label_link",
        "tenant",
        "id_link",
        "masked_hash",
        "created",
    )
    list_filter = (
        TenantFilter,
        CreatedFilter,
    )
    search_fields = (
        "id",
        "label",
        "tenant_id",
    )
    actions = (REVOKE,)

    has_add_permission = ModelAdmin.has_add_permission

    label_link = linked(
        gettext_lazy("label"),
        # A link without a text could not be seen.
        lambda site, row: row_link(site, row, row.label or gettext("(no label)")),
    )
    masked_hash = shown("key_hash", gettext_lazy("hash"), masked)

    @guard
    def add_view(self, request: HttpRequest, *args: Any, **more: Any) -> Any:
        """Issue a key, which only the response to the form ever shows."""
        return keys.issue(self, request)
