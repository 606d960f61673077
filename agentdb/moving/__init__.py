"""Copies, backups and retention."""

from __future__ import annotations
