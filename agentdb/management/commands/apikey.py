from __future__ import annotations

import getpass
import sys
from contextlib import suppress
from functools import partial
from typing import Any

from django.core.management.base import CommandError, CommandParser

from agentdb.console.display import exact, masked
from agentdb.errors import AgentDbError
from agentdb.interface import ApiKeyRecord
from agentdb.management.database_command import DatabaseCommand
from agentdb.models import ApiKey
from agentdb.serving.adapter import DjangoDb
from agentdb.serving.opening import open_alias
from agentdb.wording import counted


class Command(DatabaseCommand):
    help = "Issues, lists, finds and revokes API keys. The plain key is shown once and stored nowhere."

    requires_system_checks = "__all__"
    output_is_the_result = True

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

        add_action = partial(self.add_action, parser, actions)
        issue = add_action("issue", "Make a key; prints the plain key alone to stdout.")
        issue.add_argument(
            "--tenant", required=True, help="The tenant the key belongs to."
        )
        issue.add_argument(
            "--label", required=True, help="What the key is for: a person, a program."
        )

        shown = add_action(
            "list",
            "Print keys, newest first: id, tenant, label, hash, time of creation.",
        )
        shown.add_argument("--tenant", help="Only this tenant's keys.")

        add_action(
            "find",
            "Print whose a plain key is, as 'list' does. The key is read from a prompt, or from standard input.",
        )

        revoke = add_action(
            "revoke", "Delete a key; whoever uses it is locked out at once."
        )
        revoke.add_argument("id", help="The id that 'list' prints.")

    def handle(self, *, action: str, database: str, **options: Any) -> None:
        db = open_alias(database)
        self.name_database(database)
        if action == "issue":
            self.issue(db, options["tenant"], options["label"])
        elif action == "list":
            self.list(database, options["tenant"])
        elif action == "find":
            self.find(db)
        else:
            self.revoke(db, options["id"])

    def issue(self, db: DjangoDb, tenant_id: str, label: str) -> None:
        """Print a new key; revoke it if it could not be printed, because nobody has seen it."""
        plain, record = db.issue_api_key(tenant_id, label)
        # Alone on standard output, so that a script can take it. Flushed, because a full disk shows only then.
        self.stdout.write(plain)
        self.stdout.flush()
        if self._output.failure is not None:
            db.delete_api_key(record.id)
            raise AgentDbError(
                "The key could not be printed, so it was revoked. Nobody has seen it."
            )
        self.stderr.write(
            f"Issued key {record.id} for tenant {tenant_id!r}. Keep the line above: it is not stored and cannot be "
            "shown again.",
            self.style.SUCCESS,
        )

    def list(self, alias: str, tenant_id: str | None) -> None:
        """Print the keys of the tenant, or of all, on a line each; how many there are goes to standard error."""
        keys = ApiKey.objects.using(alias).order_by("tenant_id", "-created_at", "-id")
        if tenant_id is not None:
            keys = keys.filter(tenant_id=tenant_id)
        # One row at a time: there may be more keys than fit in memory.
        count = 0
        for key in keys.iterator():
            self.show(key)
            count += 1
        said = counted(count, "key")
        if tenant_id is not None:
            said += f" of tenant {tenant_id!r}"
        self.stderr.write(f"{said}.", self.style.SUCCESS)

    def find(self, db: DjangoDb) -> None:
        """Print the stored key that the typed one opens."""
        plain = _typed_key()
        record = db.authenticate(plain) if plain else None
        if record is None:
            raise CommandError(
                "No API key is stored that this one opens.", returncode=1
            )
        self.show(record)

    def show(self, key: ApiKey | ApiKeyRecord) -> None:
        """Print a key without what opens it, in columns that a tab separates."""
        columns = [
            key.id,
            key.tenant_id,
            key.label,
            masked(key.key_hash),
            exact(key.created_at),
        ]
        # A label may hold tabs and line ends, which would forge columns and rows.
        cells = [" ".join(column.split()) for column in columns]
        self.stdout.write("\t".join(cells))

    def revoke(self, db: DjangoDb, id: str) -> None:
        if not db.delete_api_key(id):
            raise CommandError(
                f"No API key has the id {id!r}. Run 'agentdb apikey list' to see the ids.",
                returncode=1,
            )
        self.stderr.write(f"Revoked key {id}.", self.style.SUCCESS)


def _typed_key() -> str:
    """Read a key from a prompt or a pipe. Never an argument: other users see arguments, and shells store them."""
    # Ctrl-D at the prompt, and bytes that are no text, are like an empty line.
    with suppress(EOFError, UnicodeDecodeError):
        if sys.stdin.isatty():
            return getpass.getpass("API key: ").strip()
        return sys.stdin.readline().strip()
    return ""
