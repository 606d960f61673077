"""The tables of conversations, as makemigrations wrote them."""

from __future__ import annotations

import django.db.models.functions.datetime
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="Conversation",
            fields=[
                ("session_id", models.TextField(primary_key=True, serialize=False)),
                ("metadata", models.JSONField(default=dict)),
                ("last_sequence", models.IntegerField(default=0)),
            ],
        ),
        migrations.CreateModel(
            name="Job",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("session_id", models.TextField(db_index=True)),
                ("payload", models.JSONField()),
                ("taken_by", models.TextField(null=True)),
            ],
            options={
                "indexes": [
                    models.Index(
                        condition=models.Q(("taken_by", None)),
                        fields=["id"],
                        name="job_free",
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="Message",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("session_id", models.TextField()),
                ("sequence", models.IntegerField()),
                ("role", models.TextField()),
                ("content", models.JSONField()),
                (
                    "created_at",
                    models.DateTimeField(
                        db_default=django.db.models.functions.datetime.Now()
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("session_id", "sequence"), name="message_of_session"
                    )
                ],
            },
        ),
    ]
