"""What agentdb costs beside the raw driver, plain Django, SQLAlchemy and djanorm: ``python -m benchmarks``."""

from __future__ import annotations
