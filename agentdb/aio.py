"""AsyncDb: every Db method, awaitable."""

from __future__ import annotations


class AsyncDb: ...
