"""Native timestamps, ids that cannot be NULL, and one set of names whatever path a database came by."""

from __future__ import annotations

from django.db import migrations, models

import agentdb.models
from agentdb.expressions import UtcNow
from agentdb.operations import NativeTimestamps


class Migration(migrations.Migration):
    dependencies = [("agentdb", "0001_initial")]

    operations = [
        NativeTimestamps(
            state_operations=[
                migrations.AlterField(
                    "Agent",
                    "id",
                    models.TextField(
                        primary_key=True, default=agentdb.models.new_id, serialize=False
                    ),
                ),
                *(
                    migrations.AlterField(
                        model, "id", models.TextField(primary_key=True, serialize=False)
                    )
                    for model in ("Session", "Sandbox", "ApiKey")
                ),
                *(
                    migrations.AlterField(
                        model, column, models.DateTimeField(db_default=UtcNow())
                    )
                    for model, column in (
                        ("Agent", "created_at"),
                        ("Agent", "updated_at"),
                        ("Session", "created_at"),
                        ("Session", "last_active_at"),
                        ("Sandbox", "created_at"),
                        ("Sandbox", "last_used_at"),
                        ("ApiKey", "created_at"),
                    )
                ),
                migrations.RemoveConstraint("Agent", "idx_agents_tenant_name"),
                migrations.AddConstraint(
                    "Agent",
                    models.UniqueConstraint(
                        fields=["tenant_id", "name"], name="idx_agents_tenant_name"
                    ),
                ),
                # The unique constraint on key_hash has an index of its own.
                migrations.RemoveIndex("ApiKey", "idx_api_keys_hash"),
            ]
        )
    ]
