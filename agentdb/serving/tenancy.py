"""TenantExecutor: an executor that sees and changes the rows of one tenant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from agentdb.errors import DatabaseClosedError
from agentdb.serving.compiled import Delete, Insert, Select, SelectCount, Update, narrowed_to_tenant
from agentdb.serving.executor import Executor

R = TypeVar("R")


class TenantExecutor:
    """Runs every query on another executor, narrowed to one tenant; an insert is given that tenant."""

    def __init__(self, whole: Executor, tenant_id: str) -> None:
        self._whole = whole
        self.tenant_id = tenant_id
        self._closed = False

    @property
    def whole(self) -> Executor:
        """The executor of all tenants."""
        if self._closed:
            raise DatabaseClosedError("The view of a tenant is closed. Make another one with for_tenant().")
        return self._whole

    def first(self, make: Callable[..., R], query: Select | Update | Delete, **values: Any) -> R | None:
        return self.whole.first(make, narrowed_to_tenant(query), **self._of_tenant(values))

    def all(self, make: Callable[..., R], query: Select | Update | Delete, **values: Any) -> list[R]:
        return self.whole.all(make, narrowed_to_tenant(query), **self._of_tenant(values))

    def one(self, make: Callable[..., R], query: Insert | SelectCount, **values: Any) -> R:
        narrowed = query if isinstance(query, Insert) else narrowed_to_tenant(query)
        return self.whole.one(make, narrowed, **self._of_tenant(values))

    def count(self, query: Update | Delete, **values: Any) -> int:
        return self.whole.count(narrowed_to_tenant(query), **self._of_tenant(values))

    def count_last(self, *queries: Update | Delete, **values: Any) -> int:
        return self.whole.count_last(*map(narrowed_to_tenant, queries), **self._of_tenant(values))

    def insert(self, make: Callable[..., R], query: Insert, duplicate: str, **values: Any) -> R:
        return self.whole.insert(make, query, duplicate, **self._of_tenant(values))

    def transaction(self, work: Callable[[], R]) -> R:
        return self.whole.transaction(work)

    @property
    def in_transaction(self) -> bool:
        return self.whole.in_transaction

    def describe(self) -> str:
        return f"{self.whole.describe()}, tenant {self.tenant_id!r}"

    def rest(self) -> None:
        self._whole.rest()

    def close(self) -> None:
        """End this view; the executor goes on."""
        self._closed = True

    def _of_tenant(self, values: dict[str, Any]) -> dict[str, Any]:
        return {**values, "tenant_id": self.tenant_id}
