"""The first page of the admin."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.db import connections
from django.utils import timezone

from agentdb.admin import overview
from agentdb.admin.overview import Amount, Bar, SchemaState
from agentdb.models import Sandbox, Session
from tests.admin_fixtures import Site, fill


def test_bars_count_every_known_value_and_those_of_a_newer_server(site: Site):
    fill(site.alias, 12)
    Session.objects.using(site.alias).create(id="new", agent_name="a", sandbox_id="b", status="dreaming")

    bars = overview.sessions_by_status(site.alias)

    assert [(bar.value, bar.amount.rows) for bar in bars] == [
        ("starting", 3), ("active", 3), ("paused", 2), ("ended", 2), ("error", 2), ("stopped", 0), ("dreaming", 1)
    ]  # fmt: skip
    assert bars[0].percent == 100.0
    assert bars[2].percent == 66.7


def test_bars_of_an_empty_table_are_empty(site: Site):
    assert overview.sandboxes_by_state(site.alias) == [
        Bar(state, Amount(0), 0.0) for state in ("cold", "warming", "warm", "waiting", "running")
    ]


def test_counts_stop_at_their_cap(site: Site, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(overview, "CAP", 3)
    monkeypatch.setattr(overview, "MOST_PER_RUNNER", 2)
    fill(site.alias, 20)

    assert {str(bar.amount) for bar in overview.sandboxes_by_state(site.alias)} == {"3+"}
    assert [str(bar.amount) for bar in overview.runners(site.alias)] == ["2+", "2+", "2+"]
    assert str(overview.capped_count(Session.objects.using(site.alias), 20)) == "20"
    assert str(overview.capped_count(Session.objects.using(site.alias), 19)) == "19+"
    assert str(Amount(12_345, 100_000)) == "12,345"


def test_distinct_values_are_listed_from_a_value_on_up_to_a_limit(site: Site):
    fill(site.alias, 20)
    connection = connections[site.alias]

    assert overview.distinct_values(connection, Session, "tenant_id", limit=3) == ["t0", "t1", "t2"]
    assert overview.distinct_values(connection, Session, "tenant_id", at_least="t8", limit=5) == ["t8", "t9"]
    assert overview.distinct_values(connection, Session, "runner_id", limit=9) == ["runner-0", "runner-1", "runner-2"]


def test_top_tenants_are_those_with_most_of_the_newest_sessions(site: Site, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(overview, "SAMPLE", 6)
    for number, tenant in enumerate(["new", "new", "mid", "new", "mid", "low", "old", "old", "old", "old"]):
        Session.objects.using(site.alias).create(
            id=f"s{number}",
            tenant_id=tenant,
            agent_name="a",
            sandbox_id="b",
            status="active" if number % 2 else "ended",
            created_at=timezone.now() - timedelta(hours=number),
        )

    tenants = overview.top_tenants(site.alias)

    assert [(tenant.id, tenant.sessions, tenant.live) for tenant in tenants] == [
        ("new", 3, 2), ("mid", 2, 0), ("low", 1, 1)
    ]  # fmt: skip
    assert tenants[1].newest_at == Session.objects.using(site.alias).get(pk="s2").created_at
    assert [tenant.percent for tenant in tenants] == [100.0, 66.7, 33.3]


def test_oldest_idle_sandboxes_are_the_waiting_ones_in_order(site: Site):
    fill(site.alias, 60)

    idle = overview.oldest_idle_sandboxes(site.alias)

    assert [sandbox.pk for sandbox in idle] == [f"b00{n:02}" for n in range(58, 18, -5)]
    assert {sandbox.state for sandbox in idle} == {"waiting"}


def test_overview_shows_pictures_tenants_idle_sandboxes_runners_and_schema(site: Site, superuser: User):
    fill(site.alias, 20)
    Sandbox.objects.using(site.alias).create(
        id="lonely", agent_name="gone", state="waiting", workspace_dir="/w", last_used_at=timezone.now()
    )

    page = site.get("")

    for heading in (
        "Sandboxes by state", "Sessions by status", "Oldest idle sandboxes", "Runners with their sessions",
        "Top tenants",
    ):  # fmt: skip
        assert heading in page.text
    assert "Schema: matches the models; 3 migrations applied (0003_" in page.text
    assert page.link("21 sandboxes") == "/admin/agentdb/sandbox/"
    assert page.link("waiting") == "/admin/agentdb/sandbox/?state=waiting"
    assert page.link("active") == "/admin/agentdb/session/?status=active"
    assert page.link("b0018") == "/admin/agentdb/sandbox/b0018/change/"
    assert page.link("runner-1") == "/admin/agentdb/session/?runner_id=runner-1"
    assert ("/admin/agentdb/agent/tenant/?id=t3", "t3") in page.links
    assert "gone (missing)" in page.text
    assert page.html.count('<svg class="agentdb-bar"') == 6 + 5 + 3 + 8
    assert "<script>" not in page.html
    assert ' style="' not in page.html


def test_overview_of_an_empty_database_says_there_is_nothing(site: Site, superuser: User):
    page = site.get("")

    assert "No sandbox is waiting." in page.text
    assert "No session has a runner." in page.text
    assert "There are no sessions yet." in page.text


def test_overview_is_on_the_app_page_too_which_every_admin_site_has(site: Site, superuser: User):
    fill(site.alias, 1)

    assert "Sandboxes by state" in site.get("agentdb/").text


def test_overview_leaves_out_what_the_user_may_not_see(site: Site):
    fill(site.alias, 5)
    site.log_in(site.make_user("partial", "view_sandbox"))

    page = site.get("")

    assert "Sandboxes by state" in page.text
    assert "Sessions by status" not in page.text
    assert "Top tenants" not in page.text
    assert "Runners" not in page.text


def test_overview_of_a_user_without_permissions_is_empty(site: Site):
    site.log_in(site.make_user("nobody"))

    page = site.get("")

    assert page.status == 200
    assert "Schema" not in page.text


def test_overview_names_the_difference_when_the_schema_drifts(site: Site, superuser: User):
    with connections[site.alias].cursor() as cursor:
        cursor.execute("DROP INDEX idx_sessions_tenant")

    page = site.get("")

    assert "Schema: 1 difference from the models." in page.text
    assert "idx_sessions_tenant" in page.text
    assert "Run 'agentdb verifydb' for the whole list." in page.text
    assert "Sandboxes by state" in page.text


def test_overview_names_missing_migrations_and_reads_no_table(site: Site, superuser: User):
    with connections[site.alias].cursor() as cursor:
        cursor.execute("DROP TABLE sessions")
        cursor.execute("DELETE FROM django_migrations WHERE app = 'agentdb' AND name LIKE '0003%%'", [])

    page = site.get("")

    assert page.status == 200
    assert "the database lacks 1 migration: 0003_" in page.text
    assert "Run 'agentdb migrate'." in page.text
    assert "Sandboxes by state" not in page.text


def test_schema_is_looked_at_once_a_minute_while_it_is_good(site: Site, monkeypatch: pytest.MonkeyPatch):
    looks: list[str] = []
    good = SchemaState(("0001",), (), ())
    states = [good, SchemaState((), ("0001",), ()), good]

    def look(connection: object) -> SchemaState:
        looks.append("look")
        return states[len(looks) - 1]

    monkeypatch.setattr(overview, "_read_schema_state", look)
    now = 1000.0
    monkeypatch.setattr("agentdb.admin.overview.time.monotonic", lambda: now)

    assert overview.schema_state(site.alias) is good
    now += 59
    assert overview.schema_state(site.alias) is good
    assert len(looks) == 1
    now += 2
    assert overview.schema_state(site.alias).pending == ("0001",)
    assert overview.schema_state(site.alias) is good
    assert len(looks) == 3
