"""The old server's upgrade from single-tenant to multi-tenant, statement by statement, as its release B ran it."""

from __future__ import annotations

_INDEXES = [
    "CREATE INDEX IF NOT EXISTS idx_agents_tenant ON agents(tenant_id)",
    "CREATE INDEX IF NOT EXISTS idx_sessions_tenant ON sessions(tenant_id)",
    "CREATE INDEX IF NOT EXISTS idx_sandboxes_tenant ON sandboxes(tenant_id)",
]


def _api_keys(now: str) -> list[str]:
    return [
        "CREATE TABLE IF NOT EXISTS api_keys (id TEXT PRIMARY KEY, tenant_id TEXT NOT NULL,"
        f" key_hash TEXT NOT NULL UNIQUE, label TEXT NOT NULL DEFAULT '', created_at TEXT NOT NULL DEFAULT {now})",
        "CREATE INDEX IF NOT EXISTS idx_api_keys_tenant ON api_keys(tenant_id)",
        "CREATE INDEX IF NOT EXISTS idx_api_keys_hash ON api_keys(key_hash)",
    ]


# On SQLite everything from agents_new on is one transaction; here each statement is left behind as well.
SQLITE = [
    "ALTER TABLE agents ADD COLUMN tenant_id TEXT NOT NULL DEFAULT 'default'",
    "ALTER TABLE sessions ADD COLUMN tenant_id TEXT NOT NULL DEFAULT 'default'",
    "ALTER TABLE sandboxes ADD COLUMN tenant_id TEXT NOT NULL DEFAULT 'default'",
    *_INDEXES,
    *_api_keys("(datetime('now'))"),
    "CREATE TABLE agents_new (id TEXT PRIMARY KEY, tenant_id TEXT NOT NULL DEFAULT 'default', name TEXT NOT NULL,"
    " version INTEGER NOT NULL DEFAULT 1, path TEXT NOT NULL, created_at TEXT NOT NULL DEFAULT (datetime('now')),"
    " updated_at TEXT NOT NULL DEFAULT (datetime('now')), UNIQUE(tenant_id, name))",
    "INSERT INTO agents_new (id, tenant_id, name, version, path, created_at, updated_at)"
    " SELECT lower(hex(randomblob(16))), tenant_id, name, version, path, created_at, updated_at FROM agents",
    "DROP TABLE agents",
    "ALTER TABLE agents_new RENAME TO agents",
    "CREATE INDEX IF NOT EXISTS idx_agents_tenant ON agents(tenant_id)",
    "CREATE TABLE sessions_new (id TEXT PRIMARY KEY, tenant_id TEXT NOT NULL DEFAULT 'default',"
    " agent_name TEXT NOT NULL, sandbox_id TEXT NOT NULL, status TEXT NOT NULL DEFAULT 'starting', runner_id TEXT,"
    " created_at TEXT NOT NULL DEFAULT (datetime('now')), last_active_at TEXT NOT NULL DEFAULT (datetime('now')))",
    "INSERT INTO sessions_new (id, tenant_id, agent_name, sandbox_id, status, runner_id, created_at, last_active_at)"
    " SELECT id, tenant_id, agent_name, sandbox_id, status, runner_id, created_at, last_active_at FROM sessions",
    "DROP TABLE sessions",
    "ALTER TABLE sessions_new RENAME TO sessions",
    "CREATE INDEX IF NOT EXISTS idx_sessions_tenant ON sessions(tenant_id)",
]

# As it runs where somebody dropped the foreign key first; with it, it stops at the statement that drops agents_pkey.
POSTGRESQL = [
    "ALTER TABLE agents ADD COLUMN IF NOT EXISTS tenant_id TEXT NOT NULL DEFAULT 'default'",
    "ALTER TABLE sessions ADD COLUMN IF NOT EXISTS tenant_id TEXT NOT NULL DEFAULT 'default'",
    "ALTER TABLE sandboxes ADD COLUMN IF NOT EXISTS tenant_id TEXT NOT NULL DEFAULT 'default'",
    *_INDEXES,
    *_api_keys("now()::TEXT"),
    "ALTER TABLE agents ADD COLUMN id TEXT",
    "UPDATE agents SET id = gen_random_uuid()::TEXT WHERE id IS NULL",
    "ALTER TABLE agents ALTER COLUMN id SET NOT NULL",
    "ALTER TABLE sessions DROP CONSTRAINT IF EXISTS sessions_agent_name_fkey",
    "ALTER TABLE agents DROP CONSTRAINT agents_pkey",
    "ALTER TABLE agents ADD PRIMARY KEY (id)",
    "CREATE UNIQUE INDEX IF NOT EXISTS idx_agents_tenant_name ON agents(tenant_id, name)",
]

STATEMENTS = {"sqlite": SQLITE, "postgresql": POSTGRESQL}
