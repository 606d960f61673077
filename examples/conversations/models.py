from __future__ import annotations

from django.db import models
from django.db.models.functions import Now


class Conversation(models.Model):
    """One row for each session: your own columns of it, and the number of its last message."""

    session_id = models.TextField(primary_key=True)
    metadata = models.JSONField(default=dict)
    last_sequence = models.IntegerField(default=0)


class Message(models.Model):
    """What was said in a session, numbered from 1 without gaps."""

    id = models.BigAutoField(primary_key=True)
    session_id = models.TextField()
    sequence = models.IntegerField()
    role = models.TextField()
    content = models.JSONField()
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["session_id", "sequence"], name="message_of_session"
            )
        ]


class Job(models.Model):
    """Work for the next free worker."""

    id = models.BigAutoField(primary_key=True)
    session_id = models.TextField(db_index=True)
    payload = models.JSONField()
    taken_by = models.TextField(null=True)

    class Meta:
        indexes = [
            models.Index(
                fields=["id"], name="job_free", condition=models.Q(taken_by=None)
            )
        ]
