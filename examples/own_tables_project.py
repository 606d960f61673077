"""The same in a Django project: its INSTALLED_APPS have both apps, and its connection serves both.

export DJANGO_SETTINGS_MODULE=project_settings
agentdb migrate && python own_tables_project.py
"""

from __future__ import annotations

import uuid

import django

django.setup()  # which a view or a task need not call

from conversations import store  # noqa: E402
from django.db import transaction  # noqa: E402

from agentdb import DjangoDb  # noqa: E402


def main() -> None:
    db, session_id = DjangoDb(), str(uuid.uuid4())
    # The calls of db are part of the project's own transaction.
    with transaction.atomic():
        store.open_session(db, session_id, "support-bot", {"title": "Refund"})
        store.append_message(db, session_id, "user", "Where is my money?")
    print(store.messages_after(db, session_id))


if __name__ == "__main__":
    main()
