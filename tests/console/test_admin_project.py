"""The project around the admin: settings, secret key, static files, servers, and 'runadmin'."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import http.client
import http.cookiejar
import json
import os
import re
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from django.core.management import CommandError, call_command
from django.db import connections
from django.test import Client

from agentdb import AgentDbError
from agentdb.admin_project.server import AdminRouter
from agentdb.management.commands import runadmin as runadmin_command
from agentdb.models import Session
from agentdb.serving.opening import temporary_alias
from settings import environment
from tests.helpers.moments import wait_until

ROOT = Path(__file__).parents[2]


def manage(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("AGENTDB_")
    }
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=ROOT,
        env={**inherited, "DJANGO_SETTINGS_MODULE": "settings.base", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


# -- the secret key


def test_secret_key_is_made_once_in_a_private_file(tmp_path: Path):
    path = tmp_path / "state" / "agentdb" / "secret_key"

    key = environment.secret_key(path)

    assert re.fullmatch(r"[A-Za-z0-9_-]{86}", key)
    assert environment.secret_key(path) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert list(path.parent.iterdir()) == [path]


def test_secret_key_is_one_however_many_ask_for_it_at_once(tmp_path: Path):
    start = threading.Barrier(8)

    def ask(_: int) -> str:
        start.wait()
        return environment.secret_key(tmp_path / "secret_key")

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(ask, range(8)))) == 1


def test_secret_key_that_cannot_be_kept_is_an_error_that_names_the_way_out(
    tmp_path: Path,
):
    (tmp_path / "file").write_text("")

    with pytest.raises(AgentDbError) as raised:
        environment.secret_key(tmp_path / "file" / "secret_key")

    assert str(raised.value) == (
        f"The secret key cannot be kept in '{tmp_path}/file/secret_key': File exists. "
        "Set AGENTDB_SECRET_KEY to 50 or more random characters."
    )


def test_secret_key_that_is_cut_off_is_refused(tmp_path: Path):
    (tmp_path / "secret_key").write_text("short")

    with pytest.raises(
        AgentDbError, match=r"is too short to be one\. Delete the file, and try again\."
    ):
        environment.secret_key(tmp_path / "secret_key")


def test_commands_that_sign_nothing_make_no_secret_key(tmp_path: Path):
    result = manage(
        "check",
        DATABASE_URL=f"sqlite:///{tmp_path}/x.sqlite3",
        XDG_STATE_HOME=str(tmp_path),
    )

    assert result.returncode == 0, result.stderr
    assert not (tmp_path / "agentdb").exists()


# -- settings


def test_deployment_check_has_nothing_to_say_behind_https(tmp_path: Path):
    result = manage(
        "check", "--deploy", "--fail-level=WARNING",
        DATABASE_URL=f"sqlite:///{tmp_path}/x.sqlite3", XDG_STATE_HOME=str(tmp_path), AGENTDB_HTTPS="1",
    )  # fmt: skip

    assert (result.returncode, result.stdout) == (
        0,
        "System check identified no issues (0 silenced).\n",
    )


def test_deployment_check_without_https_names_what_https_switches_on(tmp_path: Path):
    result = manage(
        "check",
        "--deploy",
        DATABASE_URL=f"sqlite:///{tmp_path}/x.sqlite3",
        XDG_STATE_HOME=str(tmp_path),
    )

    assert sorted(re.findall(r"security\.W\d+", result.stderr)) == [
        "security.W004",
        "security.W008",
        "security.W012",
        "security.W016",
    ]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", False),
        ("0", False),
        ("Off", False),
        (" no ", False),
        ("1", True),
        ("true", True),
    ],
)
def test_flag_reads_a_switch(
    monkeypatch: pytest.MonkeyPatch, value: str, expected: bool
):
    monkeypatch.setenv("AGENTDB_HTTPS", value)

    assert environment.flag("AGENTDB_HTTPS") is expected


def test_words_split_at_commas(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AGENTDB_ALLOWED_HOSTS", "a.example, b.example,,")

    assert environment.words("AGENTDB_ALLOWED_HOSTS") == ["a.example", "b.example"]


PROBE = """
import json, os
from settings.{kind} import application
from django.conf import settings
print(json.dumps([settings.DEBUG, settings.ALLOWED_HOSTS, settings.SECRET_KEY[:3], settings.SESSION_COOKIE_SECURE]))
"""


@pytest.mark.parametrize("kind", ["wsgi", "asgi"])
def test_project_is_importable_by_a_server_and_reads_the_environment(
    tmp_path: Path, kind: str
):
    environment = {
        **os.environ,
        "DATABASE_URL": f"sqlite:///{tmp_path}/x.sqlite3",
        "AGENTDB_SECRET_KEY": "k3y" * 20,
        "AGENTDB_ALLOWED_HOSTS": "admin.example",
        "AGENTDB_HTTPS": "1",
    }
    environment.pop("DJANGO_SETTINGS_MODULE", None)
    result = subprocess.run(
        [sys.executable, "-c", PROBE.format(kind=kind)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )

    assert result.stdout == '[false, ["admin.example"], "k3y", true]\n'


# -- static files and headers


def test_static_files_are_served_without_a_second_server():
    response = Client().get("/static/admin/css/base.css")

    assert response.status_code == 200
    assert response["Content-Type"] == "text/css"
    assert response["Cache-Control"] == "public, max-age=3600"
    assert b"DJANGO Admin styles" in response.getvalue()
    for path, kind in (
        ("static/agentdb/console.css", "text/css"),
        ("favicon.ico", "image/svg+xml"),
    ):
        found = Client().get(f"/{path}")
        assert (found.status_code, found["Content-Type"], bool(found.getvalue())) == (
            200,
            kind,
            True,
        )


@pytest.mark.parametrize(
    "path",
    [
        "nothing.css",
        "../models.py",
        "%2e%2e/models.py",
        "admin",
        "a%00b",
        "/etc/passwd",
    ],
)
def test_static_files_are_those_of_the_apps_and_no_others(path: str):
    assert Client().get(f"/static/{path}").status_code in (400, 404)


def test_static_files_can_be_read_and_not_written():
    assert Client().post("/static/admin/css/base.css").status_code == 405


def test_pages_forbid_scripts_and_sources_from_elsewhere():
    response = Client().get("/admin/login/", follow=True)

    assert response["Content-Security-Policy"] == (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
    assert response["X-Frame-Options"] == "DENY"
    assert response["X-Content-Type-Options"] == "nosniff"
    assert response["Referrer-Policy"] == "same-origin"


def test_root_leads_to_the_admin():
    assert Client().get("/")["Location"] == "/admin/"


def test_unknown_host_is_refused():
    assert (
        Client().get("/admin/login/", headers={"host": "evil.example"}).status_code
        == 400
    )


def test_asgi_application_serves_pages_and_static_files():
    from django.core.asgi import get_asgi_application
    from django.test import AsyncClient

    async def ask() -> tuple[int, int]:
        client = AsyncClient()
        static = await client.get("/static/agentdb/console.css")
        static.close()
        return (await client.get("/admin/login/")).status_code, static.status_code

    assert callable(get_asgi_application())
    assert asyncio.run(ask()) == (200, 200)


# -- runadmin


def test_router_keeps_accounts_out_of_the_database_that_is_looked_at():
    from django.contrib.auth.models import User

    router = AdminRouter()

    assert (router.db_for_read(Session), router.db_for_write(Session)) == (
        "default",
        "default",
    )
    assert (router.db_for_read(User), router.db_for_write(User)) == ("admin", "admin")
    assert [router.allow_migrate(db, app) for db in ("default", "admin") for app in ("agentdb", "auth")] == [
        True, False, False, True
    ]  # fmt: skip


def runadmin(url: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "DATABASE_URL": url}
    environment.pop("DJANGO_SETTINGS_MODULE", None)
    command = [sys.executable, "-m", "agentdb", "runadmin", *arguments]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A suite that is run in the background ignores Ctrl-C, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def table_names(url: str) -> set[str]:
    import sqlite3

    connection = sqlite3.connect(url.removeprefix("sqlite:///"))
    try:
        return {
            name
            for (name,) in connection.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table'"
            )
        }
    finally:
        connection.close()


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_runadmin_leaves_nothing_in_the_database(url: str):
    before = table_names(url)

    with runadmin(url, "--port", "0") as server:
        assert server.stdout is not None
        lines = [server.stdout.readline() for _ in range(4)]
        server.send_signal(signal.SIGTERM)
        rest = server.stdout.read()

    assert re.fullmatch(
        r"The admin is at http://[a-z0-9-]+-[0-9a-f]{6}\.localhost:\d+/admin/\n",
        lines[0],
    )
    assert lines[1] == f"  user name  {getpass.getuser()}\n"
    assert re.fullmatch(r"  password   [A-Za-z0-9_-]{16}\n", lines[2])
    assert lines[3] == (
        "This account is gone when this ends. Only this machine can reach the address. Stop with Ctrl-C.\n"
    )
    assert rest == ""
    assert table_names(url) == before


class Answer(NamedTuple):
    status: int
    location: str
    text: str


class Console:
    """A 'runadmin', asked as a browser asks it, which knows that names below localhost are this machine."""

    def __init__(self, server: subprocess.Popen[str]) -> None:
        assert server.stdout is not None
        address, self.user, self.password, self.note = (
            server.stdout.readline().split()[-1] for _ in range(4)
        )
        self.host, self.port = (
            urllib.parse.urlsplit(address).netloc,
            urllib.parse.urlsplit(address).port,
        )
        self.cookies: dict[str, str] = {}
        self.set_cookies: list[str] = []

    def ask(
        self, path: str, form: dict[str, str] | None = None, **headers: str
    ) -> Answer:
        sent = {
            "Host": self.host,
            "Cookie": "; ".join(
                f"{name}={text}" for name, text in self.cookies.items()
            ),
        }
        if form is not None:
            sent["Content-Type"] = "application/x-www-form-urlencoded"
        body = urllib.parse.urlencode(form) if form is not None else None
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", self.port or 0)
        ) as connection:
            connection.request(
                "POST" if form is not None else "GET", path, body, {**sent, **headers}
            )
            with connection.getresponse() as response:
                answer = Answer(
                    response.status,
                    response.headers.get("Location", ""),
                    response.read().decode(),
                )
        for cookie in response.headers.get_all("Set-Cookie", []):
            self.set_cookies.append(cookie)
            name, _, text = cookie.partition(";")[0].partition("=")
            self.cookies[name] = text
        return answer

    def overview(self) -> str:
        """The overview, once all of its questions are answered: on a slow machine the first may take too long."""
        found: list[str] = []

        def is_whole() -> bool:
            found.append(self.ask("/admin/").text)
            return "Nothing needs attention" in found[-1]

        wait_until(is_whole, "something needs attention")
        return found[-1]

    def log_in(self, password: str = "") -> int:
        token = re.search(
            r'csrfmiddlewaretoken" value="(\w+)"', self.ask("/admin/login/").text
        )
        assert token is not None
        form = {
            "username": self.user,
            "password": password or self.password,
            "csrfmiddlewaretoken": token[1],
        }
        return self.ask("/admin/login/?next=/admin/", form).status


def test_runadmin_works_on_both_engines_and_read_only(url: str):
    with runadmin(url, "--port", "0", "--read-only") as server:
        try:
            console = Console(server)
            assert console.log_in() == 302
            overview = console.overview()
            refused = console.ask("/admin/agentdb/apikey/add/").status
        finally:
            server.send_signal(signal.SIGINT)

    assert "Nothing is stored yet" in overview
    assert "Read-only" in overview
    assert "Change password" not in overview  # of an account that ends with the process
    assert refused == 403
    assert console.note == "Ctrl-C."


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_runadmin_has_a_name_and_cookies_that_are_its_own_and_end_with_the_browser(
    url: str,
):
    with (
        runadmin(url, "--port", "0", "--user", "Ann Smith") as server,
        runadmin(url, "--port", "0") as other,
    ):
        try:
            console, second = Console(server), Console(other)
            console.user = "Ann Smith"
            assert console.log_in() == 302
            elsewhere = console.ask(
                "/admin/?period=7d", Host=f"127.0.0.1:{console.port}"
            )
            sent = console.ask(
                "/admin/login/", {"a": "b"}, Host=f"localhost:{console.port}"
            )
            tunnelled = console.ask("/admin/", Host="localhost:8000")
            foreign = console.ask("/admin/", Host="evil.example")
        finally:
            server.send_signal(signal.SIGINT)
            other.send_signal(signal.SIGINT)

    assert console.host != second.host
    assert console.cookies.keys().isdisjoint(second.cookies)
    assert len(console.cookies) == 2
    for cookie in console.set_cookies:
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
        assert (
            "expires" not in cookie.lower()
            and "max-age" not in cookie.lower()
            and "domain" not in cookie.lower()
        )
    assert (elsewhere.status, elsewhere.location) == (
        302,
        f"http://{console.host}/admin/?period=7d",
    )
    assert (sent.status, foreign.status) == (302, 400)
    name, _, _ = console.host.partition(":")
    assert tunnelled.location == f"http://{name}:8000/admin/"


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_runadmin_audits_failed_logins_and_helps_after_cookies_were_cleared(
    url: str, tmp_path: Path
):
    with runadmin(
        url, "--port", "0", "--audit-log", str(tmp_path / "audit.jsonl")
    ) as server:
        try:
            console = Console(server)
            assert console.log_in("wrong") == 200
            console.cookies.clear()
            page = console.ask(
                "/admin/agentdb/session/?status=active", {"action": "pause_sessions"}
            )
        finally:
            server.send_signal(signal.SIGINT)

    audit_log = tmp_path / "audit.jsonl"
    assert audit_log.stat().st_mode & 0o777 == 0o600
    [line] = map(json.loads, audit_log.read_text().splitlines())
    assert (line["user"], line["from"], line["action"], line["outcome"]) == (
        console.user, "127.0.0.1", "log in", "refused"
    )  # fmt: skip
    assert page.status == 403
    assert "Nothing was changed" in page.text
    assert 'href="/admin/agentdb/session/"' in page.text


@pytest.mark.parametrize("name", ["", " ", "a\nb", "x" * 151])
def test_runadmin_refuses_a_user_that_no_line_can_name(name: str):
    with pytest.raises(
        CommandError, match="--user must be a name of at most 150 printable characters"
    ):
        runadmin_command._user(name)


def test_pages_are_compressed_for_a_browser_that_asks_for_it():
    answer = Client().get("/admin/login/", headers={"accept-encoding": "gzip"})

    assert answer["Content-Encoding"] == "gzip"


def refusal(url: str) -> str:
    with temporary_alias(url) as alias, pytest.raises(CommandError) as raised:
        call_command("runadmin", database=alias)
    assert raised.value.returncode == 1
    return str(raised.value)


def test_runadmin_refuses_a_database_that_lacks_migrations(empty_url: str):
    if empty_url.startswith("sqlite"):
        Path(empty_url.removeprefix("sqlite:///")).touch()

    assert re.fullmatch(
        r".+ database .+ lacks the migrations 0001_initial, .*\. Run 'agentdb migrate'\.",
        refusal(empty_url),
    )


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_runadmin_says_which_port_is_taken(url: str):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with runadmin(url, "--port", str(port)) as server:
            _, stderr = server.communicate()

    assert server.returncode == 1
    assert (
        f"Port {port} of 127.0.0.1 cannot be used: Address already in use. Name another one with --port."
        in stderr
    )


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_runadmin_says_that_a_port_cannot_be(url: str):
    with runadmin(url, "--port", "65536") as server:
        _, stderr = server.communicate()

    assert server.returncode == 1
    assert stderr.endswith(
        "Port 65536 of 127.0.0.1 cannot be used: it must be from 0 to 65535. Name another one with --port.\n"
    )


class Replaced(Exception):
    """Raised where the program would become the server."""


class Server(NamedTuple):
    """What a runadmin hands to the program that it becomes."""

    settings: dict[str, Any]
    program: str
    arguments: list[str]
    environment: dict[str, str]


def become(monkeypatch: pytest.MonkeyPatch, alias: str, **options: Any) -> Server:
    found: list[dict[str, Any]] = []
    program: list[Any] = []

    def dup2(source: int, target: int) -> None:
        assert target == 0  # standard input
        with open(source) as pipe:
            found.append(json.loads(pipe.read()))

    def execve(*words: Any) -> None:
        program.extend(words)
        raise Replaced

    with monkeypatch.context() as patched:
        patched.setattr("os.dup2", dup2)
        patched.setattr("os.execve", execve)
        with pytest.raises(Replaced):
            call_command("runadmin", database=alias, **options)
    return Server(found[0], *program)


def test_runadmin_hands_all_that_it_was_told_to_the_server_and_no_secret_as_argument(
    url: str, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("beside")
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "host.settings")
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    with temporary_alias(url) as alias:
        project = {**connections[alias].settings_dict, "PASSWORD": "pass-word"}
        connections[alias].settings_dict = {
            **project,
            "ATOMIC_REQUESTS": True,
            "AUTOCOMMIT": False,
            "TIME_ZONE": "Asia/Tokyo",
            "AGENTDB": {"apps": ["billing"]},
        }
        if engine == "sqlite":
            # SQLite reads its names in any letters.
            init = project["OPTIONS"]["init_command"]
            init = init.replace("journal_mode", "Journal_Mode")
            project["OPTIONS"]["init_command"] = init
        monkeypatch.setattr(runadmin_command, "_check_migrated", lambda alias: None)
        server = become(
            monkeypatch, alias, port=8123, user="Ann", audit_log="audit.jsonl"
        )

    name = server.settings.pop("name")
    assert re.fullmatch(r"agentdb-[0-9a-f]{6}", name)
    changed: dict[str, Any] = {"connect_timeout": 5}
    if engine == "sqlite":
        # The file keeps its journal mode.
        init = " PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON"
        changed = {"timeout": 3.0, "init_command": init}
    assert server.settings == {
        "database": {
            **project,
            "ATOMIC_REQUESTS": False,
            "AGENTDB": {},
            "OPTIONS": {**project["OPTIONS"], **changed},
        },
        "port": 8123,
        "user": "Ann",
        "read_only": False,
        "audit_log": f"{tmp_path}/audit.jsonl",
    }
    assert server.program == server.arguments[0] == sys.executable
    assert server.arguments[1:3] == ["-P", "-c"]
    # agentdb's own folder is the last, and the working directory is not among them.
    left_out = ("", str(tmp_path), str(ROOT))
    others = [each for each in sys.path if each not in left_out]
    assert server.arguments[4:] == [*others, str(ROOT)]
    assert "beside" in server.arguments
    assert "pass-word" not in str(server[1:])
    environment = {**os.environ}
    del environment["DJANGO_SETTINGS_MODULE"], environment["PYTHONPATH"]
    assert server.environment == environment


@pytest.mark.parametrize("engine", ["sqlite"])
@pytest.mark.parametrize("locked", [None, "file", "folder"])
def test_runadmin_opens_a_file_that_is_not_to_be_changed_read_only(
    engine: str, url: str, monkeypatch: pytest.MonkeyPatch, locked: str | None
):
    path = Path(url.removeprefix("sqlite:///"))
    # Root may write everywhere.
    refused = {None: (), "file": (path,), "folder": (path.parent,)}[locked]
    monkeypatch.setattr("os.access", lambda each, mode: each not in refused)
    with temporary_alias(url) as alias:
        server = become(monkeypatch, alias, read_only=locked != "file")

    database = server.settings["database"]
    name = f"file:{path}?mode=ro"
    assert database["NAME"] == (f"{name}&immutable=1" if locked == "folder" else name)
    assert "transaction_mode" not in database["OPTIONS"]
    assert server.settings["read_only"] is True
    assert server.settings["audit_log"] is None
    assert server.settings["user"] == getpass.getuser()


@pytest.mark.parametrize("asked", ["", "?connect_timeout=0", "?connect_timeout=60"])
def test_runadmin_waits_for_a_server_as_long_as_a_person_does(asked: str):
    with temporary_alias(f"postgresql://127.0.0.1/agents{asked}") as alias:
        served = runadmin_command._served(connections[alias], read_only=False)

    assert served["OPTIONS"]["connect_timeout"] == 5


def test_runadmin_of_an_account_without_a_name_calls_it_admin(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(getpass, "getuser", lambda: os.environ["NO_SUCH_VARIABLE"])

    assert runadmin_command._user(None) == "admin"
    assert runadmin_command._user("x" * 150) == "x" * 150


def test_runadmin_says_that_the_audit_log_cannot_be_written(tmp_path: Path):
    with pytest.raises(CommandError) as raised:
        runadmin_command._check_audit_log(f"{tmp_path}/no/audit.jsonl")

    assert str(raised.value) == (
        f"The audit log '{tmp_path}/no/audit.jsonl' cannot be written: No such file or directory."
    )


@pytest.mark.parametrize("engine", ["sqlite"])
def test_runadmin_runs_no_file_of_the_working_directory_and_leaves_the_database_as_it_is(
    engine: str, url: str, tmp_path: Path
):
    path = Path(url.removeprefix("sqlite:///"))
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    connection.close()
    before = path.read_bytes()
    folder = tmp_path / "working directory"
    folder.mkdir()
    for name in ("tempfile", "secrets", "json"):
        (folder / f"{name}.py").write_text("open('ran', 'w').close()")
    audit_log = tmp_path / "audit.jsonl"
    script = "import sys; sys.path.remove(''); from agentdb.__main__ import main; sys.exit(main())"
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name != "DJANGO_SETTINGS_MODULE"
    }
    with subprocess.Popen(
        [sys.executable, "-c", script, "--url", url, "runadmin", "--port", "0", "--read-only",
         "--audit-log", str(audit_log)],
        cwd=folder, env={**inherited, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
    ) as server:  # fmt: skip
        try:
            console = Console(server)
            assert console.log_in() == 302
            page = console.overview()
        finally:
            server.send_signal(signal.SIGINT)

    assert not {"Users", "Groups", "Recent actions"} & set(
        re.findall(r">([^<>]+)<", page)
    )
    assert not (folder / "ran").exists()
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.glob(f"{path.name}*")] == [path.name]
    assert audit_log.read_text() == ""


def test_runadmin_makes_no_file_at_a_misspelt_path(tmp_path: Path):
    assert refusal(f"sqlite:///{tmp_path}/no.db") == (
        f"The database file '{tmp_path}/no.db' does not exist. Check the database URL, or run 'agentdb migrate' to "
        "make a new one."
    )
    assert list(tmp_path.iterdir()) == []


def test_runadmin_on_tables_of_the_old_server_names_the_command_that_adopts_them(
    load_legacy: Callable[[str], str],
):
    assert re.fullmatch(
        r".+ database .+ was made by the old server and is not adopted yet \(pending: .+\)\. Run 'agentdb baselinedb "
        r"--check' to see what adopting it does, then 'agentdb baselinedb'\.",
        refusal(load_legacy("era-b")),
    )


def test_runadmin_says_that_it_needs_a_temporary_folder():
    program = (
        "import sys, tempfile; tempfile.tempdir = '/proc/none'; "  # as in a container whose disk is read-only
        "from agentdb.admin_project.server import main; sys.exit(main())"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdin is not None
        server.stdin.write("{}\n")
        server.stdin.flush()
        assert server.stderr is not None
        assert server.stderr.read() == (
            "A temporary folder is needed, but cannot be made: no such file or directory. Name a folder that can be "
            "written to with TMPDIR=FOLDER.\n"
        )
    assert server.returncode == 1
