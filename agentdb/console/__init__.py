"""What the terminal and the admin both ask and show."""

from __future__ import annotations
