"""The admin on a database of each engine, with accounts in a file of their own."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from datetime import timedelta
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import Permission, User
from django.db import connections, router
from django.db.utils import ConnectionHandler
from django.test import Client
from django.utils import timezone

import agentdb
from agentdb.admin import sharing
from agentdb.admin_project.server import make_account_tables
from agentdb.console import questions
from agentdb.models import Agent, ApiKey, Sandbox, Session


class Router:
    """agentdb's tables in one database, accounts in another, as under 'runadmin'."""

    def __init__(self, agentdb_alias: str, accounts_alias: str) -> None:
        self.agentdb_alias, self.accounts_alias = agentdb_alias, accounts_alias

    def db_for_read(self, model: Any, **hints: Any) -> str:
        return (
            self.agentdb_alias
            if model._meta.app_label == "agentdb"
            else self.accounts_alias
        )

    db_for_write = db_for_read


class Site:
    """The admin as one user's browser sees it."""

    def __init__(self, db: agentdb.DjangoDb) -> None:
        self.db = db
        self.alias = db.alias
        self.client = Client()

    def log_in(self, user: User) -> None:
        self.client.force_login(user)

    def make_user(self, name: str, *permissions: str) -> User:
        """A staff account with permissions such as view_session."""
        user = User.objects.create_user(name, password="a long password", is_staff=True)
        found = Permission.objects.filter(
            content_type__app_label="agentdb", codename__in=permissions
        )
        assert len(found) == len(permissions)
        user.user_permissions.set(found)
        return user

    def log_in_viewer(self) -> User:
        user = self.make_user(
            "viewer", "view_agent", "view_session", "view_sandbox", "view_apikey"
        )
        self.log_in(user)
        return user

    def get(self, path: str, **query: str) -> Page:
        return Page(self.client.get(f"/admin/{path}", query))

    def exported(self, path: str, **query: str) -> str:
        """The whole of a file that is streamed."""
        response: Any = self.client.get(f"/admin/{path}", query)
        assert response.status_code == 200
        return b"".join(response.streaming_content).decode()

    def post(
        self,
        path: str,
        *,
        follow: bool = True,
        headers: dict[str, str] | None = None,
        **data: Any,
    ) -> Page:
        return Page(
            self.client.post(f"/admin/{path}", data, follow=follow, headers=headers)
        )

    def act(self, path: str, action: str, ids: list[str], **more: Any) -> Page:
        """Choose an action for rows of a list, and return its question; ``confirm`` answers that."""
        return self.post(path, action=action, _selected_action=ids, index="0", **more)

    def confirm(self, path: str, action: str, ids: list[str], **more: Any) -> Page:
        """Choose an action for rows of a list, and answer its question with yes."""
        return self.post(path, **fields(self.act(path, action, ids)), **more)


def audited(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """The lines of the audit log."""
    return [
        json.loads(each.message)
        for each in caplog.records
        if each.name == "agentdb.audit"
    ]


class Page:
    """An answer, as the parts that tests ask about."""

    def __init__(self, response: Any) -> None:
        self.response = response
        self.status = response.status_code
        self.html = response.content.decode()
        parser = _Parser()
        parser.feed(self.html)
        self.text = re.sub(r"\s+", " ", " ".join(parser.text)).strip()
        self.links: list[tuple[str, str]] = parser.links
        self.offered: list[tuple[str, str]] = (
            parser.offered
        )  # by filters, whose links are not among the others
        self.rows: list[list[str]] = parser.rows

    def link(self, text: str) -> str:
        """The address of the link with that text."""
        found = {url for url, shown in self.links if shown == text}
        assert len(found) == 1, (text, found, [shown for _, shown in self.links])
        return found.pop()

    @property
    def messages(self) -> list[str]:
        return [str(message) for message in self.response.context["messages"]]


def fields(page: Page) -> dict[str, Any]:
    """What the form of a page's question, or of one that goes on, sends."""
    found = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', page.html)
    return {
        name: unescape(value)
        for name, value in found
        if name not in ("csrfmiddlewaretoken", "q")
    }


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.links: list[tuple[str, str]] = []
        self.offered: list[tuple[str, str]] = []
        self.rows: list[list[str]] = []
        self._in_filter = False
        self._href: str | None = None
        self._in_results = self._cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if tag == "details":
            self._in_filter = "data-filter" in attributes
        elif tag == "a":
            self._href = attributes.get("href")
            self.links.append((self._href or "", ""))
        elif tag == "table":
            self._in_results = attributes.get("id") == "result_list"
        elif tag == "tr" and self._in_results:
            self.rows.append([])
        elif tag in ("td", "th") and self._in_results:
            self.rows[-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag == "a":
            if self._href is not None:
                url, text = self.links[-1]
                self.links[-1] = (url, text.rstrip())
                if self._in_filter:
                    self.offered.append(self.links.pop())
            self._href = None
        elif tag == "details":
            self._in_filter = False
        elif tag == "table":
            if self._in_results:
                self.rows = [row for row in self.rows[1:] if row]
            self._in_results = False
        elif tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self._href is not None:
            url, text = self.links[-1]
            self.links[-1] = (url, re.sub(r"\s+", " ", f"{text}{data}").lstrip())
        if self._cell and self._in_results:
            self.rows[-1][-1] = re.sub(
                r"\s+", " ", f"{self.rows[-1][-1]}{data}"
            ).lstrip()


@pytest.fixture(scope="session")
def _accounts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with the tables of Django's own apps, and no account."""
    path = tmp_path_factory.mktemp("accounts") / "accounts.sqlite3"
    with _alias("accounts_template", path):
        make_account_tables("accounts_template")
    return path


class _alias:
    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        database = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(path)}
        connections.settings[name] = ConnectionHandler({"default": database}).settings[
            "default"
        ]

    def __enter__(self) -> str:
        return self.name

    def __exit__(self, *error: object) -> None:
        connections[self.name].close()
        del connections[self.name]
        del connections.settings[self.name]


@pytest.fixture
def site(
    db: agentdb.DjangoDb,
    _accounts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Site]:
    """The admin on an empty database, nobody logged in."""
    assert settings.DEBUG is False
    monkeypatch.setattr(sharing, "SECONDS", -1.0)
    # A busy machine may need longer for an answer than a reader would wait.
    for limit in (
        "console.questions.SECONDS",
        "console.figures.COUNT_SECONDS",
        "admin.find.SECONDS",
        "admin.pages.SUM_SECONDS",
        "admin.changelist.COUNT_SECONDS",
        "admin.changelist.SEARCH_SECONDS",
    ):
        monkeypatch.setattr(f"agentdb.{limit}", 60.0)
    monkeypatch.setattr(questions, "PAGE_SECONDS", 240.0)
    monkeypatch.setattr(
        "agentdb.admin.guard.question",
        lambda connection, seconds: questions.question(connection, 240.0),
    )
    copy = tmp_path / "accounts.sqlite3"
    shutil.copyfile(_accounts, copy)
    with _alias("accounts", copy) as accounts:
        monkeypatch.setattr(router, "routers", [Router(db.alias, accounts)])
        yield Site(db)


@pytest.fixture
def frozen_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a second nor an hour ends between what a test stores and what a page says of it."""
    now = timezone.now()
    monkeypatch.setattr(timezone, "now", lambda: now)


@pytest.fixture
def superuser(site: Site) -> User:
    """A superuser, who is logged in."""
    user = User.objects.create_superuser("root", password="a long password")
    site.log_in(user)
    return user


def fill(alias: str, rows: int, *, tenants: int = 10) -> None:
    """Rows in every table, each a minute older than the one before, the first belonging to the first tenant."""
    now = timezone.now()
    ages = [now - timedelta(minutes=number) for number in range(rows)]
    states = ("cold", "warming", "warm", "waiting", "running")
    statuses = ("starting", "active", "paused", "ended", "error")
    Agent.objects.using(alias).bulk_create(
        Agent(
            id=f"a{n:04}",
            tenant_id=f"t{n % tenants}",
            name=f"agent-{n}",
            path=f"/srv/{n}",
            created_at=ages[n],
        )
        for n in range(rows)
    )
    Session.objects.using(alias).bulk_create(
        Session(
            id=f"s{n:04}",
            tenant_id=f"t{n % tenants}",
            agent_name=f"agent-{n}",
            sandbox_id=f"b{n:04}",
            status=statuses[n % 5],
            runner_id=f"runner-{n % 3}" if n % 2 else None,
            created_at=ages[n],
            last_active_at=ages[n],
        )
        for n in range(rows)
    )
    Sandbox.objects.using(alias).bulk_create(
        Sandbox(
            id=f"b{n:04}",
            tenant_id=f"t{n % tenants}",
            agent_name=f"agent-{n}",
            session_id=f"s{n:04}",
            state=states[n % 5],
            workspace_dir=f"/work/{n}",
            created_at=ages[n],
            last_used_at=ages[n],
        )
        for n in range(rows)
    )
    ApiKey.objects.using(alias).bulk_create(
        ApiKey(
            id=f"k{n:04}",
            tenant_id=f"t{n % tenants}",
            key_hash=f"{n:064x}",
            label=f"key {n}",
            created_at=ages[n],
        )
        for n in range(rows)
    )
