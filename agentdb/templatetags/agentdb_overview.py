"""The overview as a template tag, so that it works in any admin site without a view of its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from django import template
from django.db import connections, router
from django.db.models import Model
from django.template import Context
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext

from agentdb.admin import overview
from agentdb.admin.audit import keeps_history
from agentdb.admin.display import (
    badge,
    heading_of,
    link,
    list_url,
    name_of,
    overview_url,
    page_url,
    percent_of,
    row_link,
    runner_link,
    site_of,
    tenant_link,
    viewable,
    when,
)
from agentdb.admin.rows import agent_link
from agentdb.admin.sharing import shared
from agentdb.models import Session

register = template.Library()
for filter in (badge, percent_of, when):
    register.filter(filter)
register.filter("shown", partial(link, ""))
# Whether accounts are permanent, so that a password can be changed; not under 'runadmin'.
register.simple_tag(keeps_history, name="agentdb_keeps_accounts")


def _of_site(show: Callable[..., str]) -> Callable[..., str]:
    """Turn a function of an admin site into a tag for pages of any site."""

    def tag(context: Context, *args: Any, **query: str) -> str:
        site = site_of(context["request"])
        return show(site, *args, **query)

    return tag


LINKS = (
    agent_link,
    overview_url,
    page_url,
    row_link,
    runner_link,
    tenant_link,
)
for link_of in LINKS:
    tag = _of_site(link_of)
    register.simple_tag(tag, takes_context=True, name=link_of.__name__)


@register.inclusion_tag("admin/agentdb/nav.html", takes_context=True)
def agentdb_nav(context: Context) -> dict[str, Any]:
    """Links to the overview and the tables that the user may see, for the free block in Django's header.

    Empty on pages without a user, such as the login.
    """
    request = context.get("request")
    if request is None or not context.get("has_permission", True):
        return {}
    site = site_of(request)
    models = viewable(site, request)
    tables = [(list_url(site, model), heading_of(model)) for model in models]
    admins: list[Any] = [site._registry[model] for model in models]
    return {
        "pages": [(overview_url(site), gettext("Overview")), *tables],
        "path": request.path,
        "find_url": page_url(site, "find"),
        "is_read_only": not any(
            admin.has_act_permission(request) or admin.has_add_permission(request)
            for admin in admins
        ),
        "csrf_token": context.get("csrf_token"),
    }


@register.filter
def kind(row: Model) -> str:
    """What a sentence calls the row's table, in the singular."""
    return name_of(type(row))


@register.filter
def thousands(number: int) -> str:
    """The same notation on all pages, in the terminal and in exports, whatever the locale."""
    return f"{number:,}"


@register.simple_tag
def icon(name: str) -> SafeString:
    """A symbol of those in the page's head; a screen reader passes it over."""
    return format_html(
        '<svg class="agentdb-icon" aria-hidden="true"><use href="#agentdb-i-{}"></use></svg>',
        name,
    )


@register.inclusion_tag("admin/agentdb/overview.html", takes_context=True)
def agentdb_overview(context: Context) -> dict[str, Any]:
    """The overview for this user; those who may see the same share one answer of a few seconds' age."""
    request = context["request"]
    site = site_of(request)
    database = connections[router.db_for_read(Session)]
    # All that the answer depends on besides the time. It names no user, so that twenty of them share it.
    key = (
        site.name,
        database.alias,
        str(database.settings_dict["NAME"]),
        frozenset(viewable(site, request)),
        # Not the parameter itself: whoever edits the address would add results without end.
        request.GET.get("period") == "7d",
    )
    page = shared(key, lambda: overview.page(request))
    # A copy, because the template adds this user's CSRF token to it.
    return {**page, "request": request}
