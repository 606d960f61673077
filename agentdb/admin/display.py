"""Formats of links, badges, ids and times on the admin's pages."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from django.contrib import admin
from django.contrib.admin.utils import quote
from django.db.models import Model
from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.urls import NoReverseMatch, reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import capfirst, slugify
from django.utils.translation import gettext, gettext_noop
from django.views.decorators.debug import sensitive_variables

from agentdb.console.display import exact, masked, relative
from agentdb.console.reading import Missing, Unreadable, is_unreadable
from agentdb.models import Agent, ApiKey, Sandbox, Session

# Those that a user may see.
Tables = Collection[type[Model]]

# The models' names, marked for translation; the migrations have them in English.
NAMES = (
    gettext_noop("agents"),
    gettext_noop("sandboxes"),
    gettext_noop("API key"),
    gettext_noop("API keys"),
)
# A text is shown whole if no more than these would be hidden.
LEAST_HIDDEN = 4
LONGEST_SHOWN = 500
# gunicorn accepts 4,094 bytes of a request line.
LONGEST_URL = 4_000


def name_of(model: type[Model], rows: int = 1) -> str:
    """Return the model's name for one row, or for many, in the page's language."""
    name = model._meta.verbose_name_plural
    if rows == 1:
        name = model._meta.verbose_name
    return gettext(str(name))


def heading_of(model: type[Model]) -> str:
    """Return the model's plural as a title."""
    return capfirst(name_of(model, 0))


@sensitive_variables()  # one of them shows a new API key
def page(
    model_admin: Any,
    request: HttpRequest,
    template: str,
    **context: Any,
) -> TemplateResponse:
    """Return a page of the console, which ``guard`` renders, with what every page of Django's admin needs."""
    whole = {
        **model_admin.admin_site.each_context(request),
        "opts": model_admin.opts,
        "media": model_admin.media,
        "now": timezone.now(),
        **context,
    }
    return TemplateResponse(request, f"admin/agentdb/{template}.html", whole)


def site_of(request: HttpRequest) -> admin.AdminSite:
    """Return the admin site of the request, which may be a host project's own.

    A project may have several; the namespace of the address tells which one serves this page.
    """
    # The context of Django's pages does not have the site.
    namespace = getattr(request.resolver_match, "namespace", None)
    for site in admin.sites.all_sites:
        if site.name == namespace:
            return site
    return admin.site


def _url(site: admin.AdminSite, name: str, *args: str, **query: str) -> str:
    """Return the address, or '' if the site has no such page, or if it is longer than servers accept."""
    # Templates pass names that a page may not have; an empty filter means none.
    given = {name: value for name, value in query.items() if value}
    # A page whose link would lead to an error shows the text without a link.
    with suppress(NoReverseMatch):  # for example because the site lacks the model
        url = reverse(f"{site.name}:{name}", args=args, query=given)
        if len(url) <= LONGEST_URL:
            return url
    return ""


def page_url(site: admin.AdminSite, name: str, **query: str) -> str:
    """Return the address of a page by its URL name without "agentdb_"; '' if the site lacks it."""
    return _url(site, f"agentdb_{name}", **query)


def list_url(site: admin.AdminSite, model: type[Model], **filters: str) -> str:
    """Return the address of a list whose rows have these values."""
    return page_url(site, f"{model._meta.model_name}_changelist", **filters)


def row_url(site: admin.AdminSite, row: Model | None) -> str:
    """Return the address of a row's page; '' without a row, or if its id cannot be read."""
    # The stored text of such an id is escaped for display, so the row would not be found by it.
    if row is None or is_unreadable(row.pk):
        return ""
    model = row._meta.model_name
    id = quote(row.pk)
    return _url(site, f"agentdb_{model}_change", id)


def overview_url(site: admin.AdminSite) -> str:
    """Return the address of the page that has the overview."""
    # agentdb's own project has the overview on the first page, others on the app's page.
    if site.index_template == "admin/agentdb/index.html":
        return _url(site, "index")
    return _url(site, "app_list", "agentdb")


def link(url: str, text: object) -> SafeString:
    """Return a link, or only the text without an address."""
    # Before str: an Unreadable is one. SafeString is markup of ours, which must not be cut.
    if is_unreadable(text):
        return unreadable(text)
    if isinstance(text, str) and not isinstance(text, SafeString):
        text = cut(text)
    if not url:
        return format_html("{}", text)
    return format_html('<a href="{}">{}</a>', url, text)


def cut(text: str) -> str:
    """Return the text; of a long one the beginning, the end and the length."""
    # A list of fifty rows must stay small enough for a browser, whatever the rows contain.
    if len(text) <= LONGEST_SHOWN:
        return text
    length = gettext("%s characters") % f"{len(text):,}"
    return f"{text[:200]} … {text[-50:]} ({length})"


def column_value(row: Model, column: str) -> Any:
    """Return the value of a column; of a key's hash only the beginning."""
    value = getattr(row, column)
    return masked(value) if column == "key_hash" else value


def _short(
    text: str,
    head: int,
    tail: int,
    url: str = "",
    domain: str = "",
) -> SafeString:
    """Return a text of which the page shows the first and last characters, and not the domain after it.

    The whole is shown on hover, and can be copied. A text too long for a page is cut, as in any link.
    """
    whole = text + domain
    if len(whole) > LONGEST_SHOWN:
        return link(url, whole)
    # All of it is in the page, so that copying and the browser's search find it; the style hides the middle.
    start = text
    middle = end = ""
    if len(text) > head + tail + LEAST_HIDDEN:
        start = text[:head]
        middle = text[head:-tail]
        end = text[-tail:]
    return format_html(
        '<{tag} class="agentdb-id" title="{whole}" data-copy="{whole}">{start}{middle}{end}{domain}</{name}>',
        tag=format_html('a href="{}"', url) if url else "span",
        name="a" if url else "span",
        whole=whole,
        start=start,
        middle=_hidden(middle),
        end=end,
        domain=_hidden(domain),
    )


def _hidden(text: str) -> str:
    """Return a part that an ellipsis replaces on the page, but not in what is copied."""
    return format_html('<span class="agentdb-mid">{}</span>', text) if text else ""


def id_link(url: str, id: str) -> SafeString:
    """Return an id with its middle hidden, as a link if there is an address."""
    return _short(id, head=8, tail=4, url=url)


def row_link(
    site: admin.AdminSite,
    row: Model,
    text: object = None,
) -> SafeString:
    """Return the link to a row: its id, or a text."""
    url = row_url(site, row)
    if text is None:
        return id_link(url, row.pk)
    return link(url, text)


def tenant_link(site: admin.AdminSite, id: str) -> SafeString:
    return link(page_url(site, "tenant", id=id), id)


def runner_link(site: admin.AdminSite, name: str | None) -> SafeString:
    """Return the runner's link, shown without the domain, and with both ends of a long host name."""
    if name is None:
        return none()
    host, dot, domain = name.partition(".")
    # Short enough to be shown whole, with its domain.
    if len(name) <= 8 + 6 + LEAST_HIDDEN:
        host, dot, domain = name, "", ""
    url = page_url(site, "runner", id=name)
    return _short(
        host,
        head=8,
        tail=6,
        url=url,
        domain=dot + domain,
    )


def short_path(path: str) -> SafeString:
    # The end of a path tells more than its beginning.
    return _short(path, head=10, tail=14)


def percent_of(part: int, whole: int) -> str:
    """Return the width of a bar; a part above zero stays visible."""
    if not part:
        return "0"
    share = 100 * part / whole
    width = max(share, 0.8)
    return f"{width:.1f}"


def none() -> SafeString:
    return format_html('<span class="agentdb-quiet">{}</span>', gettext("none"))


def badge(value: str) -> SafeString:
    """Return a status or state with its colour."""
    if is_unreadable(value):
        return unreadable(value)
    return format_html(
        '<span class="agentdb-badge agentdb-is-{}">{}</span>',
        # Values of newer servers have no style of their own, and then the neutral one.
        slugify(value),
        cut(value),
    )


def missing(text: str, *, is_id: bool = False, matters: bool = False) -> SafeString:
    """Return the name of a row that does not exist; in red if something live needs it."""
    shown = id_link("", text) if is_id else cut(text)
    style = "agentdb-wrong" if matters else ""
    return format_html(
        '<span class="agentdb-quiet" title="{}">{} <em class="{}">({})</em></span>',
        gettext("Nothing with this name is stored."),
        shown,
        style,
        gettext("missing"),
    )


def unreadable(value: Unreadable) -> SafeString:
    """Return the stored text of a value that cannot be read, with the reason on hover."""
    why = gettext("This value cannot be read.")
    if isinstance(value, Missing):
        why = gettext("The table lacks this column.")
    return format_html(
        '<span class="agentdb-unreadable" title="{}">{}</span>',
        why,
        cut(value) or "?",
    )


def when(instant: datetime | None) -> SafeString:
    """Return the relative time, with the exact one on hover."""
    if is_unreadable(instant):
        return unreadable(instant)
    if not instant:
        return none()
    return format_html(
        '<time datetime="{}" title="{}">{}</time>',
        instant.astimezone(UTC).isoformat(),
        exact(instant),
        relative(instant),
    )


def viewable(site: admin.AdminSite, request: HttpRequest) -> list[type[Model]]:
    """Return the models whose rows the user may see, in the order of the navigation."""
    # A host project's site may lack some of them.
    there = site._registry
    return [
        model
        for model in (Session, Sandbox, Agent, ApiKey)
        if model in there and there[model].has_view_permission(request)
    ]
