"""The path of a call: the adapter, its queries, and the connections on which they run."""

from __future__ import annotations
