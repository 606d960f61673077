"""The admin in a real browser, served by the project's WSGI application.

A missing Chromium skips these tests, and fails them where CI or AGENTDB_REQUIRE_BROWSER is set. Set
AGENTDB_SCREENSHOTS to a folder to keep pictures.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    Route,
    expect,
    sync_playwright,
)

from tests import COCKROACH_URL_VARIABLE
from tests.conftest import ENGINES
from tests.helpers.admin_site_server import PASSWORD
from tests.helpers.factories import execute

ROOT = Path(__file__).parents[2]
MILLISECONDS = 120_000  # a slow machine is no fault of a page
expect.set_options(timeout=MILLISECONDS)

OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def chromium() -> str | None:
    """A Chromium of this machine, else the one that Playwright downloaded, else None."""
    named = os.environ.get("AGENTDB_TEST_CHROMIUM")
    found = named or next(
        filter(
            None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
        ),
        None,
    )
    if found:
        return found
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return own if Path(own).exists() else None


def new_context(browser: Browser, **options: Any) -> BrowserContext:
    context = browser.new_context(**options)
    context.set_default_timeout(MILLISECONDS)
    return context


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = chromium()
    if executable is None:
        reason = (
            "No Chromium was found. Install Debian's package chromium, run 'playwright install chromium', or set "
            "AGENTDB_TEST_CHROMIUM."
        )
        if os.environ.get("CI") or os.environ.get("AGENTDB_REQUIRE_BROWSER"):
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable, args=OPTIONS, timeout=MILLISECONDS
        )
        yield browser
        browser.close()


@pytest.fixture(
    scope="module", params=[name for name in ENGINES if name != "postgresql"]
)
def engine(request: pytest.FixtureRequest) -> str:
    """SQLite, and CockroachDB if AGENTDB_TEST_COCKROACH_URL names a cluster."""
    return request.param


@pytest.fixture(scope="module")
def site_url(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if engine == "sqlite":
        yield f"sqlite:///{tmp_path_factory.mktemp('database')}/site.sqlite3"
        return
    cluster, name = os.environ[COCKROACH_URL_VARIABLE], f"agentdb_site_{os.getpid()}"
    execute(cluster, f"CREATE DATABASE {name}")
    yield urlunsplit(urlsplit(cluster)._replace(path=f"/{name}"))
    execute(cluster, f"DROP DATABASE {name} CASCADE")


@pytest.fixture(scope="module")
def address(site_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The project's admin, served by another process: Playwright's event loop and Django's ORM share no thread."""
    folder = tmp_path_factory.mktemp("site")
    environment = {
        **os.environ,
        "DATABASE_URL": site_url,
        "XDG_STATE_HOME": str(folder),
        "AGENTDB_SECRET_KEY": "",
    }
    command = [sys.executable, "-m", "tests.helpers.admin_site_server"]
    with (
        (folder / "log").open("w+") as log,
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as server,
    ):
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        assert port, (folder / "log").read_text()
        yield f"http://127.0.0.1:{port}"
        server.communicate()


@pytest.fixture
def context(browser: Browser, address: str) -> Iterator[BrowserContext]:
    with new_context(
        browser, base_url=address, viewport={"width": 1280, "height": 900}
    ) as context:
        yield context


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A page; what the browser complains about, such as a blocked script, fails the test."""
    complaints: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            complaints.append(f"{message.text} at {message.location['url']}")

    page = context.new_page()
    page.on("console", note)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    assert complaints == []


def present(page: Page, name: str, password: str) -> None:
    page.goto("/admin/")
    page.get_by_label("Username").fill(name)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Log in").click()


_cookies: dict[
    str, Any
] = {}  # of the accounts that have logged in: hashing a password takes a while, on purpose


def log_in(page: Page, name: str = "root") -> None:
    page.context.add_cookies(_cookies.get(name, []))
    page.goto("/admin/")
    if "/login/" in page.url:
        present(page, name, PASSWORD)
        page.wait_for_url(lambda url: "/login/" not in url)
        _cookies[name] = page.context.cookies()


def keep(page: Page, name: str) -> None:
    if folder := os.environ.get("AGENTDB_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png")


def rows(page: Page) -> int:
    return page.locator("#result_list tbody tr").count()


def arrive(page: Page, part: str) -> None:
    """Wait for the page that a click leads to, with its style sheets: what follows may read it without waiting."""
    page.wait_for_url(lambda url: part in url)


def open_filter(page: Page, name: str) -> None:
    page.locator("summary").filter(has_text=name).click()


def act(page: Page, action: str) -> None:
    page.get_by_role("button", name=f"{action}…").click()


def test_wrong_password_is_refused_and_the_right_one_opens_the_overview(page: Page):
    present(page, "root", "wrong")
    expect(
        page.get_by_text("Please enter the correct username and password")
    ).to_be_visible()

    present(page, "root", PASSWORD)

    expect(page.get_by_role("heading", name="Sandboxes by state")).to_be_visible()
    expect(page.get_by_role("heading", name="Needs attention")).to_be_visible()
    keep(page, "overview")


def test_overview_leads_to_the_sessions_of_a_status(page: Page):
    log_in(page)

    page.locator("section", has_text="Sessions by status").get_by_role(
        "link", name="error"
    ).click()

    arrive(page, "/session/?status=error")
    assert {
        text.strip() for text in page.locator("td.field-status_badge").all_inner_texts()
    } == {"error"}


def test_filters_and_search_narrow_the_list(page: Page):
    log_in(page)
    page.goto("/admin/agentdb/session/")
    expect(page.get_by_text("160 sessions")).to_be_visible()
    keep(page, "sessions")

    open_filter(page, "Tenant")
    page.get_by_role("textbox", name="tenant").fill("globex")
    page.get_by_role("textbox", name="tenant").press("Enter")
    arrive(page, "tenant_id=globex")
    open_filter(page, "Status")
    page.locator(".agentdb-popover").get_by_role("link", name="paused").click()

    arrive(page, "status=paused&tenant_id=globex")
    assert {
        text.strip() for text in page.locator("td.field-tenant").all_inner_texts()
    } == {"globex"}
    assert {
        text.strip() for text in page.locator("td.field-status_badge").all_inner_texts()
    } == {"paused"}
    page.get_by_role("link", name="Clear filters").click()
    arrive(page, "/session/?")
    page.keyboard.press("/")
    page.keyboard.type("sess-0011")
    page.keyboard.press("Enter")
    arrive(page, "/session/sess-0011/change/")


def test_paging_goes_older_and_back_to_the_first_page(page: Page):
    log_in(page)
    page.goto("/admin/agentdb/session/")
    first = page.locator("td.field-id_link").first.inner_text()

    page.get_by_role("link", name="Older").click()
    arrive(page, "after=")
    second = page.locator("td.field-id_link").first.inner_text()
    page.get_by_role("link", name="First page").click()
    page.wait_for_url(lambda url: "after=" not in url)

    assert (first, second) == ("sess-0000", "sess-0050")
    assert page.locator("td.field-id_link").first.inner_text() == first


def test_a_shortened_id_as_the_page_shows_it_and_a_pasted_key_are_found(page: Page):
    log_in(page)
    page.goto("/admin/agentdb/apikey/?tenant_id=globex")
    shown = page.locator("td.field-id_link").first
    whole = shown.locator("a").get_attribute("data-copy")
    assert whole is not None

    page.locator("#searchbar").fill(f"{whole[:8]}…{whole[-4:]}")
    page.locator("#searchbar").press("Enter")

    arrive(page, f"/apikey/{whole}/change/")
    assert "q=" not in page.url


def test_links_lead_from_agent_to_sessions_to_sandbox_and_back(page: Page):
    log_in(page)
    page.goto("/admin/agentdb/agent/?tenant_id=acme")

    page.get_by_role("row", name="researcher").get_by_role(
        "link", name="sessions"
    ).click()
    arrive(page, "/session/")
    assert {
        text.strip() for text in page.locator("td.field-agent").all_inner_texts()
    } == {"researcher"}
    page.locator("td.field-sandbox a").first.click()
    expect(page.get_by_text("workspace_dir")).to_be_visible()
    keep(page, "sandbox")
    session = page.locator(
        ".agentdb-link-card", has_text="Session it is reserved for"
    ).locator("a")
    session_id = session.inner_text()
    session.click()

    expect(page.get_by_role("heading", level=1)).to_contain_text(session_id)
    page.get_by_role("link", name="researcher", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("researcher")
    page.get_by_role("link", name="acme", exact=True).click()
    expect(page.get_by_role("heading", name="Tenant acme")).to_be_visible()
    keep(page, "tenant")


def test_missing_targets_are_no_links(page: Page):
    log_in(page)
    page.goto("/admin/agentdb/session/?q=sess-0017")

    cell = page.locator("td.field-sandbox")

    expect(cell).to_have_text("sb-gone-17 (missing)")
    assert cell.locator("a").count() == 0


def test_exact_time_is_on_hover(page: Page):
    log_in(page)
    page.goto("/admin/agentdb/session/")

    title = page.locator("td.field-created time").nth(40).get_attribute("title")

    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d{6})? UTC", title or "")
    expect(page.locator("td.field-created time").nth(40)).to_have_text(
        re.compile(r"^\d+ (min|h) ago$")
    )


@pytest.mark.parametrize("policy", ["no-referrer", "origin"])
def test_an_action_leads_back_whatever_the_projects_referrer_policy(
    page: Page, policy: str
):
    def answer(route: Route) -> None:
        response = route.fetch()
        headers = {**response.headers, "referrer-policy": policy}
        route.fulfill(response=response, headers=headers)

    log_in(page)
    page.route("**/agentdb/session/**", answer)
    page.goto("/admin/agentdb/session/sess-0000/change/")
    row = page.url
    page.get_by_role("button", name="Pause…").click()

    page.get_by_role("link", name="No, go back").click()

    expect(page).to_have_url(row)


def test_action_asks_and_says_what_it_did(page: Page):
    log_in(page)
    page.goto("/admin/agentdb/session/?q=sess-000")
    for id in ("sess-0000", "sess-0001"):
        page.get_by_role("row", name=id).get_by_role("checkbox").check()

    act(page, "Pause selected sessions")
    expect(page.get_by_role("heading", name="Pause 1 session?")).to_be_visible()
    keep(page, "confirm")
    page.get_by_role("button", name="Pause 1").click()

    expect(page.get_by_role("heading", name="Paused 1 session")).to_be_visible()
    keep(page, "action-done")
    page.get_by_role("button", name="Undo").click()

    expect(page.get_by_role("heading", name="Resumed 1 session")).to_be_visible()
    page.get_by_role("link", name="sess-0000").click()
    expect(page.locator("h1")).to_contain_text("active")


def test_going_back_from_the_question_changes_nothing(page: Page):
    log_in(page)
    page.goto("/admin/agentdb/sandbox/?q=sb-0001")
    page.get_by_role("row", name="sb-0001").get_by_role("checkbox").check()

    act(page, "Delete selected sandboxes")
    page.get_by_role("link", name="No, go back").click()
    expect(page.get_by_role("heading", name="Sandboxes", exact=True)).to_be_visible()
    expect(page.locator("#result_list tbody tr")).to_have_count(1)


def test_key_is_issued_shown_once_and_revoked(page: Page):
    log_in(page)
    page.goto("/admin/agentdb/apikey/")
    page.get_by_role("link", name="Issue API key").click()
    page.get_by_label("Tenant").fill("acme")
    page.get_by_label("Label").fill("browser test")
    page.get_by_role("button", name="Issue key").click()

    expect(page.get_by_role("button", name="Copy key")).to_be_visible()
    key = page.get_by_label("The new API key").inner_text()
    assert re.fullmatch(r"agentdb_[A-Za-z0-9_-]{43}", key)
    keep(page, "key")

    page.reload()
    expect(page.get_by_text("This form has been used")).to_be_visible()
    assert key not in page.content()
    page.go_back()
    assert key not in page.content()

    page.goto("/admin/agentdb/apikey/?tenant_id=acme")
    keep(page, "keys")
    page.get_by_role("row", name="browser test").get_by_role("checkbox").check()
    act(page, "Revoke selected API keys")
    page.get_by_role("button", name="Revoke").click()
    expect(page.get_by_role("heading", name="Revoked 1 API key")).to_be_visible()
    page.get_by_role("link", name="Go back").click()
    expect(page.get_by_role("heading", name="API keys", exact=True)).to_be_visible()
    assert page.get_by_role("row", name="browser test").count() == 0


def test_read_only_user_sees_everything_and_can_change_nothing(page: Page):
    log_in(page, "viewer")
    expect(page.get_by_role("heading", name="Top tenants")).to_be_visible()

    for name in ("agent", "session", "sandbox", "apikey"):
        page.goto(f"/admin/agentdb/{name}/")
        assert rows(page) > 0
        assert page.get_by_label("Action:").count() == 0
        assert page.locator("input[type=checkbox]").count() == 0
        page.locator("#result_list tbody tr a").first.click()
        arrive(page, "/change/")
        main = page.locator("#content-main")
        assert main.locator("input:not([type=hidden]), textarea, select").count() == 0
        assert main.locator("form").count() == 0
        assert {"Copy as JSON", "Live, every 10 s"} >= set(
            main.locator(
                "button:not(.agentdb-copy, #agentdb-help-open)"
            ).all_inner_texts()
        )
    assert page.get_by_role("link", name="Issue API key").count() == 0


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_pages_fit_a_phone_in_both_themes(browser: Browser, address: str, theme: str):
    with new_context(
        browser,
        base_url=address,
        viewport={"width": 390, "height": 844},
        color_scheme=theme,
        has_touch=True,
    ) as context:
        page = context.new_page()
        log_in(page)
        for name, path in {
            "overview": "/admin/",
            "sessions": "/admin/agentdb/session/",
            "sandbox": "/admin/agentdb/sandbox/sb-0001/change/",
            "tenant": "/admin/agentdb/agent/tenant/?id=acme",
            "issue": "/admin/agentdb/apikey/add/",
        }.items():
            page.goto(path)
            width = page.evaluate("document.documentElement.scrollWidth")
            assert width <= 390, path
            keep(page, f"phone-{theme}-{name}")


def luminance(color: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    red, green, blue = (
        part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4
        for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_bars_stand_out_from_the_background(browser: Browser, address: str, theme: str):
    with new_context(browser, base_url=address, color_scheme=theme) as context:
        page = context.new_page()
        log_in(page)
        keep(page, f"overview-{theme}")
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        fills = page.evaluate(
            "[...document.querySelectorAll('.agentdb-bars rect, .agentdb-opened, .agentdb-failed')]"
            ".map(each => getComputedStyle(each).fill)"
        )

    assert len(fills) > 10
    for fill in fills:
        lighter, darker = sorted((luminance(fill), luminance(background)), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 2.2, fill


def test_keyboard_alone_reaches_and_runs_an_action(page: Page):
    log_in(page)
    page.goto("/admin/agentdb/sandbox/?q=sb-0005")

    reached: list[str] = []
    for _ in range(80):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "document.activeElement.name || document.activeElement.textContent.trim()"
            )
        )
        if reached[-1] == "_selected_action":
            break
    page.keyboard.press("Space")

    assert reached[0] == "Skip to main content"
    assert {"q", "tenant_id"} & set(reached)
    expect(page.locator(".action-select:checked")).to_have_count(1)
    focus = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert focus != "none"


def test_runadmin_prints_an_account_that_opens_the_admin(
    browser: Browser, tmp_path: Path
):
    url = f"sqlite:///{tmp_path}/state.sqlite3"
    environment = {**os.environ, "DATABASE_URL": url, "TMPDIR": str(tmp_path)}
    environment.pop("DJANGO_SETTINGS_MODULE", None)
    script = [sys.executable, "-m", "agentdb"]
    subprocess.run(
        [*script, "migrate"], cwd=ROOT, env=environment, check=True, capture_output=True
    )
    with subprocess.Popen(
        [*script, "runadmin", "--port", "0"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        lines = [server.stdout.readline() for _ in range(4)]
        with new_context(
            browser,
        ) as context:
            page = context.new_page()
            page.goto(lines[0].split()[-1])
            page.get_by_label("Username").fill(lines[1].split()[-1])
            page.get_by_label("Password").fill(lines[2].split()[-1])
            page.get_by_role("button", name="Log in").click()
            expect(page.get_by_text("Nothing is stored yet")).to_be_visible()
            expect(page.get_by_text("Nothing needs attention")).to_be_visible()
        server.terminate()
        assert server.stdout.read() == ""  # the server behind it has ended too

    assert not list(tmp_path.glob("agentdb-*"))


@pytest.mark.parametrize("name", ["session", "sandbox", "agent", "apikey"])
def test_each_row_of_a_list_is_one_line(page: Page, name: str):
    log_in(page)
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto(f"/admin/agentdb/{name}/")
    # As long as ids and paths are in real life; the last of them is missing, and says so.
    page.evaluate(
        """() => document.querySelectorAll("#result_list tbody tr").forEach(row =>
            row.querySelectorAll("a.agentdb-id").forEach(id => id.innerHTML =
                '8fc693c5<span class="agentdb-mid">-80a2-4629-95eb-1a2ed244</span>2b19'))"""
    )

    heights = page.locator("#result_list tbody tr").evaluate_all(
        "rows => rows.map(row => row.offsetHeight)"
    )
    assert heights and max(heights) <= 34


def test_the_cells_of_a_row_lie_beside_each_other_on_a_phone(page: Page):
    page.set_viewport_size({"width": 390, "height": 844})
    log_in(page)
    for name in ("session", "sandbox", "agent", "apikey"):
        page.goto(f"/admin/agentdb/{name}/")
        cells = page.locator("#result_list tbody tr").first.locator("td, th").all()
        boxes = [
            box for box in (cell.bounding_box() for cell in cells) if box is not None
        ]
        for number, one in enumerate(boxes):
            for other in boxes[number + 1 :]:
                is_beside = (
                    one["x"] + one["width"] <= other["x"]
                    or other["x"] + other["width"] <= one["x"]
                )
                is_below = (
                    one["y"] + one["height"] <= other["y"]
                    or other["y"] + other["height"] <= one["y"]
                )
                assert is_beside or is_below, (name, one, other)


def test_a_list_is_no_wider_than_a_phone(page: Page):
    log_in(page)
    page.set_viewport_size({"width": 360, "height": 740})
    for name in ("session", "sandbox", "agent", "apikey"):
        page.goto(f"/admin/agentdb/{name}/")
        assert (
            page.evaluate("document.querySelector('#result_list').scrollWidth") <= 360
        )
        assert (
            page.locator("#result_list tbody tr").first.evaluate(
                "row => row.offsetHeight"
            )
            <= 110
        )


def test_a_list_can_be_sorted_on_a_phone(page: Page):
    log_in(page)
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto("/admin/agentdb/session/")

    page.locator("#result_list thead").get_by_text("Last active").click()

    expect(page.locator("th[aria-sort=ascending]")).to_have_text("Last active")


def test_shift_selects_a_range_and_the_bar_counts_and_clears_it(page: Page):
    log_in(page)
    page.goto("/admin/agentdb/sandbox/")
    boxes = page.locator(".action-select")

    expect(page.locator(".agentdb-bulk")).to_be_hidden()
    boxes.nth(1).click()
    boxes.nth(4).click(modifiers=["Shift"])

    expect(page.locator(".action-select:checked")).to_have_count(4)
    counted = page.evaluate(
        "getComputedStyle(document.querySelector('.agentdb-count'), '::before').content"
    )
    assert counted.startswith("counter(agentdb-selected)")
    page.get_by_role("button", name="Select none").click()
    expect(page.locator(".action-select:checked")).to_have_count(0)
    expect(page.locator(".agentdb-bulk")).to_be_hidden()


def test_a_filter_opens_on_a_phone_and_escape_closes_it(page: Page):
    log_in(page)
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto("/admin/agentdb/session/")

    open_filter(page, "Tenant")

    popover = page.locator("details[data-filter=tenant_id] .agentdb-popover")
    expect(popover).to_be_in_viewport(ratio=1)
    page.keyboard.type("glo")
    expect(popover.get_by_role("link", name="globex")).to_be_visible()
    expect(popover.get_by_role("link", name="acme")).to_be_hidden()
    page.keyboard.press("Escape")
    expect(popover).to_be_hidden()


def test_lists_and_their_actions_work_without_a_script(browser: Browser, address: str):
    with new_context(browser, base_url=address, java_script_enabled=False) as context:
        page = context.new_page()
        log_in(page)
        page.goto("/admin/agentdb/session/?tenant_id=globex")
        page.locator("details[data-filter=status] summary").click()
        page.locator(".agentdb-popover").get_by_role(
            "link", name="active"
        ).first.click()
        arrive(page, "status=active")
        page.locator(".action-select").first.check()
        page.get_by_role("button", name="Pause selected sessions…").click()

        expect(page.get_by_role("heading", name="Pause 1 session?")).to_be_visible()


AXE_PAGES = {
    "overview": "",
    "sessions": "agentdb/session/",
    "filtered sessions": "agentdb/session/?status=active&tenant_id=acme",
    "nothing found": "agentdb/session/?status=error&tenant_id=nobody",
    "session": "agentdb/session/sess-0001/change/",
    "sandboxes": "agentdb/sandbox/",
    "sandbox": "agentdb/sandbox/sb-0001/change/",
    "agents": "agentdb/agent/",
    "keys": "agentdb/apikey/",
    "new key": "agentdb/apikey/add/",
    "tenant": "agentdb/agent/tenant/?id=acme",
    "runner": "agentdb/session/runner/?id=runner-a",
    "finding": "agentdb/session/?check=sandbox-gone",
    "search": "agentdb/session/find/",
    "undo": "agentdb/session/undo/",
    "sums": "agentdb/session/groups/?by=hour",
    "sums of sandboxes": "agentdb/session/groups/?table=sandbox&by=session_status&from=soon",
    "changes": "agentdb/session/changes/?from=3d",
}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_on_any_page(browser: Browser, address: str, theme: Any):
    """By axe-core's rules: contrast, names, landmarks, heads of tables."""
    axe = Axe()
    width = {"light": 1280, "dark": 390}[theme]
    with new_context(
        browser,
        base_url=address,
        color_scheme=theme,
        viewport={"width": width, "height": 900},
    ) as context:
        page = context.new_page()
        log_in(page)
        found = {}
        for name, path in AXE_PAGES.items():
            page.goto(f"/admin/{path}")
            violations = axe.run(page).response["violations"]
            found[name] = [
                (each["id"], [node["html"] for node in each["nodes"]])
                for each in violations
            ]

    assert {name: each for name, each in found.items() if each} == {}


def test_what_is_ticked_focused_and_open_stays_through_a_refresh(page: Page):
    """A new row comes in above, one is gone and one is changed, as if somebody else had done it."""
    log_in(page)
    page.goto("/admin/agentdb/session/")
    page.get_by_role("row", name="sess-0004").get_by_role("checkbox").check()
    page.get_by_role("row", name="sess-0005").get_by_role(
        "link", name="sess-0005"
    ).focus()
    open_filter(page, "Status")
    page.get_by_role("row", name="sess-0005").get_by_role(
        "link", name="sess-0005"
    ).evaluate("link => link.focus()")
    kept = page.get_by_role("row", name="sess-0004").element_handle()

    def later(route: Route) -> None:
        answer = route.fetch()
        text = (
            answer.text()
            .replace("sess-0002", "sess-new")
            .replace("as of ", "as seen at ")
        )
        route.fulfill(response=answer, body=text)

    page.route("**/admin/agentdb/session/", later)
    page.evaluate(
        "document.activeElement.dispatchEvent(new KeyboardEvent('keydown', { key: 'r', bubbles: true }))"
    )

    expect(page.locator("#agentdb-what")).to_contain_text("as seen at")
    expect(page.get_by_role("row", name="sess-new")).to_have_count(1)
    expect(page.get_by_role("row", name="sess-0002")).to_have_count(0)
    expect(
        page.get_by_role("row", name="sess-0004").get_by_role("checkbox")
    ).to_be_checked()
    assert kept.evaluate("row => row.isConnected")
    assert page.evaluate("document.activeElement.textContent").strip() == "sess-0005"
    assert page.locator("details[data-filter=status]").get_attribute("open") is not None
    assert (
        page.get_by_role("row", name="sess-0005").locator(".agentdb-copy").count() > 0
    )
    page.unroute_all()


def test_live_says_whether_it_is(page: Page):
    log_in(page)
    page.goto("/admin/agentdb/session/")
    live = page.locator("#agentdb-live")
    expect(live).to_have_text("Live, every 10 s")

    live.click()
    expect(live).to_have_text("Paused")
    expect(live).to_have_attribute("aria-pressed", "true")
    live.click()
    expect(live).to_have_text("Live, every 10 s")
    page.evaluate(
        "fetch = () => Promise.reject(new Error('away')); "
        # Again and again: the page asks nothing while it waits for the answer that the last click asked for.
        "setInterval(() => document.body.dispatchEvent(new KeyboardEvent('keydown', { key: 'r', bubbles: true })), 50)"
    )
    expect(live).to_have_text("Not reached, trying again")


def test_a_page_asks_once_at_a_time(page: Page):
    log_in(page)
    page.goto("/admin/agentdb/session/")
    page.evaluate(
        "asked = 0; fetch = () => { asked += 1; return new Promise(() => {}); }; "
        "for (let i = 0; i < 5; i += 1) "
        "document.body.dispatchEvent(new KeyboardEvent('keydown', { key: 'r', bubbles: true }))"
    )

    # None, while an answer is awaited that the page had asked for by itself.
    page.wait_for_function("asked > 0")
    assert page.evaluate("asked") == 1


def test_copying_gives_the_whole_id(browser: Browser, address: str):
    with new_context(
        browser,
        base_url=address,
        permissions=["clipboard-read", "clipboard-write"],
        viewport={"width": 1280, "height": 900},
    ) as context:
        page = context.new_page()
        log_in(page)
        page.goto("/admin/agentdb/session/sess-0001/change/")

        page.get_by_role("button", name="Copy as JSON").click()

        page.wait_for_function(
            "navigator.clipboard.readText().then(text => text.includes('sess-0001'))"
        )
        copied = json.loads(page.evaluate("navigator.clipboard.readText()"))
        assert (copied["id"], copied["status"]) == ("sess-0001", "ended")


def test_a_refresh_renews_all_that_says_how_things_are(page: Page):
    log_in(page)
    page.goto("/admin/agentdb/session/")
    before = page.get_by_role("link", name="Older").get_attribute("href")

    def later(route: Route) -> None:
        answer = route.fetch()
        text = (
            answer.text()
            .replace("as of ", "as seen at ")
            .replace(str(before), "?after=later")
        )
        route.fulfill(response=answer, body=text)

    page.route("**/admin/agentdb/session/", later)
    page.keyboard.press("r")

    # Rows came in above: the link must go on behind the last one that is shown now, or some would be passed over.
    expect(page.get_by_role("link", name="Older")).to_have_attribute(
        "href", "?after=later"
    )
    expect(page.locator("#agentdb-what")).to_contain_text("as seen at")
    page.unroute_all()


def test_a_refresh_loads_the_page_anew_where_its_parts_are_others(page: Page):
    log_in(page)
    page.goto("/admin/")

    page.context.clear_cookies()
    page.keyboard.press("r")

    page.wait_for_url(lambda url: "/login/" in url)
    log_in(page)
    page.goto("/admin/")
    page.route(
        "**/admin/",
        lambda route: route.fulfill(
            status=200,
            content_type="text/html",
            body='<p id="agentdb-attention" data-live>The database is away.</p>',
        ),
    )
    page.keyboard.press("r")
    expect(page.get_by_text("The database is away.")).to_be_visible()
    expect(page.locator("#agentdb-totals")).to_have_count(0)
    page.unroute_all()
