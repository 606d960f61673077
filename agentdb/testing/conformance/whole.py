"""Keys that no row has, transactions, tenants' views, and the end."""

from __future__ import annotations

from typing import Any

import pytest

from agentdb.errors import (
    AgentDbError,
    DatabaseClosedError,
    DuplicateKeyError,
    InvalidInputError,
)
from agentdb.interface import Db, SessionRecord
from agentdb.testing.conformance.subject import (
    Kind,
    Rows,
    Subject,
    drained,
    ids,
    instant,
    make_agent,
    make_api_key,
    make_sandbox,
    make_session,
    session_of,
)


class Stop(Exception):
    """An exception of the caller's own function."""


# Not the keys of the rows that the make_… functions insert: those are the same in lower case.
NOTHING_FOUND: list[tuple[Any, ...]] = [
    (None, "get_agent", "Support-Bot"),
    (None, "get_session", "S1"),
    (None, "get_sandbox", "SB1"),
    (None, "get_api_key_by_hash", "HASH-1"),
    (None, "claim_session", "S1", "r1"),
    (None, "claim_warm_sandbox", "Support-Bot", "s1"),
    (False, "update_session_status", "S1", "active"),
    (False, "update_session_sandbox", "S1", "sb2"),
    (False, "update_session_runner", "S1", "r1"),
    (False, "update_session_runner", "S1", None),
    (False, "touch_session", "S1"),
    (False, "update_sandbox_state", "SB1", "cold"),
    (False, "update_sandbox_session", "SB1", "s1"),
    (False, "touch_sandbox", "SB1"),
    (False, "delete_agent", "Support-Bot"),
    (False, "delete_session", "S1"),
    (False, "delete_sandbox", "SB1"),
    (False, "delete_api_key", "K1"),
]


def _create_one_of_each(db: Db) -> tuple[Any, ...]:
    return (
        make_agent(db),
        make_session(db),
        make_sandbox(db),
        make_api_key(db),
    )


def _read_one_of_each(db: Db) -> tuple[Any, ...]:
    return (
        db.get_agent("support-bot"),
        db.get_session("s1"),
        db.get_sandbox("sb1"),
        db.get_api_key_by_hash("hash-1"),
    )


class WholeContract(Subject):
    def test_a_key_that_no_row_has_is_not_an_error_and_changes_nothing(
        self, db: Db
    ) -> None:
        rows = _create_one_of_each(db)

        for answer, method, *arguments in NOTHING_FOUND:
            assert getattr(db, method)(*arguments) is answer, method
            assert _read_one_of_each(db) == rows, method

    def test_a_view_finds_and_changes_no_row_of_another_tenant(self, db: Db) -> None:
        rows = _create_one_of_each(db)
        view = db.for_tenant("stranger")

        for answer, method, *arguments in NOTHING_FOUND:
            theirs = [argument and argument.lower() for argument in arguments]
            assert getattr(view, method)(*theirs) is answer, method
            assert _read_one_of_each(db) == rows, method

    def test_a_path_a_directory_and_a_label_may_be_empty(self, db: Db) -> None:
        assert make_agent(db, path="").path == ""
        assert make_sandbox(db, workspace_dir="").workspace_dir == ""
        assert make_api_key(db, label="").label == ""

    def test_insert_with_a_taken_id_raises_whoever_has_it(
        self, db: Db, kind: Kind
    ) -> None:
        # Ids are unique over all tenants: calls by id name no tenant. Not even a view, which cannot see the row, may
        # insert it again.
        row = kind.make("x")
        stranger = db.for_tenant("stranger")

        for insert in (
            getattr(db, f"insert_{kind.noun}"),
            getattr(stranger, f"insert_{kind.noun}"),
        ):
            with pytest.raises(DuplicateKeyError) as raised:
                insert("x", "another-bot", "y")
            assert str(raised.value) == f"A {kind.noun} with the id 'x' exists already."
        assert kind.get("x") == row

    def test_delete_deletes_that_one(self, kind: Kind) -> None:
        kind.make("gone")
        kept = kind.make("kept")

        assert kind.delete("gone") is True

        assert kind.get("gone") is None
        assert kind.get("kept") == kept
        assert kind.delete("gone") is False

    def test_delete_session_leaves_its_sandbox(self, db: Db) -> None:
        make_session(db)
        sandbox = make_sandbox(db, session_id="s1")

        db.delete_session("s1")

        assert db.get_sandbox("sb1") == sandbox

    @pytest.mark.parametrize("error", [Stop, KeyboardInterrupt, AgentDbError])
    def test_transaction_keeps_nothing_if_fn_raises_and_lets_the_error_through(
        self, db: Db, error: type[BaseException]
    ) -> None:
        # KeyboardInterrupt among them: rolled back by "except Exception", it would leave its writes in the next COMMIT.
        raised = error("stop")

        def work(inside: Db) -> None:
            make_agent(inside)
            make_session(inside)
            raise raised

        with pytest.raises(error) as caught:
            db.run_transaction(work)

        assert caught.value is raised
        assert db.get_session("s1") is None
        assert db.list_agents() == []

    def test_transaction_reads_what_it_wrote(self, db: Db) -> None:
        def work(inside: Db) -> SessionRecord | None:
            make_session(inside)
            inside.update_session_status("s1", "ended")
            return inside.get_session("s1")

        assert db.run_transaction(work) == db.get_session("s1")

    def test_nested_transaction_that_fails_is_undone_alone(self, db: Db) -> None:
        # So a nested one is a savepoint: neither a transaction of its own nor a mere call of the function.
        def inner(inside: Db) -> None:
            make_session(inside, "inner")
            raise Stop

        def outer(inside: Db) -> None:
            make_session(inside, "before")
            with pytest.raises(Stop):
                inside.run_transaction(inner)
            make_session(inside, "after")

        db.run_transaction(outer)

        assert {*ids(db.list_sessions())} == {"before", "after"}

    def test_nested_transaction_is_undone_with_the_one_around_it(self, db: Db) -> None:
        def outer(inside: Db) -> None:
            assert inside.run_transaction(make_session).id == "s1"
            raise Stop

        with pytest.raises(Stop):
            db.run_transaction(outer)

        assert db.get_session("s1") is None

    def test_a_duplicate_inside_a_transaction_can_be_caught_and_the_rest_is_kept(
        self, db: Db
    ) -> None:
        # PostgreSQL refuses every statement after a failed one until a rollback: each insert needs its own savepoint.
        make_session(db)

        def work(inside: Db) -> None:
            make_session(inside, "before")
            with pytest.raises(
                DuplicateKeyError,
                match=r"^A session with the id 's1' exists already\.$",
            ):
                make_session(inside)
            make_session(inside, "after")

        db.run_transaction(work)

        assert {*ids(db.list_sessions())} == {"before", "s1", "after"}

    def test_a_duplicate_that_leaves_the_transaction_undoes_it(self, db: Db) -> None:
        make_session(db)

        def work(inside: Db) -> None:
            make_session(inside, "before")
            make_session(inside)

        with pytest.raises(DuplicateKeyError):
            db.run_transaction(work)

        assert db.get_session("before") is None

    def test_invalid_input_inside_a_transaction_can_be_caught_and_the_rest_is_kept(
        self, db: Db
    ) -> None:
        def work(inside: Db) -> None:
            with pytest.raises(InvalidInputError):
                inside.get_session("")
            make_session(inside)

        db.run_transaction(work)

        assert db.get_session("s1") is not None

    def test_the_argument_of_a_transaction_works_until_the_function_returns(
        self, db: Db
    ) -> None:
        def work(inside: Db) -> list[Db]:
            nested = inside.run_transaction(lambda nested: nested)
            with pytest.raises(DatabaseClosedError):
                nested.list_agents()
            assert inside.list_agents() == []
            return [inside, inside.for_tenant("acme")]

        for over in db.run_transaction(work):
            with pytest.raises(DatabaseClosedError):
                make_agent(over)
        assert db.list_agents() == []

    def test_new_rows_are_the_tenants_without_naming_it(self, db: Db) -> None:
        view = db.for_tenant("acme")

        agent = make_agent(view)
        session = make_session(view)
        sandbox = make_sandbox(view)
        _, key = view.issue_api_key("acme", "")

        assert db.list_agents("acme") == [agent]
        assert db.list_sessions("acme") == [session]
        assert db.list_sandboxes("acme") == [sandbox]
        assert db.list_api_keys_by_tenant("acme") == [key]

    def test_an_agent_of_a_view_has_versions_of_its_own(self, db: Db) -> None:
        make_agent(db.for_tenant("other"))
        view = db.for_tenant("acme")

        assert make_agent(view).version == 1
        assert make_agent(view).version == 2

    def test_a_view_finds_its_tenants_rows(self, db: Db) -> None:
        agent = make_agent(db, tenant_id="acme")
        session = make_session(db, tenant_id="acme")
        sandbox = make_sandbox(db, tenant_id="acme")

        for view in (db.for_tenant("acme"), db.for_tenant("acme").for_tenant("acme")):
            assert view.get_agent("support-bot") == agent
            assert view.get_session("s1") == session
            assert view.get_sandbox("sb1") == sandbox

    @pytest.mark.parametrize("method", ["for_tenant", "list_agents", "delete_agent"])
    def test_a_view_refuses_another_tenant_by_name(self, db: Db, method: str) -> None:
        # Refused and not answered with nothing: a caller that names another tenant has mixed up two requests.
        view = db.for_tenant("acme")
        arguments = ["support-bot"] if method == "delete_agent" else []

        for other in ("other", "default"):
            with pytest.raises(InvalidInputError) as raised:
                getattr(view, method)(*arguments, tenant_id=other)
            assert (
                str(raised.value)
                == f"This view is of the tenant 'acme'; {other!r} is another."
            )

    def test_the_view_of_the_default_tenant_is_one_too(self, db: Db) -> None:
        # "default" is also what a call means that names no tenant. A view that takes the one for the other sees all.
        make_session(db, tenant_id="acme")
        view = db.for_tenant("default")

        assert view.list_sessions("default") == view.list_sessions() == []
        assert view.get_session("s1") is None

    def test_what_all_tenants_share_is_counted_paused_and_evicted_for_one(
        self, db: Db, rows: Rows
    ) -> None:
        # These calls take no tenant, so each of them needs the view's condition added; a forgotten one acts on others'.
        for tenant in ("acme", "other"):
            rows.session(f"s of {tenant}", tenant_id=tenant, last_active_at=instant())
            make_sandbox(db, f"sb of {tenant}", tenant_id=tenant)
        view = db.for_tenant("acme")

        assert view.count_sandboxes() == 1
        assert view.mark_all_sandboxes_cold() == 1
        assert view.bulk_pause_active_sessions() == 1
        assert [sandbox.id for sandbox in drained(view.claim_eviction_candidate)] == [
            "sb of acme"
        ]
        assert session_of(db, "s of acme").status == "paused"
        assert session_of(db, "s of other").status == "starting"

    def test_the_transaction_of_a_view_is_undone_and_sees_one_tenant(
        self, db: Db
    ) -> None:
        make_session(db, "theirs", tenant_id="other")

        def work(inside: Db) -> None:
            assert inside.get_session("theirs") is None
            make_session(inside, "ours")
            raise Stop

        with pytest.raises(Stop):
            db.for_tenant("acme").run_transaction(work)

        assert db.get_session("ours") is None

    def test_a_view_is_closed_alone(self, db: Db) -> None:
        # A request's view may close while others use the connections; only the Db itself owns them.
        view = db.for_tenant("acme")
        inner = view.for_tenant("acme")

        inner.close()
        inner.close()

        with pytest.raises(DatabaseClosedError):
            inner.list_agents()
        assert view.list_agents() == []
        assert db.list_agents() == []

    def test_the_db_is_closed_with_its_views(self, db: Db) -> None:
        view = db.for_tenant("acme")

        db.close()
        db.close()

        for closed in (db, view):
            with pytest.raises(DatabaseClosedError):
                closed.list_agents()

    def test_health_is_ok_without_a_reason(self, db: Db) -> None:
        health = db.health()

        assert health.ok
        assert health.reason == ""
        assert health.pending_migrations == ()
