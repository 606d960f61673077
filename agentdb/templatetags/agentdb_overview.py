"""The overview, as a tag: the admin finds it in a template, so it needs no view and no site of its own."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from django import template
from django.db import router
from django.db.models.options import Options
from django.template import Context
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import capfirst
from django.utils.translation import gettext

from agentdb.admin import overview
from agentdb.admin.display import (
    badge,
    link,
    list_url,
    missing,
    overview_url,
    row_url,
    site_of,
    slug,
    tenant_url,
    viewable,
    when,
)
from agentdb.models import Agent, ApiKey, Sandbox, Session

register = template.Library()


@register.inclusion_tag("admin/agentdb/nav.html", takes_context=True)
def agentdb_nav(context: Context) -> dict[str, Any]:
    """Links to the overview and the tables that the user may see, for the block that Django's header leaves free."""
    request = context.get("request")
    if request is None or not context.get("has_permission", True):
        return {}
    site = site_of(request)
    allowed = viewable(site, request)
    if not allowed:
        return {}
    pages = [(overview_url(site), gettext("Overview"))]
    for model in (Session, Sandbox, Agent, ApiKey):
        if model in allowed:
            pages.append((list_url(site, model), str(capfirst(model._meta.verbose_name_plural))))
    return {"pages": [(url, name, url == request.path) for url, name in pages if url]}


@cache
def _version() -> str:
    for distribution in ("django-agentdb", "agentdb"):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return ""  # a copy of the source that nobody installed


@register.inclusion_tag("admin/agentdb/foot.html")
def agentdb_foot() -> dict[str, Any]:
    return {"version": _version()}


@register.simple_tag(takes_context=True)
def agentdb_list_link(context: Context, opts: Options[Any]) -> SafeString:
    return link(list_url(site_of(context["request"]), opts.model), capfirst(opts.verbose_name_plural))


@register.simple_tag
def bar(percent: float, value: str) -> SafeString:
    """A bar as wide as the percentage of its cell. Its number stands beside it as text."""
    return format_html(
        '<svg class="agentdb-bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true" focusable="false">'
        '<rect class="agentdb-track" width="100" height="10"></rect>'
        '<rect class="agentdb-fill-{}" width="{}" height="10"></rect></svg>',
        slug(value),
        percent,
    )


@register.inclusion_tag("admin/agentdb/overview.html", takes_context=True)
def agentdb_overview(context: Context) -> dict[str, Any]:
    request = context["request"]
    site = site_of(request)
    allowed = viewable(site, request)
    alias = router.db_for_read(Session)
    shown: dict[str, Any] = {"allowed": bool(allowed)}
    if not allowed:
        return shown
    state = overview.schema_state(alias)
    shown["schema"] = state
    if state.pending or state.problem:
        return shown  # the tables may not be there
    totals = overview.totals(alias)
    shown["totals"] = [
        (model._meta.verbose_name_plural, amount, list_url(site, model))
        for model, amount in (
            (Agent, totals.agents),
            (Session, totals.sessions),
            (Sandbox, totals.sandboxes),
            (ApiKey, totals.api_keys),
        )
        if model in allowed
    ]
    if Sandbox in allowed:
        shown["states"] = [
            (badge(bar.value), bar, list_url(site, Sandbox, state=bar.value))
            for bar in overview.sandboxes_by_state(alias)
        ]
        idle = overview.oldest_idle_sandboxes(alias)
        site._registry[Sandbox].find_linked(idle)  # type: ignore[attr-defined]
        shown["idle"] = [
            (
                link(row_url(site, row), row.pk),
                link(row_url(site, row.linked_agent), row.agent_name)  # type: ignore[attr-defined]
                if row.linked_agent is not None  # type: ignore[attr-defined]
                else missing(row.agent_name),
                link(tenant_url(site, row.tenant_id), row.tenant_id),
                when(row.last_used_at),
            )
            for row in idle
        ]
    if Session in allowed:
        shown["statuses"] = [
            (badge(bar.value), bar, list_url(site, Session, status=bar.value))
            for bar in overview.sessions_by_status(alias)
        ]
        shown["tenants"] = [
            (link(tenant_url(site, tenant.id), tenant.id), tenant, when(tenant.newest_at))
            for tenant in overview.top_tenants(alias)
        ]
        shown["sample"] = f"{overview.SAMPLE:,}"
        shown["runners"] = [
            (link(list_url(site, Session, runner_id=bar.value), bar.value), bar) for bar in overview.runners(alias)
        ]
        shown["most_runners"] = overview.MOST_RUNNERS
    return shown
