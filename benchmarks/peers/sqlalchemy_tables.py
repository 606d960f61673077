"""The four tables and an engine for SQLAlchemy: one kept connection in autocommit, prepared on PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import (
    DateTime,
    Engine,
    Integer,
    Text,
    TypeDecorator,
    create_engine,
    event,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.databases import Database


class Instant(TypeDecorator[datetime]):
    """An aware UTC ``datetime``: on SQLite, which has only naive ones, as SQLAlchemy's documentation does it."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(
        self, value: datetime | None, dialect: Any
    ) -> datetime | None:
        return (
            value.replace(tzinfo=None)
            if value is not None and dialect.name == "sqlite"
            else value
        )

    def process_result_value(
        self, value: datetime | None, dialect: Any
    ) -> datetime | None:
        return (
            value.replace(tzinfo=UTC)
            if value is not None and dialect.name == "sqlite"
            else value
        )


class Base(DeclarativeBase):
    pass


class Agent(Base):
    __tablename__ = "agents"

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text)
    name: Mapped[str] = mapped_column(Text)
    version: Mapped[int] = mapped_column(Integer)
    path: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(Instant)
    updated_at: Mapped[datetime] = mapped_column(Instant)


class Session(Base):
    __tablename__ = "sessions"

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text)
    agent_name: Mapped[str] = mapped_column(Text)
    sandbox_id: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(Text)
    runner_id: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(Instant)
    last_active_at: Mapped[datetime] = mapped_column(Instant)


class Sandbox(Base):
    __tablename__ = "sandboxes"

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text)
    session_id: Mapped[str | None] = mapped_column(Text)
    agent_name: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(Text)
    workspace_dir: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(Instant)
    last_used_at: Mapped[datetime] = mapped_column(Instant)


class ApiKey(Base):
    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text)
    key_hash: Mapped[str] = mapped_column(Text)
    label: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(Instant)


def engine_for(database: Database) -> Engine:
    if database.engine == "postgresql":
        parts = urlsplit(database.url)
        url = f"postgresql+psycopg://{parts.username}@{parts.path}?{parts.query}"
        return create_engine(
            url,
            isolation_level="AUTOCOMMIT",
            connect_args={"prepare_threshold": 0, "options": "-c TimeZone=UTC"},
        )
    engine = create_engine(
        f"sqlite:///{database.path}",
        isolation_level="AUTOCOMMIT",
        connect_args={"timeout": 30},
    )

    @event.listens_for(engine, "connect")
    def _durable(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA synchronous={database.synchronous}")

    return engine
