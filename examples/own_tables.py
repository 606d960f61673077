"""A server with its own tables beside agentdb's, in the same transactions.

python own_tables.py [DATABASE_URL]
"""

from __future__ import annotations

import sys
import time
import uuid

import agentdb


def main(url: str | None) -> None:
    with agentdb.connect(url, apps=["conversations"], migrate=True) as db:
        # Import the models after connect(), which tells Django about the app.
        from conversations import store

        session_id = str(uuid.uuid4())
        db.run_transaction(
            lambda tx: store.open_session(
                tx, session_id, "support-bot", {"title": "Refund", "tags": [7]}
            )
        )

        def ask(tx: agentdb.Db) -> int:
            store.enqueue(tx, session_id, {"question": "Where is my money?"})
            number: int = store.append_message(
                tx, session_id, "user", "Where is my money?"
            )
            return number

        print("asked as message", db.run_transaction(ask))
        while (
            job := db.run_transaction(lambda tx: store.take_job(tx, "worker-1"))
        ) is None:
            # On CockroachDB a new job is skipped for a moment after it was stored.
            time.sleep(0.05)
        assert job.session_id == session_id
        db.run_transaction(
            lambda tx: store.finish_job(tx, job, {"text": "On its way."})
        )

        session = db.get_session(session_id)
        assert session is not None
        print(session.status, store.messages_after(db, session_id))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
