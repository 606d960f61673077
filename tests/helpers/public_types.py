"""Whether pyright knows the type of everything that ``agentdb.__all__`` reaches, for a user without Django's stubs.

pyright --verifytypes agentdb --ignoreexternal --outputjson | python -m tests.helpers.public_types
"""

from __future__ import annotations

import json
import sys

import agentdb

PUBLIC = [getattr(agentdb, name) for name in agentdb.__all__]
# Wherever they are, and what they inherit.
REACHED = (
    "agentdb.testing.",
    *{
        f"{reached.__module__}."
        for public in PUBLIC
        for reached in (public, *getattr(public, "__mro__", ()))
        if reached.__module__.startswith("agentdb.")
    },
)

# Of a method that a function returns, and of what has such methods: the type is complete, and typing_usage.py says
# what type checkers make of it.
INFERRED = ("Type is missing type annotation", 'Return type is "AsyncDb"')


def main() -> int:
    symbols = json.load(sys.stdin)["typeCompleteness"]["symbols"]
    reached = [
        symbol
        for symbol in symbols
        if symbol["isExported"] and symbol["name"].startswith(REACHED)
    ]
    unknown = [
        symbol
        for symbol in reached
        if (not symbol["isTypeKnown"] or symbol["isTypeAmbiguous"])
        and any(
            not any(known in found["message"] for known in INFERRED)
            for found in symbol["diagnostics"]
        )
    ]
    for symbol in unknown:
        sys.stdout.write(
            f"{symbol['name']} {[found['message'] for found in symbol['diagnostics']]}\n"
        )
    sys.stdout.write(
        f"{len(reached) - len(unknown)} of {len(reached)} public names have a known type.\n"
    )
    return bool(unknown) or not reached


if __name__ == "__main__":
    sys.exit(main())
