"""Adopt a copy of a database that the old server wrote, run a program on it, and look at the result.

    python examples/demo.py [FOLDER]

FOLDER (demo unless given) holds the copy; each run begins with a new one.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
LEGACY = HERE / "ash.db"
BIN = Path(sys.executable).parent


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
    database = folder / "agentdb.sqlite3"
    url = f"sqlite:///{database}"

    folder.mkdir(parents=True, exist_ok=True)
    for left_over in folder.glob(f"{database.name}*"):
        left_over.unlink()
    shutil.copyfile(LEGACY, database)
    print(
        f"{database} is a copy of {relative(LEGACY)}, a database that the old server wrote."
    )

    title("Adopt it")
    run("agentdb", "--url", url, "baselinedb")
    title("Run a program on it")
    run("python", relative(HERE / "serve.py"), url)
    print()
    run("python", relative(HERE / "serve_async.py"), url)
    title("Does the schema hold?")
    run("agentdb", "--url", url, "verifydb")
    title("Next")
    agentdb = relative(BIN / "agentdb")
    for command, what in (
        ("make admin", "shows this database in a browser"),
        (
            f"{agentdb} copydb {url} postgresql://localhost/agents",
            "copies it into an empty PostgreSQL database of yours",
        ),
        (f"{agentdb} --help", "lists what else there is"),
    ):
        print(f"$ {command}\n    {what}")


def title(text: str) -> None:
    print(f"\n── {text} " + "─" * max(0, 76 - len(text)), flush=True)


def relative(path: Path) -> str:
    return os.path.relpath(path)


def run(*command: str) -> None:
    """Show a command as it can be typed, and run it."""
    command = (relative(BIN / command[0]), *command[1:])
    print(f"$ {shlex.join(command)}", flush=True)
    finished = subprocess.run(command, check=False)
    if finished.returncode:
        sys.exit(finished.returncode)


if __name__ == "__main__":
    main()
