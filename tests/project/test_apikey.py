"""The apikey command: the plain key alone on stdout, everything else on stderr."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from agentdb import DjangoDb, keys

ROOT = Path(__file__).parents[2]


def run(db: DjangoDb, *arguments: str) -> tuple[str, str]:
    stdout, stderr = StringIO(), StringIO()
    call_command(
        "apikey",
        f"--database={db.alias}",
        *arguments,
        stdout=stdout,
        stderr=stderr,
        no_color=True,
    )
    named, _, said = stderr.getvalue().partition("\n")
    assert named == f"{db.describe()}."
    return stdout.getvalue(), said


def test_issue_prints_the_plain_key_alone_to_stdout(db: DjangoDb):
    stdout, stderr = run(db, "issue", "--tenant", "acme", "--label", "laptop")

    (record,) = db.list_api_keys_by_tenant("acme")
    assert re.fullmatch(r"agentdb_[A-Za-z0-9_-]{43}\n", stdout)
    assert db.authenticate(stdout.rstrip("\n")) == record
    assert stderr == (
        f"Issued key {record.id} for tenant 'acme'. Keep the line above: it is not stored and cannot be shown again.\n"
    )


def test_list_prints_a_line_for_each_key_and_no_hash(db: DjangoDb):
    _, laptop = db.issue_api_key("acme", "laptop")
    _, server = db.issue_api_key("acme", "server")
    _, other = db.issue_api_key("zenith", "")

    stdout, stderr = run(db, "list")

    lines = [line.split("\t") for line in stdout.splitlines()]
    assert [line[:3] for line in lines] == [
        [server.id, "acme", "server"],
        [laptop.id, "acme", "laptop"],
        [other.id, "zenith", ""],
    ]
    assert lines[0][3] == f"{server.key_hash[:8]}…"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)? UTC", lines[0][4])
    assert server.key_hash[:9] not in stdout
    assert stderr == "3 keys.\n"


def test_list_of_one_tenant_says_whose_it_is(db: DjangoDb):
    db.issue_api_key("acme", "laptop")
    db.issue_api_key("zenith", "laptop")

    assert run(db, "list", "--tenant", "acme")[1] == "1 key of tenant 'acme'.\n"
    assert run(db, "list", "--tenant", "nobody") == ("", "0 keys of tenant 'nobody'.\n")


def test_an_action_takes_the_options_of_every_command(db: DjangoDb):
    options = ("--verbosity=3", "--traceback", "--no-color", f"--database={db.alias}")

    assert run(db, "list", *options)[1] == "0 keys.\n"
    with pytest.raises(CommandError, match="invalid choice: 4"):
        run(db, "list", "-v", "4")


def test_list_writes_a_tab_in_a_label_as_a_space(db: DjangoDb):
    db.issue_api_key("acme", "a\tb\nc")

    assert run(db, "list")[0].count("\n") == 1
    assert run(db, "list")[0].split("\t")[2] == "a b c"


def test_revoke_deletes_the_key(db: DjangoDb):
    plain, record = db.issue_api_key("acme", "laptop")

    assert run(db, "revoke", record.id) == ("", f"Revoked key {record.id}.\n")
    assert db.authenticate(plain) is None


def test_revoke_of_an_unknown_id_says_where_ids_are(db: DjangoDb):
    with pytest.raises(CommandError) as raised:
        run(db, "revoke", "nope")

    assert (
        str(raised.value)
        == "No API key has the id 'nope'. Run 'agentdb apikey list' to see the ids."
    )
    assert raised.value.returncode == 1


def test_issue_for_no_tenant_is_refused(db: DjangoDb):
    with pytest.raises(CommandError) as raised:
        run(db, "issue", "--tenant", "", "--label", "x")

    assert str(raised.value) == "Tenant id must not be empty."
    assert run(db, "list")[0] == ""


def manage(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "DATABASE_URL": url,
        "DJANGO_SETTINGS_MODULE": "settings.base",
    }
    command = [sys.executable, "manage.py", "apikey", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_issued_key_can_be_piped_and_an_unknown_id_exits_with_1(url: str, db: DjangoDb):
    issued = manage(url, "issue", "--tenant", "acme", "--label", "ci")
    unknown = manage(url, "revoke", "nope")

    assert issued.returncode == 0
    assert issued.stdout.startswith(keys.PREFIX)
    assert db.authenticate(issued.stdout.strip()) is not None
    assert issued.stdout.strip() not in issued.stderr
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert unknown.stderr == (
        f"{db.describe()}.\nCommandError: No API key has the id 'nope'. Run 'agentdb apikey list' to see the ids.\n"
    )


def test_command_line_errors_go_to_stderr_alone(url: str):
    missing = manage(url, "issue", "--tenant", "acme")

    assert (missing.returncode, missing.stdout) == (2, "")
    assert "the following arguments are required: --label" in missing.stderr


def test_the_command_knows_the_secret_of_the_environment(
    db: DjangoDb, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AGENTDB_KEY_SECRET", "the server's own secret")

    stdout, _ = run(db, "issue", "--tenant", "acme", "--label", "laptop")

    (record,) = db.list_api_keys_by_tenant("acme")
    assert record.key_hash == keys.KeyHashes("the server's own secret").hash(
        stdout.rstrip("\n")
    )
    assert record.key_hash != keys.bare_hash(stdout.rstrip("\n"))


def test_find_says_whose_a_key_is_and_reads_it_from_standard_input(
    db: DjangoDb, monkeypatch: pytest.MonkeyPatch
):
    plain, record = db.issue_api_key("acme", "laptop")
    db.issue_api_key("zenith", "server")

    monkeypatch.setattr("sys.stdin", StringIO(f"{plain}\n"))
    stdout, _ = run(db, "find")

    assert stdout.split("\t")[:3] == [record.id, "acme", "laptop"]
    assert plain not in stdout
    assert record.key_hash[:9] not in stdout


@pytest.mark.parametrize("text", ["", "\n", "agentdb_nobody\n"])
def test_find_of_no_key_says_so_without_repeating_it(
    db: DjangoDb, monkeypatch: pytest.MonkeyPatch, text: str
):
    monkeypatch.setattr("sys.stdin", StringIO(text))

    with pytest.raises(
        CommandError, match=r"^No API key is stored that this one opens\.$"
    ) as refused:
        run(db, "find")

    assert refused.value.returncode == 1
