"""What an operator built around the tables on PostgreSQL, as statements, and as the server's catalog describes it."""

from __future__ import annotations

import re

import psycopg

Description = dict[str, tuple[object, ...]]

FUNCTION = "CREATE FUNCTION own_f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'"
ROLES = ("own_reader", "own_writer")
_VIEW = "CREATE VIEW own AS SELECT id, status, created_at FROM sessions"

# PostgreSQL 14 publishes whole tables, named one by one.
SINCE_15 = (
    "publication of a schema",
    "publication of other columns",
    "publication of a timestamp",
    "publication with a filter of a timestamp",
)

# Each is carried over as it is.
CARRIED: dict[str, tuple[str, ...]] = {
    "view": (_VIEW,),
    "view of all columns": ("CREATE VIEW own AS SELECT * FROM sessions",),
    "view that reads no timestamp": (
        "CREATE VIEW own AS SELECT id, status FROM sessions",
    ),
    "view over views": (
        _VIEW,
        "CREATE VIEW own_2 AS SELECT status, max(created_at) AS latest FROM own GROUP BY status",
        "CREATE VIEW own_3 AS SELECT a.latest, b.id FROM own_2 a JOIN own b USING (status)",
    ),
    "view over two tables": (
        "CREATE VIEW own AS SELECT s.id, a.updated_at, s.created_at FROM sessions s JOIN agents a"
        " ON a.name = s.agent_name AND a.tenant_id = s.tenant_id",
    ),
    "view grouped by the key": (
        "CREATE VIEW own AS SELECT id, status, count(*) FROM sessions GROUP BY id",
    ),
    "view in another schema": (
        "CREATE SCHEMA reports",
        "CREATE VIEW reports.sessions AS SELECT id, created_at FROM public.sessions",
        "CREATE VIEW reports.own AS SELECT max(created_at) AS latest FROM reports.sessions",
    ),
    "view of a quoted name": (
        'CREATE VIEW "own ""V""" AS SELECT id, created_at AS "At %s" FROM sessions',
    ),
    "view with a percent sign": (
        "CREATE VIEW own AS SELECT created_at FROM sessions WHERE status LIKE 'a%s%'",
    ),
    "view with options": (
        "CREATE VIEW own WITH (security_barrier, check_option = 'local') AS"
        " SELECT id, created_at FROM sessions WHERE status = 'active'",
    ),
    "view with a comment": (_VIEW, "COMMENT ON VIEW own IS 'it''s 100 %s mine'"),
    "view with comments on columns": (
        _VIEW,
        "COMMENT ON COLUMN own.created_at IS 'when'",
    ),
    "view with a default": (
        _VIEW,
        "ALTER VIEW own ALTER COLUMN status SET DEFAULT 'starting'",
    ),
    "view of another owner": (
        "GRANT SELECT ON sessions TO own_writer",
        "GRANT CREATE ON SCHEMA public TO own_writer",
        _VIEW,
        "ALTER VIEW own OWNER TO own_writer",
    ),
    "view with grants": (
        _VIEW,
        "GRANT SELECT ON own TO own_reader, PUBLIC",
        "GRANT ALL ON own TO own_writer",
    ),
    "view with a grant option": (
        _VIEW,
        "GRANT SELECT, UPDATE ON own TO own_writer WITH GRANT OPTION",
    ),
    "view with grants on columns": (
        _VIEW,
        "GRANT SELECT (id), UPDATE (status) ON own TO own_reader",
        "GRANT SELECT (created_at) ON own TO own_writer WITH GRANT OPTION",
    ),
    "view whose owner gave up his rights": (
        _VIEW,
        "REVOKE ALL ON own FROM CURRENT_USER",
    ),
    "view beside default privileges": (
        _VIEW,
        "ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO own_reader",
    ),
    "view with grants beside default privileges": (
        _VIEW,
        "GRANT SELECT ON own TO own_writer",
        "ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON TABLES TO own_reader, PUBLIC",
    ),
    "view with a trigger": (
        FUNCTION,
        _VIEW,
        "CREATE TRIGGER own_t INSTEAD OF UPDATE ON own FOR EACH ROW EXECUTE FUNCTION own_f()",
        "COMMENT ON TRIGGER own_t ON own IS 'mine'",
    ),
    "view with a rule": (
        _VIEW,
        "CREATE RULE own_r AS ON DELETE TO own DO INSTEAD UPDATE sessions SET status = 'ended' WHERE id = OLD.id",
        "COMMENT ON RULE own_r ON own IS 'mine'",
    ),
    "recursive view": (
        "CREATE RECURSIVE VIEW own (n, at) AS SELECT 1, min(created_at) FROM sessions"
        " UNION ALL SELECT n + 1, at FROM own WHERE n < 3",
    ),
    "trigger": (
        FUNCTION,
        "CREATE TRIGGER own BEFORE UPDATE ON sessions FOR EACH ROW EXECUTE FUNCTION own_f()",
        "COMMENT ON TRIGGER own ON sessions IS 'mine'",
    ),
    "trigger of a timestamp": (
        FUNCTION,
        "CREATE TRIGGER own BEFORE UPDATE OF last_active_at ON sessions FOR EACH ROW EXECUTE FUNCTION own_f()",
        "COMMENT ON TRIGGER own ON sessions IS 'mine'",
        "ALTER TABLE sessions DISABLE TRIGGER own",
    ),
    "trigger with a condition": (
        FUNCTION,
        "CREATE TRIGGER own AFTER UPDATE ON sessions FOR EACH ROW"
        " WHEN (OLD.last_active_at IS DISTINCT FROM NEW.last_active_at) EXECUTE FUNCTION own_f()",
        "ALTER TABLE sessions ENABLE ALWAYS TRIGGER own",
    ),
    "trigger with a transition table": (
        FUNCTION,
        "CREATE TRIGGER own AFTER UPDATE ON sessions REFERENCING NEW TABLE AS n FOR EACH STATEMENT"
        " EXECUTE FUNCTION own_f()",
    ),
    "constraint trigger": (
        FUNCTION,
        "CREATE CONSTRAINT TRIGGER own AFTER UPDATE OF created_at ON sessions DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION own_f()",
    ),
    "policy": (
        "CREATE POLICY own ON sessions FOR SELECT TO own_reader USING (created_at <= last_active_at)",
        "COMMENT ON POLICY own ON sessions IS 'mine'",
    ),
    "restrictive policy": (
        "CREATE POLICY own ON sessions AS RESTRICTIVE FOR UPDATE TO own_reader, PUBLIC"
        " USING (last_active_at > created_at) WITH CHECK (status <> 'x' AND created_at IS NOT NULL)",
    ),
    "policy of another table": (
        "CREATE TABLE notes (session_id text)",
        "ALTER TABLE notes ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY own ON notes USING (EXISTS (SELECT FROM sessions WHERE id = session_id"
        " AND created_at <= last_active_at))",
    ),
    "publication": (
        "CREATE PUBLICATION own FOR TABLE sessions, agents WITH (publish = 'insert')",
    ),
    "publication of all tables": ("CREATE PUBLICATION own FOR ALL TABLES",),
    "publication of a schema": ("CREATE PUBLICATION own FOR TABLES IN SCHEMA public",),
    "publication of other columns": (
        "CREATE PUBLICATION own FOR TABLE sessions (id, status) WHERE (status = 'x')",
    ),
    "statistics": (
        "CREATE STATISTICS own (ndistinct, dependencies) ON agent_name, created_at FROM sessions",
        "COMMENT ON STATISTICS own IS 'mine'",
    ),
    "generated column": (
        "ALTER TABLE sessions ADD own text GENERATED ALWAYS AS (upper(status)) STORED",
    ),
    "identity column": (
        "ALTER TABLE sessions ADD own bigint GENERATED ALWAYS AS IDENTITY",
    ),
    "serial column": ("ALTER TABLE sessions ADD own bigserial",),
    "column with everything": (
        "ALTER TABLE sessions ADD own varchar(20) COLLATE \"C\" DEFAULT lower('X')",
        "ALTER TABLE sessions ALTER own SET STATISTICS 77",
        "ALTER TABLE sessions ALTER own SET (n_distinct = 5)",
        "COMMENT ON COLUMN sessions.own IS 'mine'",
        "GRANT UPDATE (own) ON sessions TO own_reader",
    ),
    "index": (
        "CREATE INDEX own ON sessions (status, agent_name DESC)",
        "COMMENT ON INDEX own IS 'mine'",
    ),
    "index of a timestamp": (
        "CREATE INDEX own ON sessions (created_at DESC, status) INCLUDE (id)",
    ),
    "partial index": (
        "CREATE INDEX own ON sessions (status) WHERE runner_id IS NOT NULL",
    ),
    "partial index of a timestamp": (
        "CREATE INDEX own ON sessions (status) WHERE created_at = last_active_at",
    ),
    "expression index": (
        "CREATE INDEX own ON sessions (lower(agent_name), left(id, 4))",
    ),
    "hash index": ("CREATE INDEX own ON sessions USING hash (created_at)",),
    "brin index": (
        "CREATE INDEX own ON sessions USING brin (created_at) WITH (pages_per_range = 8)",
    ),
    "index of an operator class": (
        "CREATE INDEX own ON sessions (agent_name text_pattern_ops)",
    ),
    "index of a collation": ('CREATE INDEX own ON sessions (agent_name COLLATE "C")',),
    "clustered index": (
        "CREATE INDEX own ON sessions (agent_name, created_at)",
        "ALTER TABLE sessions CLUSTER ON own",
    ),
    "unique constraint on an own column with a space": (
        'ALTER TABLE sessions ADD "o w n" text CONSTRAINT own UNIQUE',
    ),
    "unique index of an own column with a quote": (
        'ALTER TABLE sessions ADD "own ""n" text',
        'CREATE UNIQUE INDEX own ON sessions ("own ""n" DESC)',
    ),
    "unique index of an own column": (
        "ALTER TABLE sessions ADD own text",
        "CREATE UNIQUE INDEX own_i ON sessions (own)",
    ),
    "check of an own column": (
        "ALTER TABLE sessions ADD own int CONSTRAINT own_c CHECK (own > 0)",
        "COMMENT ON CONSTRAINT own_c ON sessions IS 'mine'",
    ),
    "check of an own column, not valid": (
        "ALTER TABLE sessions ADD own int DEFAULT -1",
        "ALTER TABLE sessions ADD CONSTRAINT own_c CHECK (own > 0) NOT VALID",
    ),
    "foreign key from another table": (
        "CREATE TABLE notes (session_id text REFERENCES sessions ON DELETE CASCADE)",
        "INSERT INTO notes SELECT id FROM sessions",
    ),
    "foreign key from another schema": (
        "CREATE SCHEMA other",
        "CREATE TABLE other.notes (session_id text CONSTRAINT own REFERENCES sessions (id) DEFERRABLE)",
    ),
    "foreign key to a unique pair": (
        "CREATE TABLE notes (t text, n text, FOREIGN KEY (t, n) REFERENCES agents (tenant_id, name))",
    ),
    "foreign key to the hash": (
        "CREATE TABLE notes (h text REFERENCES api_keys (key_hash))",
    ),
    "foreign key of an own column": (
        "CREATE TABLE teams (id text PRIMARY KEY)",
        "ALTER TABLE sessions ADD team text REFERENCES teams",
    ),
    "foreign key of an own column and one of ours": (
        "CREATE TABLE teams (tenant text, id text, PRIMARY KEY (tenant, id))",
        "ALTER TABLE sessions ADD team text",
        "ALTER TABLE sessions ADD CONSTRAINT own FOREIGN KEY (tenant_id, team) REFERENCES teams",
    ),
    "replica identity of the key": (
        "ALTER TABLE agents REPLICA IDENTITY USING INDEX agents_pkey",
        "ALTER TABLE sessions REPLICA IDENTITY USING INDEX sessions_pkey",
        "CREATE PUBLICATION own FOR TABLE agents, sessions",
    ),
    "replica identity full": ("ALTER TABLE sessions REPLICA IDENTITY FULL",),
    "function in SQL": (
        "CREATE FUNCTION own() RETURNS bigint LANGUAGE sql AS 'SELECT count(created_at) FROM sessions'",
        "GRANT EXECUTE ON FUNCTION own() TO own_reader",
    ),
    "function with a body that reads no timestamp": (
        "CREATE FUNCTION own(x text) RETURNS bigint BEGIN ATOMIC SELECT count(*) FROM sessions WHERE id = x; END",
    ),
    "function of a row": (
        "CREATE FUNCTION own(s sessions) RETURNS text LANGUAGE sql AS 'SELECT s.status'",
        "CREATE FUNCTION own_all() RETURNS SETOF sessions LANGUAGE sql AS 'SELECT * FROM sessions'",
    ),
    "grants on the table": (
        "GRANT SELECT, INSERT ON sessions TO own_reader",
        "GRANT UPDATE (status, created_at) ON sessions TO own_writer WITH GRANT OPTION",
    ),
    "comments on the table": (
        "COMMENT ON TABLE sessions IS 'mine'",
        "COMMENT ON COLUMN sessions.created_at IS 'when'",
        "COMMENT ON INDEX sessions_pkey IS 'the key'",
        "COMMENT ON CONSTRAINT sessions_pkey ON sessions IS 'the key'",
    ),
    "settings of the table": (
        "ALTER TABLE sessions SET (fillfactor = 70, autovacuum_enabled = false)",
        "ALTER TABLE sessions ALTER created_at SET STATISTICS 333",
    ),
    "table in another schema of the same name": (
        "CREATE SCHEMA other",
        "CREATE TABLE other.sessions (x int)",
    ),
    "event trigger": (
        "CREATE FUNCTION own_e() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'",
        "CREATE EVENT TRIGGER own ON ddl_command_end EXECUTE FUNCTION own_e()",
    ),
}

DROP_FIRST = "Drop it, run the command again, and recreate it."
_NO_OPERATOR = "cannot be recreated with the new types of the columns it reads: operator does not exist: timestamp"
_NO_FUNCTION = (
    "function substr(timestamp with time zone, integer, integer) does not exist."
)
_NO_SUBSTR = "cannot be recreated with the new types of the columns it reads: function substr(timestamp with time zone"
_FAILS = "Table 'sessions' cannot be converted: "
_USED = f"{_FAILS}cannot alter type of a column used by a "
_READS = 'depends on column "created_at". Rename or drop that, run the command again, and recreate it.'
_READ_BY_VIEW = (
    "View 'own' cannot be recreated with the new types of the columns it reads: cannot drop view own because other "
    "objects depend on it: "
)

# Each is refused with this sentence, or one that begins so.
REFUSED: dict[str, tuple[str, tuple[str, ...]]] = {
    "view that takes a text": (
        f"View 'own' {_NO_SUBSTR}",
        ("CREATE VIEW own AS SELECT substr(created_at, 1, 10) AS day FROM sessions",),
    ),
    "view over a view that takes a text": (
        f"View 'own_2' {_NO_OPERATOR}",
        (
            _VIEW,
            "CREATE VIEW own_2 AS SELECT id FROM own WHERE created_at > '2026-01-01'",
        ),
    ),
    "view with a default of a text": (
        "View 'own' cannot be recreated with the new types of the columns it reads: column \"created_at\" is of type",
        (_VIEW, "ALTER VIEW own ALTER COLUMN created_at SET DEFAULT now()::text"),
    ),
    "view with a right that its owner did not grant": (
        f"View 'own' cannot be recreated with exactly the rights that were granted on it. {DROP_FIRST}",
        (
            _VIEW,
            "GRANT SELECT, UPDATE ON own TO own_writer WITH GRANT OPTION",
            "SET ROLE own_writer",
            "GRANT SELECT ON own TO own_reader",
            "RESET ROLE",
        ),
    ),
    "exclusion that takes a text": (
        f"{_FAILS}{_NO_FUNCTION} These read columns whose types change: index own. Rename or drop that",
        (
            "ALTER TABLE sessions ADD CONSTRAINT own EXCLUDE USING hash ((substr(created_at, 1, 30) || id) WITH =)",
        ),
    ),
    "materialized view": (
        f"{_USED}view or rule: rule _RETURN on materialized view own {_READS}",
        ("CREATE MATERIALIZED VIEW own AS SELECT id, created_at FROM sessions",),
    ),
    "materialized view of a view": (
        f"{_READ_BY_VIEW}materialized view own_2 depends on view own.",
        (_VIEW, "CREATE MATERIALIZED VIEW own_2 AS SELECT id FROM own"),
    ),
    "function of a view's rows": (
        f"{_READ_BY_VIEW}function own_f(own) depends on type own.",
        (
            _VIEW,
            "CREATE FUNCTION own_f(own) RETURNS text LANGUAGE sql AS 'SELECT $1.id'",
        ),
    ),
    "table of a view's rows": (
        f"{_READ_BY_VIEW}column o of table notes depends on type own[].",
        (_VIEW, "CREATE TABLE notes (o own[])"),
    ),
    "function whose body reads a timestamp": (
        f"{_USED}function or procedure: function own() {_READS}",
        (
            "CREATE FUNCTION own() RETURNS text BEGIN ATOMIC SELECT max(created_at) FROM sessions; END",
        ),
    ),
    "function whose body reads a view": (
        f"{_READ_BY_VIEW}function own_f() depends on view own.",
        (
            _VIEW,
            "CREATE FUNCTION own_f() RETURNS bigint BEGIN ATOMIC SELECT count(*) FROM own; END",
        ),
    ),
    "table of rows": (
        f'{_FAILS}cannot alter table "sessions" because column "notes.s" uses its row type.',
        ("CREATE TABLE notes (s sessions)",),
    ),
    "table of rows inside of types": (
        f'{_FAILS}cannot alter table "sessions" because column "notes.s" uses its row type.',
        (
            "CREATE DOMAIN several AS sessions[]",
            "CREATE TYPE pair AS (one several, two int)",
            "CREATE TABLE notes (s pair)",
        ),
    ),
    "generated column of a timestamp": (
        f'{_USED}generated column: Column "created_at" is used by generated column "own".',
        (
            "ALTER TABLE sessions ADD own text GENERATED ALWAYS AS (left(created_at, 10)) STORED",
        ),
    ),
    "publication of a timestamp": (
        f"{_USED}publication WHERE clause: publication of table sessions in publication own {_READS}",
        ("CREATE PUBLICATION own FOR TABLE sessions (id, created_at)",),
    ),
    "publication with a filter of a timestamp": (
        f"{_USED}publication WHERE clause: publication of table sessions in publication own {_READS}",
        ("CREATE PUBLICATION own FOR TABLE sessions WHERE (created_at > '2026')",),
    ),
    "index that takes a text": (
        f"{_FAILS}{_NO_FUNCTION} These read columns whose types change: index own. Rename or drop that",
        ("CREATE INDEX own ON sessions (substr(created_at, 1, 10))",),
    ),
    "index of a timestamp's operator class": (
        f'{_FAILS}operator class "text_pattern_ops" does not accept data type timestamp with time zone. These read '
        "columns whose types change: index own. Rename or drop that",
        ("CREATE INDEX own ON sessions (created_at text_pattern_ops)",),
    ),
    "index of a timestamp's collation": (
        f"{_FAILS}collations are not supported by type timestamp with time zone. These read columns whose types "
        "change: index own. Rename or drop that",
        ('CREATE INDEX own ON sessions (created_at COLLATE "C")',),
    ),
    "partial index that compares a text": (
        f"{_FAILS}operator does not exist: timestamp with time zone > text. These read columns whose types change: "
        "index own.",
        ("CREATE INDEX own ON sessions (status) WHERE created_at > '2026-01-01'",),
    ),
    "statistics that take a text": (
        f"{_FAILS}{_NO_FUNCTION} These read columns whose types change: statistics object own. Rename or drop that",
        ("CREATE STATISTICS own ON substr(created_at, 1, 10), status FROM sessions",),
    ),
    "policy that compares a text": (
        f"Policy 'own' on table 'sessions' {_NO_OPERATOR}",
        ("CREATE POLICY own ON sessions USING (created_at > '2026-01-01')",),
    ),
    "policy of another table that compares a text": (
        f"Policy 'own' on table 'notes' {_NO_OPERATOR}",
        (
            "CREATE TABLE notes (at text)",
            "CREATE POLICY own ON notes USING (EXISTS (SELECT FROM sessions WHERE created_at = at))",
        ),
    ),
    "trigger that compares a text": (
        f"Trigger 'own' on table 'sessions' {_NO_OPERATOR}",
        (
            FUNCTION,
            "CREATE TRIGGER own AFTER UPDATE ON sessions FOR EACH ROW WHEN (OLD.created_at < '2026')"
            " EXECUTE FUNCTION own_f()",
        ),
    ),
    "rule": (
        "Rule 'own' on table 'sessions' stands in the way of converting its columns. Drop it and run the command "
        "again.",
        ("CREATE RULE own AS ON INSERT TO sessions DO INSTEAD NOTHING",),
    ),
    "heir": (
        "Table 'heir' inherits from table 'sessions', so that its rows are also those of the other.",
        ("CREATE TABLE heir (x int) INHERITS (sessions)",),
    ),
    "parent": (
        "Table 'sessions' inherits from table 'parent', so that its rows are also those of the other.",
        (
            "CREATE TABLE parent (id text NOT NULL)",
            "ALTER TABLE sessions INHERIT parent",
        ),
    ),
    "typed table": (
        "Table 'api_keys' is made of the type kind, which fixes its columns. Run 'ALTER TABLE api_keys NOT OF'.",
        (
            "CREATE TYPE kind AS (id text, tenant_id text, key_hash text, label text, created_at text)",
            "ALTER TABLE api_keys OF kind",
        ),
    ),
    "unlogged": (
        "Table 'sessions' is unlogged: PostgreSQL empties it after a crash. Run 'ALTER TABLE sessions SET LOGGED'.",
        ("ALTER TABLE sessions SET UNLOGGED",),
    ),
    "row security": (
        "Table 'sessions' has row security, which hides rows and refuses inserts. Run 'ALTER TABLE sessions DISABLE "
        "ROW LEVEL SECURITY'; its policies stay.",
        ("ALTER TABLE sessions ENABLE ROW LEVEL SECURITY",),
    ),
    "unique index": (
        "Table 'sessions' has a unique index 'own', which could refuse what agentdb writes.",
        ("CREATE UNIQUE INDEX own ON sessions (agent_name, id)",),
    ),
    "index in the way": (
        f'{_FAILS}relation "idx_sessions_created" already exists. Rename or drop that',
        (
            "CREATE TABLE notes (x int)",
            "CREATE INDEX idx_sessions_created ON notes (x)",
        ),
    ),
    "event trigger that forbids": (
        "Table 'api_keys' cannot be converted: no. Rename",
        (
            "CREATE FUNCTION own_e() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no''; END'",
            "CREATE EVENT TRIGGER own ON ddl_command_start WHEN TAG IN ('ALTER TABLE') EXECUTE FUNCTION own_e()",
        ),
    ),
}

_QUERIES = {
    "relation": """
        SELECT c.oid::regclass::text, c.relkind::text, pg_get_userbyid(c.relowner), c.reloptions, c.relrowsecurity,
            obj_description(c.oid, 'pg_class'), c.relreplident::text, c.relpersistence::text,
            CASE c.relkind WHEN 'v' THEN pg_get_viewdef(c.oid) WHEN 'm' THEN pg_get_viewdef(c.oid) END,
            ARRAY(SELECT concat_ws(' ', pg_get_userbyid(grantor), CASE WHEN grantee = 0 THEN 'PUBLIC'
                    ELSE pg_get_userbyid(grantee) END, privilege_type, is_grantable)
                FROM aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) ORDER BY 1)
        FROM pg_class c WHERE c.relkind IN ('r', 'v', 'm', 'S', 'p')""",
    "column": """
        SELECT attrelid::regclass || '.' || attname, CASE WHEN attname !~ '_at$|latest|^at$|At %s' THEN
            format_type(atttypid, atttypmod) END, attnotnull,
            CASE WHEN attname !~ '_at$' THEN pg_get_expr(adbin, adrelid) END, attgenerated::text, attidentity::text,
            attstattarget, attoptions, col_description(attrelid, attnum),
            CASE WHEN attname !~ '_at$|latest|^at$|At %s' THEN attcollation::regcollation::text END,
            ARRAY(SELECT concat_ws(' ', pg_get_userbyid(grantor), CASE WHEN grantee = 0 THEN 'PUBLIC'
                ELSE pg_get_userbyid(grantee) END, privilege_type, is_grantable) FROM aclexplode(attacl) ORDER BY 1)
        FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid
        LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE attnum > 0 AND NOT attisdropped AND c.relkind IN ('r', 'v', 'm', 'p')""",
    "trigger": """
        SELECT tgname || ' on ' || tgrelid::regclass, pg_get_triggerdef(oid), tgenabled::text,
            obj_description(oid, 'pg_trigger')
        FROM pg_trigger c WHERE NOT tgisinternal""",
    "rule": """
        SELECT rulename || ' on ' || ev_class::regclass, pg_get_ruledef(oid), ev_enabled::text,
            obj_description(oid, 'pg_rewrite')
        FROM pg_rewrite c WHERE rulename <> '_RETURN'""",
    "policy": """
        SELECT polname || ' on ' || polrelid::regclass, polcmd::text, polpermissive,
            ARRAY(SELECT coalesce(rolname, 'PUBLIC') FROM unnest(polroles) r LEFT JOIN pg_roles ON oid = r ORDER BY 1),
            pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid), obj_description(oid, 'pg_policy')
        FROM pg_policy c""",
    "publication": """
        SELECT pubname || ' of ' || prrelid::regclass, to_jsonb(r)::text
        FROM pg_publication_rel r JOIN pg_publication p ON p.oid = prpubid""",
    "publication itself": """
        SELECT pubname, pubowner::regrole::text, puballtables, pubinsert, pubupdate FROM pg_publication""",
    "statistics": """
        SELECT stxname, pg_get_statisticsobjdef(oid), stxowner::regrole::text, obj_description(oid, 'pg_statistic_ext')
        FROM pg_statistic_ext""",
    "index": """
        SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid), indisclustered, indisreplident, indisvalid,
            obj_description(indexrelid, 'pg_class')
        FROM pg_index JOIN pg_class c ON c.oid = indexrelid""",
    "constraint": """
        SELECT conname || ' on ' || conrelid::regclass, pg_get_constraintdef(oid), obj_description(oid, 'pg_constraint')
        FROM pg_constraint c WHERE conrelid <> 0 AND contype <> 'n'""",
    "function": """
        SELECT oid::regprocedure::text, pg_get_functiondef(oid), proowner::regrole::text,
            ARRAY(SELECT a::text FROM unnest(proacl) a ORDER BY 1)
        FROM pg_proc c WHERE pronamespace = 'public'::regnamespace""",
    "default privileges": "SELECT oid::text, defaclacl::text FROM pg_default_acl",
    "event trigger": "SELECT evtname, evtenabled::text FROM pg_event_trigger",
}


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def make_roles(url: str) -> None:
    for role in ROLES:
        execute(
            url,
            # Several workers of a run may share the server, and all want it.
            f"DO $$ BEGIN IF to_regrole('{role}') IS NULL THEN CREATE ROLE {role}; END IF; "
            "EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$",
        )


def described(url: str) -> Description:
    """Every object by its kind and name; casts and parentheses, which a change of type moves, are left out."""
    found: Description = {}
    with psycopg.connect(url, options="-c search_path=public") as connection:
        for kind, query in _QUERIES.items():
            if "pg_class c" in query or "FROM pg_proc c" in query:
                query += (
                    (" AND" if "WHERE" in query else " WHERE")
                    + (
                        " c.relnamespace"
                        if "pg_class c" in query
                        else " c.pronamespace"
                    )
                    + "::regnamespace::text NOT IN ('pg_catalog', 'information_schema', 'pg_toast')"
                )
            for name, *facts in connection.execute(query.encode()).fetchall():
                found[f"{kind} {name}"] = tuple(_plain(fact) for fact in facts)
    return found


def _plain(fact: object) -> object:
    if isinstance(fact, list):
        return tuple(fact)
    if not isinstance(fact, str):
        return fact
    return re.sub(
        r"[()\s]",
        "",
        re.sub(r"::(text|timestamp with time zone)|\+00(?=')| 00:00:00", "", fact),
    )


def operators_own(description: Description) -> Description:
    """Without what the adoption is to change: keys, indexes and columns that the old server made."""
    ours = (
        r"(index|constraint) (idx_|agents|sessions|sandboxes|api_keys)|"
        r"(relation|index|constraint|column) (django_migrations|\w+ on django_migrations)"
    )
    return {
        name: facts for name, facts in description.items() if not re.match(ours, name)
    }
