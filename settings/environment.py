"""What the settings take from the environment, and the secret key of this machine."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from agentdb.errors import AgentDbError

_OFF = ("", "0", "off", "false", "no")


def words(variable: str) -> list[str]:
    """The comma-separated values of an environment variable."""
    return [
        word.strip() for word in os.environ.get(variable, "").split(",") if word.strip()
    ]


def flag(variable: str) -> bool:
    return os.environ.get(variable, "").strip().lower() not in _OFF


def secret_key(path: Path | None = None) -> str:
    """Return this machine's secret key; the first call makes it, in a file that its user alone can read."""
    path = path or _state_folder() / "secret_key"
    try:
        if not path.exists():
            _write_secret(path)
        key = path.read_text().strip()
    except OSError as error:
        raise AgentDbError(
            f"The secret key cannot be kept in {str(path)!r}: {error.strerror}. Set AGENTDB_SECRET_KEY to 50 or more "
            "random characters."
        ) from error
    if len(key) < 50:
        raise AgentDbError(
            f"The secret key in {str(path)!r} is too short to be one. Delete the file, and try again."
        )
    return key


def _write_secret(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_urlsafe(64))
    try:
        # Of several processes that start at once, the first one's key stays.
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()


def _state_folder() -> Path:
    if os.name == "nt":
        return (
            Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
            / "agentdb"
        )
    return (
        Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        / "agentdb"
    )
