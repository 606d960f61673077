"""What a call passes: the adapter, its queries and the connections they run on."""

from __future__ import annotations
