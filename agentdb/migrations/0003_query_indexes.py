"""The indexes that keep every query of Db fast at a million rows.

Built inside the migration's transaction, which keeps writers of the table waiting: seconds at a million rows, and
either all of them exist afterwards or none.
"""

from __future__ import annotations

from django.db import migrations
from django.db.models import F, Index, Q

from agentdb.expressions import CodePointOrder
from agentdb.operations import AddIndex

newest_first = (F("created_at").desc(), CodePointOrder("id").desc())
least_recently_used_first = (F("last_used_at").asc(), CodePointOrder("id").asc())


class Migration(migrations.Migration):
    dependencies = [("agentdb", "0002_native_timestamps")]

    operations = [
        AddIndex("Agent", Index(*newest_first, name="idx_agents_created")),
        AddIndex("Session", Index(*newest_first, name="idx_sessions_created")),
        AddIndex(
            "Session",
            Index(F("tenant_id"), *newest_first, name="idx_sessions_tenant_created"),
        ),
        AddIndex(
            "Session",
            Index(
                F("tenant_id"),
                F("agent_name"),
                *newest_first,
                name="idx_sessions_agent_created",
            ),
        ),
        AddIndex(
            "Session",
            Index(F("status"), *newest_first, name="idx_sessions_status_created"),
        ),
        AddIndex(
            "Session",
            Index(
                F("runner_id"),
                *newest_first,
                name="idx_sessions_runner_created",
                condition=Q(runner_id__isnull=False),
            ),
        ),
        AddIndex(
            "Sandbox",
            Index(
                F("state"),
                *least_recently_used_first,
                name="idx_sandboxes_state_last_used",
            ),
        ),
        AddIndex("ApiKey", Index(*newest_first, name="idx_api_keys_created")),
        AddIndex(
            "ApiKey",
            Index(F("tenant_id"), *newest_first, name="idx_api_keys_tenant_created"),
        ),
    ]
