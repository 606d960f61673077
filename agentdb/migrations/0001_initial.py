"""The four tables as the old server leaves them, timestamps as text included."""

from __future__ import annotations

from django.db import migrations, models

import agentdb.models
from agentdb.operations import CreateLegacyTable, LegacyNow, LegacyUnique


# The ids: on SQLite a TEXT PRIMARY KEY allows NULL, and the old server did not forbid it; PostgreSQL never allows it.
class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        CreateLegacyTable(
            name="Agent",
            fields=[
                (
                    "id",
                    models.TextField(
                        primary_key=True,
                        null=True,
                        default=agentdb.models.new_id,
                        serialize=False,
                    ),
                ),
                ("tenant_id", models.TextField(db_default="default")),
                ("name", models.TextField()),
                ("version", models.IntegerField(db_default=1)),
                ("path", models.TextField()),
                ("created_at", models.TextField(db_default=LegacyNow())),
                ("updated_at", models.TextField(db_default=LegacyNow())),
            ],
            options={
                "db_table": "agents",
                "indexes": [
                    models.Index(fields=["tenant_id"], name="idx_agents_tenant")
                ],
                "constraints": [
                    LegacyUnique(
                        fields=["tenant_id", "name"], name="idx_agents_tenant_name"
                    )
                ],
            },
        ),
        CreateLegacyTable(
            name="Session",
            fields=[
                ("id", models.TextField(primary_key=True, null=True, serialize=False)),
                ("tenant_id", models.TextField(db_default="default")),
                ("agent_name", models.TextField()),
                ("sandbox_id", models.TextField()),
                ("status", models.TextField(db_default="starting")),
                ("runner_id", models.TextField(null=True, blank=True)),
                ("created_at", models.TextField(db_default=LegacyNow())),
                ("last_active_at", models.TextField(db_default=LegacyNow())),
            ],
            options={
                "db_table": "sessions",
                "indexes": [
                    models.Index(fields=["tenant_id"], name="idx_sessions_tenant")
                ],
            },
        ),
        CreateLegacyTable(
            name="Sandbox",
            fields=[
                ("id", models.TextField(primary_key=True, null=True, serialize=False)),
                ("tenant_id", models.TextField(db_default="default")),
                ("session_id", models.TextField(null=True, blank=True)),
                ("agent_name", models.TextField()),
                ("state", models.TextField(db_default="warming")),
                ("workspace_dir", models.TextField()),
                ("created_at", models.TextField(db_default=LegacyNow())),
                ("last_used_at", models.TextField(db_default=LegacyNow())),
            ],
            options={
                "db_table": "sandboxes",
                "verbose_name_plural": "sandboxes",
                "indexes": [
                    models.Index(fields=["state"], name="idx_sandboxes_state"),
                    models.Index(fields=["session_id"], name="idx_sandboxes_session"),
                    models.Index(
                        fields=["last_used_at"], name="idx_sandboxes_last_used"
                    ),
                    models.Index(fields=["tenant_id"], name="idx_sandboxes_tenant"),
                ],
            },
        ),
        CreateLegacyTable(
            name="ApiKey",
            fields=[
                ("id", models.TextField(primary_key=True, null=True, serialize=False)),
                ("tenant_id", models.TextField()),
                ("key_hash", models.TextField(unique=True)),
                ("label", models.TextField(db_default="", blank=True)),
                ("created_at", models.TextField(db_default=LegacyNow())),
            ],
            options={
                "db_table": "api_keys",
                "verbose_name": "API key",
                "indexes": [
                    models.Index(fields=["tenant_id"], name="idx_api_keys_tenant"),
                    models.Index(fields=["key_hash"], name="idx_api_keys_hash"),
                ],
            },
        ),
    ]
