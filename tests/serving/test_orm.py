"""The models as a Django project uses them: through the ORM, forms and the admin."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.apps import apps
from django.core.exceptions import ValidationError
from django.forms import modelform_factory

import agentdb
from agentdb.interface import SandboxState, SessionStatus
from agentdb.models import Agent, ApiKey, Sandbox, Session
from tests.helpers.factories import (
    execute,
    make_agent,
    make_api_key,
    make_sandbox,
    make_session,
    set_column,
)
from tests.helpers.legacy_databases import opened

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture
def alias(url: str) -> Iterator[str]:
    with opened(url) as connection:
        yield connection.alias


@pytest.mark.parametrize("change", ["path", "name"])
def test_saving_an_agent_moves_updated_at_and_nothing_else(
    alias: str, change: str
) -> None:
    made = Agent(name="a", path="/a", created_at=LONG_AGO, updated_at=LONG_AGO)
    made.save(using=alias, force_insert=True)
    assert Agent.objects.using(alias).get().updated_at == LONG_AGO

    agent = Agent.objects.using(alias).get()
    setattr(agent, change, "new")
    before = datetime.now(UTC)
    agent.save()

    stored = Agent.objects.using(alias).get()
    assert before <= stored.updated_at <= datetime.now(UTC)
    assert stored.updated_at == agent.updated_at
    assert (stored.created_at, stored.version, getattr(stored, change)) == (
        LONG_AGO,
        1,
        "new",
    )


def test_a_new_agent_has_both_times_from_one_clock(alias: str) -> None:
    Agent(name="a", path="/a").save(using=alias)

    stored = Agent.objects.using(alias).get()
    assert stored.created_at == stored.updated_at


def test_a_new_row_is_what_db_makes(url: str, db: agentdb.DjangoDb) -> None:
    with opened(url) as connection:
        Agent(name="a", path="/a").save(using=connection.alias)
        Session(id="s", agent_name="a", sandbox_id="sb").save(using=connection.alias)
        Sandbox(id="sb", agent_name="a", workspace_dir="/w").save(
            using=connection.alias
        )
    agent, session, sandbox = (
        db.get_agent("a"),
        db.get_session("s"),
        db.get_sandbox("sb"),
    )
    assert agent is not None and session is not None and sandbox is not None

    assert (agent.tenant_id, agent.version, agent.path) == ("default", 1, "/a")
    assert (session.status, session.runner_id) == ("starting", None)
    assert (sandbox.state, sandbox.session_id) == ("warming", None)


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (
            Session(
                id="s", tenant_id="t", agent_name="a", sandbox_id="b", status="actve"
            ),
            "status",
        ),
        (
            Sandbox(
                id="s", tenant_id="t", agent_name="a", workspace_dir="/", state="hot"
            ),
            "state",
        ),
    ],
)
def test_full_clean_refuses_a_status_that_does_not_exist(
    row: Session | Sandbox, name: str
) -> None:
    with pytest.raises(ValidationError) as raised:
        row.clean_fields()
    assert set(raised.value.message_dict) == {name}


def test_full_clean_takes_every_status_and_state() -> None:
    for status in SessionStatus:
        Session(
            id="s", tenant_id="t", agent_name="a", sandbox_id="b", status=status.value
        ).clean_fields()
    for state in SandboxState:
        Sandbox(
            id="s", tenant_id="t", agent_name="a", workspace_dir="/", state=state.value
        ).clean_fields()


def test_a_status_of_a_newer_server_stays_readable(
    url: str, db: agentdb.DjangoDb
) -> None:
    make_session(db, id="s")
    execute(url, "UPDATE sessions SET status = 'dreaming'")

    with opened(url) as connection:
        session = Session.objects.using(connection.alias).get()
        assert (session.status, session.get_status_display()) == (
            "dreaming",
            "dreaming",
        )
        session.save()
    stored = db.get_session("s")
    assert stored is not None and stored.status == "dreaming"


def test_a_form_offers_the_statuses() -> None:
    form = modelform_factory(Session, fields=["status"])()
    field: Any = form.fields["status"]
    assert [value for value, _ in field.choices if value] == [*map(str, SessionStatus)]


@pytest.mark.parametrize("model", [Agent, Session, Sandbox, ApiKey])
def test_every_field_says_what_it_is(model: Any) -> None:
    assert [
        field.name for field in model._meta.concrete_fields if not field.help_text
    ] == []


def test_words_and_choices_are_in_no_migration(alias: str) -> None:
    for model in apps.get_app_config("agentdb").get_models():
        for field in model._meta.concrete_fields:
            _, path, _, options = field.deconstruct()
            assert path.startswith("django.db.models.")
            assert not {"help_text", "choices"} & set(options)


def _ids(rows: Any) -> list[str]:
    return [row.id for row in rows]


def test_sessions_are_asked_for_in_words(url: str, db: agentdb.DjangoDb) -> None:
    for number, status in enumerate(SessionStatus):
        make_session(db, id=status.value, agent_name="a" if number % 2 else "b")
        db.update_session_status(status.value, status)
    db.update_session_runner("active", "r")
    db.insert_session("other", "a", "sb", "tenant")
    set_column(url, "sessions", "paused", last_active_at=LONG_AGO)

    with opened(url) as connection:
        sessions = Session.objects.using(connection.alias)
        assert _ids(sessions.active()) == ["active"]
        assert sorted(_ids(sessions.live())) == ["active", "other", "starting"]
        assert sorted(_ids(sessions.finished())) == ["ended", "error", "stopped"]
        assert _ids(sessions.of_runner("r")) == ["active"]
        assert _ids(sessions.of_tenant("tenant")) == ["other"]
        assert _ids(sessions.of_agent("a").of_tenant("default").newest_first()) == [
            one.id for one in db.list_sessions(agent="a")
        ]
        assert _ids(sessions.idle_since(datetime.now(UTC) - timedelta(hours=1))) == [
            "paused"
        ]


def test_agents_sandboxes_and_keys_are_asked_for_in_words(
    url: str, db: agentdb.DjangoDb
) -> None:
    for name in ("b", "a", "C"):
        make_agent(db, name=name)
        make_sandbox(db, id=name)
        make_api_key(db, id=name, key_hash=name)
    db.update_sandbox_state("a", SandboxState.WAITING)
    db.update_sandbox_state("b", "waiting")
    db.touch_sandbox("b")
    db.touch_sandbox("a")

    with opened(url) as connection:
        agents, sandboxes = (
            Agent.objects.using(connection.alias),
            Sandbox.objects.using(connection.alias),
        )
        keys = ApiKey.objects.using(connection.alias)
        assert [one.name for one in agents.by_name()] == ["C", "a", "b"]
        waiting = sandboxes.in_state(SandboxState.WAITING).least_recently_used_first()
        assert _ids(waiting) == ["b", "a"]
        assert _ids(
            sandboxes.in_state("waiting")
            .idle_since(datetime.now(UTC) + timedelta(days=1))
            .order_by("id")
        ) == [
            "a",
            "b",
        ]
        assert _ids(keys.of_tenant("acme").newest_first()) == [
            one.id for one in db.list_api_keys_by_tenant("acme")
        ]
