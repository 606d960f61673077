"""The project of this repository behind a WSGI server, on the database of DATABASE_URL, with accounts and rows.

Prints its port and serves until its standard input is closed.
"""

from __future__ import annotations

import os
import sys
import threading
from datetime import timedelta

PASSWORD = "a long enough password"


def main() -> None:
    os.environ["DJANGO_SETTINGS_MODULE"] = "settings.base"
    from settings.wsgi import application

    make_rows()
    allow_a_slow_machine()
    from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler

    with ThreadedWSGIServer(("127.0.0.1", 0), WSGIRequestHandler) as server:
        server.set_app(application)
        sys.stdout.write(f"{server.server_port}\n")
        sys.stdout.flush()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        sys.stdin.read()
        server.shutdown()


def allow_a_slow_machine() -> None:
    """Let the questions of a page take longer than a reader would wait."""
    from agentdb.admin import changelist, find, pages
    from agentdb.console import figures, questions

    for module, limit in (
        (questions, "SECONDS"),
        (find, "SECONDS"),
        (figures, "COUNT_SECONDS"),
        (changelist, "COUNT_SECONDS"),
        (changelist, "SEARCH_SECONDS"),
        (pages, "SUM_SECONDS"),
        (questions, "PAGE_SECONDS"),
    ):
        setattr(module, limit, 120.0)


def make_rows() -> None:
    from django.contrib.auth.models import Permission, User
    from django.core.management import call_command
    from django.utils import timezone

    from agentdb.models import Agent, Sandbox, Session
    from agentdb.serving.adapter import DjangoDb

    call_command("migrate", verbosity=0)
    User.objects.create_superuser("root", password=PASSWORD)
    viewer = User.objects.create_user("viewer", password=PASSWORD, is_staff=True)
    viewer.user_permissions.set(
        Permission.objects.filter(
            content_type__app_label="agentdb", codename__startswith="view_"
        )
    )

    now = timezone.now()
    names = (
        "support-bot",
        "code-reviewer",
        "researcher",
        "billing-helper",
        "release-notes",
        "triage",
    )
    tenants = ("acme", "globex", "initech", "umbrella", "default")
    for tenant in tenants:
        for number, name in enumerate(names):
            age = timedelta(days=20 - number, minutes=number * 7)
            Agent.objects.create(
                tenant_id=tenant,
                name=name,
                path=f"/srv/agents/{name}",
                version=number + 1,
                created_at=now - age,
                updated_at=now - age / 2,
            )
    statuses = (
        "active",
        "ended",
        "paused",
        "ended",
        "active",
        "starting",
        "ended",
        "error",
        "active",
    )
    states = (
        "running",
        "cold",
        "waiting",
        "cold",
        "running",
        "warming",
        "waiting",
        "warm",
        "cold",
        "waiting",
    )
    sessions, sandboxes = [], []
    for number in range(160):
        tenant = tenants[number * number % 7 % 5]
        name = names[number % 6] if number % 23 else "retired-bot"
        age = timedelta(minutes=4 * number + number % 3)
        sandbox = f"sb-{number:04}" if number % 17 else f"sb-gone-{number}"
        sessions.append(
            Session(
                id=f"sess-{number:04}",
                tenant_id=tenant,
                agent_name=name,
                sandbox_id=sandbox,
                status=statuses[number % 9],
                runner_id=f"runner-{'abc'[number % 3]}" if number % 4 else None,
                created_at=now - age,
                last_active_at=now - age / 2,
            )
        )
        if number % 17 and number < 90:
            sandboxes.append(
                Sandbox(
                    id=f"sb-{number:04}",
                    tenant_id=tenant,
                    session_id=f"sess-{number:04}" if number % 5 else None,
                    agent_name=name,
                    state=states[number % 10],
                    workspace_dir=f"/var/lib/agents/{tenant}/{number:04}",
                    created_at=now - age,
                    last_used_at=now - age / 2,
                )
            )
    Session.objects.bulk_create(sessions)
    Sandbox.objects.bulk_create(sandboxes)
    DjangoDb().issue_api_key("acme", "ci pipeline")
    DjangoDb().issue_api_key("globex", "laptop of Ann")


if __name__ == "__main__":
    main()
