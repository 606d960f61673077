"""Importing this lets django-cockroachdb use CockroachDB 23.1 in this process.

23.1 is the newest release whose source may be built and used freely, so it is the one that these tests have. The
backend's own floor is 23.2. The package never lowers it: only tests and the programs that they start import this.
"""

from __future__ import annotations

from django_cockroachdb.features import DatabaseFeatures

DatabaseFeatures.minimum_database_version = (23, 1)
