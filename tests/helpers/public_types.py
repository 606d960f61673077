"""Whether pyright knows the type of everything that ``agentdb.__all__`` reaches, for a user without Django's stubs.

pyright --verifytypes agentdb --ignoreexternal --outputjson | python -m tests.helpers.public_types
"""

from __future__ import annotations

import json
import sys

REACHED = tuple(
    f"agentdb.{module}"
    for module in ("adapter", "aio", "errors", "interface", "opening", "testing")
)

# Of a method that a function returns: the type is complete, and typing_usage.py says what type checkers make of it.
INFERRED = "Type is missing type annotation"


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
            not found["message"].startswith(INFERRED) for found in symbol["diagnostics"]
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
