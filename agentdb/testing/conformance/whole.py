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
from agentdb.interface import Db, SandboxState, SessionRecord, SessionStatus
from agentdb.testing.conformance.refusals import METHODS, valid_arguments
from agentdb.testing.conformance.subject import (
    Kind,
    Subject,
    ids,
    instant,
    make_agent,
    make_api_key,
    make_session,
)


class Stop(Exception):
    """An exception of the caller's own function."""


# Calls, and keys that are not those of the rows that the make_… functions insert: those are the same in lower case.
_NOTHING_FOUND = [
    ("get_agent", "Support-Bot"),
    ("get_session", "S1"),
    ("get_sandbox", "SB1"),
    ("get_api_key_by_hash", "HASH-1"),
    ("claim_session", "S1", "r1"),
    ("claim_warm_sandbox", "Support-Bot", "s1"),
    ("update_session_status", "S1", "active"),
    ("update_session_sandbox", "S1", "sb2"),
    ("update_session_runner", "S1", "r1"),
    ("update_session_runner", "S1", None),
    ("touch_session", "S1"),
    ("update_sandbox_state", "SB1", "cold"),
    ("update_sandbox_session", "SB1", "s1"),
    ("touch_sandbox", "SB1"),
    ("delete_agent", "Support-Bot"),
    ("delete_session", "S1"),
    ("delete_sandbox", "SB1"),
    ("delete_api_key", "K1"),
]

# What calls for the rows of all tenants answer if there are none. Their arguments fit rows of each status and state.
_LATER = instant(10**9)
_OF_ALL_TENANTS: list[tuple[object, str, list[Any]]] = [
    ([], "get_silent_sessions", [_LATER]),
    ([], "get_idle_sandboxes", [_LATER]),
    ([], "get_cold_sandboxes", [_LATER]),
    ([], "list_sessions_by_runner", ["r1"]),
    ([], "list_sandboxes_by_runner", ["r1"]),
    ([], "touch_sessions", [["active"]]),
    ([], "touch_sandboxes", [["cold"]]),
    (None, "get_best_eviction_candidate", []),
    (None, "claim_eviction_candidate", []),
    (0, "count_sandboxes", []),
    (0, "mark_all_sandboxes_cold", []),
    (0, "mark_sandboxes_cold_by_runner", ["r1"]),
    (0, "bulk_pause_sessions_by_runner", ["r1"]),
    (0, "bulk_pause_active_sessions", []),
    (0, "prune_sessions", [_LATER, 10]),
]


def _create_one_of_each(db: Db) -> tuple[Any, ...]:
    return (
        make_agent(db),
        make_session(db),
        db.insert_sandbox("sb1", "support-bot", "/tmp/sb1"),
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
    @pytest.mark.parametrize("is_stranger", [False, True], ids=["the Db", "a view"])
    @pytest.mark.parametrize("lookup", _NOTHING_FOUND, ids=str)
    def test_a_key_that_no_row_has_is_not_an_error_and_changes_nothing(
        self,
        db: Db,
        lookup: tuple[Any, ...],
        is_stranger: bool,
    ) -> None:
        """A call for a row that does not exist answers None or False.

        Keys are compared by their code points: one that differs in case is another. To a tenant's view, the rows of
        others do not exist.
        """
        rows = _create_one_of_each(db)
        method, *keys = lookup
        caller = db
        if is_stranger:
            caller = db.for_tenant("stranger")
            # In lower case they are the keys of those rows; None, which is not a key, stays.
            keys = [key and key.lower() for key in keys]

        answer = getattr(caller, method)(*keys)

        returns_a_row = method.startswith(("get", "claim"))
        assert answer is (None if returns_a_row else False)
        assert _read_one_of_each(db) == rows

    @pytest.mark.parametrize(
        "tenant_id", [None, "stranger"], ids=["the Db", "a stranger's view"]
    )
    def test_insert_with_a_taken_id_raises_whoever_has_it(
        self,
        db: Db,
        kind: Kind,
        tenant_id: str | None,
    ) -> None:
        """Ids are unique over all tenants, because calls by id name no tenant.

        Not even a view, which cannot see the row, may insert it again.
        """
        row = kind.make("x")
        caller = db if tenant_id is None else db.for_tenant(tenant_id)
        insert = getattr(caller, f"insert_{kind.noun}")

        with pytest.raises(DuplicateKeyError) as raised:
            insert("x", "another-bot", "y")

        message = str(raised.value)
        assert message == f"A {kind.noun} with the id 'x' exists already."
        assert kind.get("x") == row

    # -- transactions

    @pytest.mark.parametrize("error", [Stop, KeyboardInterrupt, AgentDbError])
    def test_transaction_keeps_nothing_if_fn_raises_and_lets_the_error_through(
        self, db: Db, error: type[BaseException]
    ) -> None:
        """Whatever the function raises undoes its writes, and reaches the caller as the same object.

        What a nested transaction wrote is kept only if the outermost one is.
        """
        # KeyboardInterrupt among them: rolled back by "except Exception", it would leave its writes in the next COMMIT.
        raised = error("stop")

        def work(inside: Db) -> None:
            make_agent(inside)
            session = inside.run_transaction(make_session)
            assert session.id == "s1"
            raise raised

        with pytest.raises(error) as caught:
            db.run_transaction(work)

        assert caught.value is raised
        assert db.get_session("s1") is None
        assert db.list_agents() == []

    def test_what_fails_inside_a_transaction_is_undone_alone_and_the_rest_is_kept(
        self, db: Db
    ) -> None:
        """A call or a nested transaction that fails leaves the transaction around it as it was, and able to go on.

        A nested one is a savepoint: neither one of its own nor a mere call of the function. A transaction sees its own
        writes, and returns what its function returns.
        """
        # PostgreSQL refuses every statement after a failed one until a rollback: each insert needs its own savepoint.
        make_session(db)

        def nested(inside: Db) -> None:
            make_session(inside, "nested")
            # Fails in the database, and not only in Python: the savepoint has to undo that as well.
            make_session(inside, "before")

        def work(inside: Db) -> list[SessionRecord]:
            make_session(inside, "before")
            with pytest.raises(
                DuplicateKeyError,
                match=r"^A session with the id 's1' exists already\.$",
            ):
                make_session(inside)
            with pytest.raises(DuplicateKeyError):
                inside.run_transaction(nested)
            with pytest.raises(InvalidInputError):
                inside.get_session("")
            make_session(inside, "after")
            return inside.list_sessions()

        seen_inside = db.run_transaction(work)

        assert {*ids(seen_inside)} == {"s1", "before", "after"}
        assert seen_inside == db.list_sessions()

    def test_the_argument_of_a_transaction_works_until_the_function_returns(
        self, db: Db
    ) -> None:
        """Calls on it, or on a view of it, raise once its transaction is over, instead of writing outside of it.

        The end of a nested transaction does not end the one around it.
        """

        def work(inside: Db) -> tuple[Db, Db]:
            # Its own end, and not that of the outermost one, ends the argument.
            nested = inside.run_transaction(lambda nested: nested)
            with pytest.raises(DatabaseClosedError):
                nested.list_agents()
            assert inside.list_agents() == []
            return inside, inside.for_tenant("acme")

        inside, view = db.run_transaction(work)

        with pytest.raises(DatabaseClosedError):
            make_agent(inside)
        with pytest.raises(DatabaseClosedError):
            make_agent(view)
        with pytest.raises(DatabaseClosedError):
            inside.for_tenant("acme")
        with pytest.raises(DatabaseClosedError):
            inside.health()
        assert db.list_agents() == []

    # -- views of a tenant

    @pytest.mark.parametrize("depth", [1, 2], ids=["a view", "a view of a view"])
    def test_new_rows_are_the_tenants_without_naming_it(
        self, db: Db, depth: int
    ) -> None:
        """Every insert through a view is of its tenant, and found there; a view of the same tenant's view is one, too.

        An agent of the same name, of another tenant, does not count.
        """
        make_agent(db)
        view = db
        for _ in range(depth):
            view = view.for_tenant("acme")
        make_agent(view)

        rows = _create_one_of_each(view)

        assert _read_one_of_each(view) == rows
        agent, session, sandbox, key = rows
        assert agent.version == 2
        assert db.list_agents("acme") == [agent]
        assert db.list_sessions("acme") == [session]
        assert db.list_sandboxes("acme") == [sandbox]
        assert db.list_api_keys_by_tenant("acme") == [key]
        _, issued = view.issue_api_key("acme", "")
        assert issued in db.list_api_keys_by_tenant("acme")

    @pytest.mark.parametrize("other", ["other", "default"])
    @pytest.mark.parametrize(
        "method", [each for each in METHODS if "tenant_id" in valid_arguments(each)]
    )
    def test_a_view_refuses_another_tenant_by_name(
        self,
        db: Db,
        method: str,
        other: str,
    ) -> None:
        """It is refused and not answered with nothing: a caller that names another tenant has mixed up two requests."""
        view = db.for_tenant("acme")
        arguments = valid_arguments(method) | {"tenant_id": other}
        call = getattr(view, method)

        with pytest.raises(InvalidInputError) as raised:
            call(**arguments)

        message = str(raised.value)
        assert message == f"This view is of the tenant 'acme'; {other!r} is another."

    def test_a_call_for_all_tenants_leaves_those_of_others_alone_on_a_view(
        self, db: Db
    ) -> None:
        """Calls that name no tenant neither find nor change anything through the view of one that has no rows."""
        for status in SessionStatus:
            id = str(status)
            make_session(db, id)
            db.update_session_status(id, status)
            db.update_session_runner(id, "r1")
        for state in SandboxState:
            id = str(state)
            db.insert_sandbox(id, "support-bot", "", "ended")
            db.update_sandbox_state(id, state)
        plain, _ = db.issue_api_key("default", "")
        rows = [*db.list_sessions(), *db.list_sandboxes()]
        view = db.for_tenant("stranger")

        for expected, method, arguments in _OF_ALL_TENANTS:
            answer = getattr(view, method)(*arguments)

            assert answer == expected, method
        assert view.authenticate(plain) is None
        assert [*db.list_sessions(), *db.list_sandboxes()] == rows

    def test_the_view_of_the_default_tenant_is_one_too(self, db: Db) -> None:
        """The view of "default", which is also what a call means that names no tenant, sees no other tenant."""
        make_session(db, tenant_id="acme")
        view = db.for_tenant("default")

        assert view.list_sessions("default") == []
        assert view.list_sessions() == []
        assert view.get_session("s1") is None

    def test_the_transaction_of_a_view_is_undone_and_sees_one_tenant(
        self, db: Db
    ) -> None:
        """What the function of a view's transaction gets is a view, too."""
        make_session(db, "theirs", tenant_id="other")
        view = db.for_tenant("acme")

        def work(inside: Db) -> None:
            assert inside.get_session("theirs") is None
            make_session(inside, "ours")
            raise Stop

        with pytest.raises(Stop):
            view.run_transaction(work)

        assert db.get_session("ours") is None

    # -- the end

    def test_a_view_is_closed_alone_and_the_db_with_its_views(self, db: Db) -> None:
        """A request's view may close while others use the connections; only the ``Db`` owns them.

        What was closed may be closed again, and does not answer any more.
        """
        view = db.for_tenant("acme")
        inner = view.for_tenant("acme")

        inner.close()
        inner.close()

        with pytest.raises(DatabaseClosedError):
            inner.list_agents()
        assert view.list_agents() == []
        assert db.list_agents() == []

        db.close()
        db.close()

        for closed in (db, view):
            with pytest.raises(DatabaseClosedError):
                closed.list_agents()

    def test_a_transaction_whose_function_closes_the_db_stores_nothing(
        self, db: Db
    ) -> None:
        """The ``Db`` of a transaction is the one around it, so ``close()`` ends both."""

        def work(inside: Db) -> None:
            make_session(inside)
            inside.close()

        with pytest.raises(DatabaseClosedError):
            db.run_transaction(work)
        with pytest.raises(DatabaseClosedError):
            db.list_agents()

    def test_health_is_ok_without_a_reason(self, db: Db) -> None:
        health = db.health()

        assert health.ok
        assert health.reason == ""
        assert health.pending_migrations == ()
