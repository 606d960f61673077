"""The console script: Django's commands for one database URL, without a project."""

from __future__ import annotations
