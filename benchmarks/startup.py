"""What starting costs: the import, and the first connection, each in fresh interpreters."""

from __future__ import annotations

import subprocess
import sys
from statistics import median
from time import perf_counter
from typing import Any

from benchmarks.databases import Database
from benchmarks.sections import Run

_SETUP = """
from time import perf_counter
start = perf_counter()
import django
from django.conf import settings
settings.configure(
    DATABASES={{"default": {database!r}}}, INSTALLED_APPS=["agentdb"], USE_TZ=True, TIME_ZONE="UTC", LOGGING_CONFIG=None
)
django.setup()
print(perf_counter() - start)
"""
_CONNECT = """
from time import perf_counter
start = perf_counter()
import agentdb
db = agentdb.connect({url!r})
print(perf_counter() - start)
db.close()
"""
_IMPORT = "import sys, agentdb; print(float(any(name.split('.')[0] == 'django' for name in sys.modules)))"


def startup(run: Run) -> dict[str, Any]:
    """Milliseconds, medians of processes started in turn."""
    repeats = 10 if run.quick else 31
    walls: dict[str, list[float]] = {"python": [], "agentdb": []}
    for _ in range(repeats):
        walls["python"].append(_run("print(0)")[1])
        walls["agentdb"].append(_run(_IMPORT)[1])
    imported_django = bool(_run(_IMPORT)[0])
    results: dict[str, Any] = {
        "import": {
            "python_ms": _ms(walls["python"]),
            "over_python_ms": _ms(
                [
                    own - bare
                    for own, bare in zip(walls["agentdb"], walls["python"], strict=True)
                ]
            ),
            "django_imported": imported_django,
        },
        "connect": {},
    }
    for engine in run.engines:
        database = run.filled(engine)
        scripts = {
            "setup": _SETUP.format(database=_settings(database)),
            "connect": _CONNECT.format(url=database.url),
        }
        times: dict[str, list[float]] = {name: [] for name in scripts}
        process: dict[str, list[float]] = {name: [] for name in scripts}
        for _ in range(repeats):
            for name, script in scripts.items():
                inside, wall = _run(script)
                times[name].append(inside)
                process[name].append(wall)
        results["connect"][engine] = {
            **{f"{name}_ms": _ms(values) for name, values in times.items()},
            "ratio": round(
                median(
                    own / bare
                    for own, bare in zip(times["connect"], times["setup"], strict=True)
                ),
                2,
            ),
            **{f"{name}_process_ms": _ms(values) for name, values in process.items()},
        }
    return results


def _settings(database: Database) -> dict[str, Any]:
    from agentdb.conf import database_from_url

    return database_from_url(database.url)


def _run(script: str) -> tuple[float, float]:
    """Return what the script prints, and how long its process took."""
    began = perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    return float(done.stdout), perf_counter() - began


def _ms(seconds: list[float]) -> float:
    return round(median(seconds) * 1000, 1)
