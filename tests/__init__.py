from __future__ import annotations

import os

COCKROACH_URL_VARIABLE = "AGENTDB_TEST_COCKROACH_URL"

if (
    COCKROACH_URL_VARIABLE in os.environ
):  # here, because the processes that tests start import it, too
    import tests.helpers.cockroach_floor  # noqa: F401 (lowers it)
