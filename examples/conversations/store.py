"""What the server does with its tables. Each function takes the ``Db`` of a ``run_transaction``.

The session is plain text, as everywhere in agentdb: a foreign key would stop it from deleting sessions.
"""

from __future__ import annotations

from typing import Any

from django.db.models import F

from agentdb import Db, DjangoDb, SessionStatus

from .models import Conversation, Job, Message


def alias_of(tx: Db) -> str:
    """Return Django's alias of the transaction's connection."""
    assert isinstance(tx, DjangoDb)
    return tx.alias


def open_session(tx: Db, session_id: str, agent: str, metadata: dict[str, Any]) -> None:
    tx.insert_session(session_id, agent, f"sandbox of {session_id}")
    Conversation.objects.using(alias_of(tx)).create(
        session_id=session_id, metadata=metadata
    )


def append_message(tx: Db, session_id: str, role: str, content: Any) -> int:
    """Store the message under the session's next number, and return that; ``LookupError`` if there is no session."""
    conversation = Conversation.objects.using(alias_of(tx)).filter(
        session_id=session_id
    )
    # The update locks the row, so a second writer continues from the first one's number.
    if not conversation.update(last_sequence=F("last_sequence") + 1):
        raise LookupError(f"There is no session {session_id!r}.")
    sequence = conversation.values_list("last_sequence", flat=True).get()
    Message.objects.using(alias_of(tx)).create(
        session_id=session_id, sequence=sequence, role=role, content=content
    )
    tx.touch_session(session_id)
    return sequence


def messages_after(
    tx: Db, session_id: str, sequence: int = 0
) -> list[tuple[int, str, Any]]:
    found = Message.objects.using(alias_of(tx)).filter(
        session_id=session_id, sequence__gt=sequence
    )
    return list(found.order_by("sequence").values_list("sequence", "role", "content"))


def enqueue(tx: Db, session_id: str, payload: Any) -> None:
    Job.objects.using(alias_of(tx)).create(session_id=session_id, payload=payload)


def take_job(tx: Db, worker: str) -> Job | None:
    """Give the oldest free job to this worker alone; None if there is none."""
    free = Job.objects.using(alias_of(tx)).filter(taken_by=None).order_by("id")
    # Skips jobs that other workers are taking. SQLite has one writer at a time anyway.
    job = free.select_for_update(skip_locked=True).first()
    if job is not None:
        job.taken_by = worker
        job.save(update_fields=["taken_by"])
    return job


def finish_job(tx: Db, job: Job, answer: Any) -> None:
    """Store the answer, delete the job and end the session, all or nothing."""
    append_message(tx, job.session_id, "assistant", answer)
    Job.objects.using(alias_of(tx)).filter(id=job.id).delete()
    tx.update_session_status(job.session_id, SessionStatus.ENDED)
