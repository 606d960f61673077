"""What reports how far an adoption is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """What an adoption calls while it works. A command's ``ProgressLine`` is one."""

    def __call__(self, table: str, done: int, total: int) -> None:
        """Report that ``done`` of ``total`` rows of the table, or pages of a backup, are done."""

    def say(self, text: str) -> None:
        """Report a step that begins, or what is waited for."""


class _Silent:
    def __call__(self, table: str, done: int, total: int) -> None:
        pass

    def say(self, text: str) -> None:
        pass


SILENT: Progress = _Silent()
