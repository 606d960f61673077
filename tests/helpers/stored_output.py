"""Files that hold what pages, reports and commands say, in sections that begin with ``=== name``."""

from __future__ import annotations

from pathlib import Path


def sections(file: Path) -> list[tuple[str, list[str]]]:
    """Return the names of the sections and their lines, in order."""
    found: list[tuple[str, list[str]]] = []
    for line in file.read_text().splitlines():
        if line.startswith("=== "):
            found.append((line[4:], []))
        else:
            found[-1][1].append(line)
    return found
