"""Every page of the console as a whole: all that it says, where it leads and what it asks, for rows that never change.

``pages.txt`` holds them. After a change that is meant, write it again with ``AGENTDB_WRITE_PAGES=1`` and read the
difference.
"""

from __future__ import annotations

import difflib
import itertools
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.db import connections
from django.utils import timezone

from agentdb.conf import server_name
from agentdb.models import Agent, Sandbox, Session
from tests.helpers.admin_fixtures import Page, Site, fields, fill
from tests.helpers.stored_output import sections

PAGES = Path(__file__).with_name("pages.txt")
NOW = datetime(2026, 3, 14, 15, 9, 26, tzinfo=UTC)

ADDRESSES = (
    "",
    "agentdb/",
    "agentdb/agent/",
    "agentdb/session/",
    "agentdb/sandbox/",
    "agentdb/apikey/",
    "agentdb/session/?status=active",
    "agentdb/session/?status=error&tenant_id=t0",
    "agentdb/session/?from=5m&o=8",
    "agentdb/session/?to=5m",
    "agentdb/session/?to=soon",
    "agentdb/session/?agent_name=agent-1&tenant_id=t1",
    "agentdb/session/?q=s0003",
    "agentdb/session/?q=nothing",
    "agentdb/sandbox/?state=waiting",
    "agentdb/sandbox/?o=created_at",
    "agentdb/agent/?q=agent-1",
    "agentdb/agent/a0003/change/",
    "agentdb/session/s0001/change/",
    "agentdb/session/s0003/change/",
    "agentdb/session/alone/change/",
    "agentdb/session/none/change/",
    "agentdb/sandbox/b0003/change/",
    "agentdb/sandbox/alone/change/",
    "agentdb/apikey/k0001/change/",
    "agentdb/session/runner/?id=runner-1",
    "agentdb/session/runner/?id=dead",
    "agentdb/session/runner/?id=nobody",
    "agentdb/agent/tenant/?id=t0",
    "agentdb/agent/tenant/?id=nobody",
    "agentdb/session/attention/?check=unreadable",
    "agentdb/session/changes/",
    "agentdb/session/changes/?from=2m",
    "agentdb/session/changes/?from=soon",
    *(
        f"agentdb/session/groups/?by={by}"
        for by in ("agent_name", "tenant_id", "runner_id", "status", "hour", "day")
    ),
    "agentdb/session/groups/?by=status&from=10m&to=2m&tenant_id=t1",
    "agentdb/session/groups/?by=agent_name&runner_id=runner-1",
    "agentdb/session/groups/?by=agent_name&from=1m&to=2m",
    *(
        f"agentdb/session/groups/?table=sandbox&by={by}"
        for by in ("tenant_id", "agent_name", "state", "session_status", "runner_id")
    ),
    "agentdb/session/groups/?table=sandbox&by=state&runner_id=runner-1",
    "agentdb/session/groups/?table=sandbox&by=state&from=5m",
    "agentdb/session/?o=7&tenant_id=t0",
    "agentdb/session/?o=-7.8&age=1h&runner_id=runner-1",
    "agentdb/session/?o=1&status=ended",
    "agentdb/session/?sandbox_id=b0001",
    "agentdb/session/?active=over30m",
    "agentdb/session/?active=1y",
    "agentdb/session/?check=agent-missing",
    "agentdb/session/?check=sandbox-alone",
    "agentdb/session/?after=2026-03-14T14:00:00%2B00:00,x&status=active",
    "agentdb/session/?after=soon&status=starting",
    "agentdb/sandbox/?session_id=s0001",
    "agentdb/sandbox/?check=sandbox-alone",
    "agentdb/agent/?o=6&tenant_id=t1",
    "agentdb/apikey/?age=5m",
    "agentdb/apikey/add/",
    "agentdb/session/undo/",
    "agentdb/session/attention/?check=agent-missing",
)

SEARCHES = ("s0003", "S0003", "agent-1", "t1", "runner-1", "b00", "key 1", "nothing")
ACTIONS = (
    ("agentdb/sandbox/", "delete_sandboxes", ["b0001", "b0006", "b0004"]),
    ("agentdb/session/", "pause_sessions", ["s0000", "s0001", "s0003", "no"]),
    ("agentdb/sandbox/", "mark_cold", ["b0002", "b0003", "b0005", "no"]),
    ("agentdb/apikey/", "revoke_keys", ["k0000", "k0001"]),
)
# The answers to what all that match a filter were asked, of which each response does two.
OF_ALL = (
    ("agentdb/session/?tenant_id=t2", "pause_sessions"),
    ("agentdb/sandbox/?tenant_id=t2", "delete_sandboxes"),
    ("agentdb/sandbox/?tenant_id=t0", "mark_cold"),
)
EXPORTS = (
    "agentdb/session/export/json/?status=active",
    "agentdb/session/export/csv/?tenant_id=t1",
    "agentdb/sandbox/export/csv/?state=cold",
    "agentdb/agent/export/json/?q=agent-1",
    "agentdb/apikey/export/csv/?tenant_id=t0",
)
OF_A_DAMAGED_DATABASE = (
    "",
    "agentdb/session/attention/?check=unreadable",
    "agentdb/session/bad/change/",
    "agentdb/session/?q=bad",
    "agentdb/session/changes/",
)
OF_A_VIEWER = (
    "",
    "agentdb/session/?status=active",
    "agentdb/session/s0001/change/",
    "agentdb/apikey/k0002/change/",
)


class _Shown(HTMLParser):
    """The content of a page, a line for each text, link, field and bar."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._depth = 0  # within the content, a <div>
        self._hidden = ""
        self._links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        has = {name: value or "" for name, value in attrs}
        if tag == "div" and (self._depth or has.get("id") == "content"):
            self._depth += 1
        if not self._depth or has.get("name") == "csrfmiddlewaretoken":
            return
        if self._hidden:
            return
        # A list's dialog and signs are in a block that each version of Django puts elsewhere.
        if tag in ("script", "style", "template", "dialog", "symbol"):
            self._hidden = tag
        elif tag == "a":
            # Django 6.1's querystring tag writes "?" for a link without parameters, 5.2's nothing.
            self._links.append(has.get("href", "").removesuffix("?"))
        elif tag in ("input", "select", "textarea", "button", "option"):
            named = [
                " ".join(has[each].splitlines())
                for each in ("name", "value")
                if each in has
            ]
            flags = [
                each for each in ("checked", "selected", "disabled") if each in has
            ]
            self.lines.append(" ".join([f"<{tag}>", *named, *flags]))
        elif tag == "form":
            self.lines.append(f"<form> {has.get('method', '')} {has.get('action', '')}")
        elif tag == "rect":
            sizes = [has[each] for each in ("x", "y", "width", "height") if each in has]
            self.lines.append(" ".join(["<rect>", *sizes]))

    def handle_endtag(self, tag: str) -> None:
        if tag == self._hidden:
            self._hidden = ""
        elif self._depth and tag == "div":
            self._depth -= 1
        elif self._depth and tag == "a" and self._links:
            self.lines.append(f"-> {self._links.pop()}")

    def handle_data(self, data: str) -> None:
        text = " ".join(data.split())
        if text and self._depth and not self._hidden:
            self.lines.append(text)


def _shown(site: Site, response: Any) -> list[str]:
    if response.streaming:
        return b"".join(response.streaming_content).decode().splitlines()
    parser = _Shown()
    parser.feed(response.content.decode())
    ended = [f"=> {url}" for url, _ in getattr(response, "redirect_chain", ())]
    lines = (_plain(site, line) for line in parser.lines)
    return [f"{response.status_code}", *ended, *lines]


def _done_to_all(site: Site) -> Iterator[tuple[str, list[str]]]:
    """Each step of an action on all rows that match, the undoing of a pause, and what the audit log has of it."""
    for path, action in OF_ALL:
        page = site.act(path, action, ["b0002"], select_across="1")
        for step in itertools.count():
            yield f"all {path} {action} {step}", _shown(site, page.response)
            if "asked" not in fields(page):
                break
            page = site.post(path, **fields(page))
    path = "agentdb/session/?runner_id=dead"
    page = site.act(path, "pause_sessions", ["s"], select_across="1")
    yield "pause dead?", _shown(site, page.response)
    page = site.post(path, **fields(page))
    yield "pause dead", _shown(site, page.response)
    page = site.post("agentdb/session/undo/", **fields(page))
    yield "resume", _shown(site, page.response)


def _all_pages(site: Site) -> Iterator[tuple[str, list[str]]]:
    for address in (*ADDRESSES, *EXPORTS):
        yield address, _shown(site, site.client.get(f"/admin/{address}", follow=True))
    for text in SEARCHES:
        found = site.post("agentdb/session/find/", q=text)
        yield f"find {text}", _shown(site, found.response)
    for path, action, ids in ACTIONS:
        question, answer = (
            each(path, action, ids) for each in (site.act, site.confirm)
        )
        yield f"{path} {action}?", _shown(site, question.response)
        yield f"{path} {action}!", _shown(site, answer.response)
    _damage(site)
    for address in OF_A_DAMAGED_DATABASE:
        shown = _shown(site, site.client.get(f"/admin/{address}", follow=True))
        yield f"damaged {address}", shown
    site.log_in_viewer()
    for address in OF_A_VIEWER:
        shown = _shown(site, site.client.get(f"/admin/{address}", follow=True))
        yield f"viewer {address}", shown
    for path, action, ids in ACTIONS[:1]:
        refused = site.act(path, action, ids)
        yield f"viewer {path} {action}", _shown(site, refused.response)


def _damage(site: Site) -> None:
    """Drop an index and a column's value that Python can read."""
    Session.objects.using(site.alias).create(
        id="bad",
        agent_name="agent-0",
        tenant_id="t0",
        sandbox_id="",
        status="paused",
        created_at=NOW - timedelta(hours=5),
        last_active_at=NOW - timedelta(hours=5),
    )
    connection = connections[site.alias]
    odd = "not-a-date" if connection.vendor == "sqlite" else "infinity"
    with connection.cursor() as cursor:
        cursor.execute("DROP INDEX idx_sessions_tenant")
        cursor.execute("UPDATE sessions SET created_at = %s WHERE id = 'bad'", [odd])


def _plain(site: Site, line: str) -> str:
    """The line without what differs from one database to the next."""
    connection = connections[site.alias]
    line = re.sub(rf"{connection.display_name} [\d.]+", "ENGINE", line)
    line = re.sub(r"^agentdb( \d.*)?$", "VERSION", line)
    line = re.sub(r"id [0-9a-f-]{36}$", "id RANDOM", line)
    line = re.sub(r"^<input> asked .*", "<input> asked SIGNED", line)
    name = str(connection.settings_dict["NAME"])
    place = (
        [repr(name), name]
        if connection.vendor == "sqlite"
        else [server_name(connection.settings_dict)]
    )
    for text in place:
        line = line.replace(text, "PLACE")
    return line.replace("not-a-date", "ODD").replace("infinity", "ODD")


def _stored() -> dict[str, list[str]]:
    return dict(sections(PAGES))


def test_each_page_says_what_it_has_always_said(
    site: Site,
    superuser: User,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="agentdb.audit")
    monkeypatch.setattr(timezone, "now", lambda: NOW)
    site.log_in(superuser)
    fill(site.alias, 12, tenants=3)
    Agent.objects.using(site.alias).update(updated_at=NOW)
    at = {
        "created_at": NOW - timedelta(hours=3),
        "last_active_at": NOW - timedelta(hours=2),
    }
    Session.objects.using(site.alias).create(
        id="alone",
        agent_name="gone",
        sandbox_id="gone",
        status="active",
        runner_id="dead",
        **at,
    )
    Sandbox.objects.using(site.alias).create(
        id="alone", agent_name="gone", session_id="gone", state="running", workspace_dir="/w",
        created_at=NOW - timedelta(days=3), last_used_at=NOW - timedelta(days=1),
    )  # fmt: skip

    pages = dict(_all_pages(site))
    site.log_in(superuser)
    monkeypatch.setattr("agentdb.admin.actions.BATCH", 2)
    pages |= _done_to_all(site)
    pages["audit log"] = [
        re.sub(r'"at": "[^"]*"', '"at": NOW', f"{each.levelname} {each.message}")
        for each in caplog.records
        if each.name == "agentdb.audit"
    ]
    pages["history"] = [
        f"{each.action_flag} {each.object_repr} ({each.object_id}) {each.change_message}"
        for each in LogEntry.objects.order_by("pk")
    ]

    if "AGENTDB_WRITE_PAGES" in os.environ:
        PAGES.write_text(
            "".join(
                f"=== {address}\n" + "".join(f"{line}\n" for line in lines)
                for address, lines in pages.items()
            )
        )
    stored = _stored()
    assert list(pages) == list(stored)
    changes = [
        line
        for address, lines in stored.items()
        for line in difflib.unified_diff(
            lines, pages[address], address, "shown", lineterm="", n=1
        )
    ]
    assert not changes, "\n".join(changes)


@pytest.mark.parametrize("rows", [50, 51])
def test_a_page_of_a_list_has_up_to_50_rows(
    site: Site, superuser: User, rows: int
) -> None:
    fill(site.alias, rows)

    for table in ("agent", "session", "sandbox", "apikey"):
        page = site.get(f"agentdb/{table}/")
        assert len(page.rows) == 50
        nexts = [url for url, text in page.links if "Next" in text or "Older" in text]
        assert bool(nexts) is (rows > 50), page.links


TAKEN_BACK = (
    ("", "7 days", "/admin/?period=7d"),
    ("?period=7d", "24 hours", "/admin/?"),
    ("agentdb/session/?q=x", "Contains x", "/admin/agentdb/session/?"),
    ("agentdb/session/?q=x&status=active", "Contains x", "/admin/agentdb/session/?status=active"),
    ("agentdb/session/runner/?id=r&period=7d", "24 hours", "/admin/agentdb/session/runner/?id=r"),
)  # fmt: skip


def test_a_link_that_takes_something_back_leads_to_an_address_without_it(
    site: Site, superuser: User
) -> None:
    fill(site.alias, 3)
    for address, link, leads_to in TAKEN_BACK:
        page = Page(site.client.get(f"/admin/{address}"))
        [found] = {url for url, text in page.links if text.strip("× ") == link}
        # As a browser does, for which an empty address is the page itself, with its query.
        path, _, query = f"/admin/{address}".partition("?")
        assert f"{path}{found or '?' + query}" == leads_to
