"""System checks: what is wrong with an installation, and what to type."""

from __future__ import annotations
