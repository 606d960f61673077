"""The command that probes run."""

from __future__ import annotations

import json

import pytest

from tests.project.test_cli import cli  # noqa: F401 (a fixture)


def test_health_of_a_database_that_works(cli, url, engine):  # noqa: F811
    finished = cli("--url", url, "health")

    assert (finished.returncode, finished.stderr) == (0, "")
    assert " answered in " in finished.stdout

    report = json.loads(cli("--url", url, "health", "--json").stdout)
    assert (
        report["format"],
        report["ok"],
        report["engine"],
        report["pending_migrations"],
    ) == (1, True, engine, [])


@pytest.mark.parametrize("json_option", [[], ["--json"]])
def test_health_of_a_server_that_is_away_is_1_and_says_no_password(cli, json_option):  # noqa: F811
    finished = cli(
        "--url", "postgresql://u:secret@127.0.0.1:1/x", "health", *json_option
    )

    assert finished.returncode == 1
    assert "PostgreSQL database 'x' at 127.0.0.1:1 is unavailable" in finished.stdout
    assert "secret" not in finished.stdout + finished.stderr


def test_health_makes_no_file(cli, tmp_path):  # noqa: F811
    finished = cli("--url", "sqlite:///misspelt.db", "health")

    assert finished.returncode == 1
    assert " does not exist. Check the database URL" in finished.stdout
    answer = cli("--url", "sqlite:///misspelt.db", "health", "--json").stdout
    report = json.loads(answer)
    assert (report["ok"], report["connections"]) == (False, 0)
    assert list(tmp_path.iterdir()) == []
