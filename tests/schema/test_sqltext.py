"""Reading the SQL that SQLite and PostgreSQL keep about tables and indexes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from agentdb.schema.sqltext import (
    canonical,
    column_type,
    normal_index,
    parse_create_index,
    parse_create_table,
    tokenize,
    without_checks,
)
from agentdb.schema.tables import Check, ForeignKey, IndexPart, PrimaryKey, Unique


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("'default'", "'default'::text"),
        ("'default'", "('default'::character varying)"),
        ("'a'", "'a'::character varying(100)"),
        ("'x'", "'x'::pg_catalog.text"),
        ("a = '{}' AND b", "a = '{}'::text[] AND b"),
        ("a > 1 AND b", "a > 1::numeric(10, 2) AND b"),
        ("NULL", "NULL::timestamp with time zone"),
        ("1", "1:::INT8"),
        ("now()", "NOW() ::: TIMESTAMPTZ"),
        ("now()::text", "(now())::text"),
        ("now()::text", "( NOW ( ) )::text"),
        ('"runner_id" IS NOT NULL', "(runner_id is not null)"),
        ("status = 'active'", "((status = 'active'::text))"),
        ("datetime('now')", "DateTime( 'now' ) -- a comment"),
        ("datetime('now')", "/* UTC */ datetime('now')"),
        ("[id]", "`id`"),
        ("replace(f('%Y', 'now'), '.0', '')", "REPLACE( f('%Y','now') , '.0','')"),
    ],
)
def test_two_spellings_of_one_expression_are_equal(one, other):
    assert canonical(one) == canonical(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("'default'", "'Default'"),
        ("'a  b'", "'a b'"),
        ("' ::text'", "'::text'"),
        ("now()", "now()::text"),
        ("f(a, b)", "f(b, a)"),
        ("f(a)", "f((a, b))"),
        ("(a OR b) AND c", "a OR (b AND c)"),
        ('"Status"', "status"),
        ("a IN (1)", "a IN (1, 2)"),
        ("1", "'1'"),
    ],
)
def test_two_different_expressions_are_not_equal(one, other):
    assert canonical(one) != canonical(other)


def test_a_canonical_expression_reads_like_sql():
    assert (
        canonical('("runner_id" is not null and ("x">(1)))')
        == "runner_id IS NOT NULL AND (x > 1)"
    )
    assert canonical("(now())::text") == "now()::text"
    assert canonical("a in ('x','y')") == "a IN ('x', 'y')"


def test_names_are_folded_only_where_asked():
    sql = """CREATE INDEX "I" ON "t" ("Status") WHERE "Status" <> 'A'"""

    folded, exact = parse_create_index(sql, fold_names=True), parse_create_index(sql)

    assert (folded.parts[0].expression, folded.condition) == ("status", "status <> 'A'")
    assert (exact.parts[0].expression, exact.condition) == (
        '"Status"',
        "\"Status\" <> 'A'",
    )


@pytest.mark.parametrize(
    "broken",
    [
        "'never closed",
        '"never closed',
        "(((",
        ")",
        "/* never closed",
        "",
        "\x00§",
        "a,",
    ],
)
def test_text_that_is_no_sql_is_read_without_an_error(broken):
    canonical(broken)
    parse_create_table(f"CREATE TABLE t ({broken}")


def test_tokens_know_where_they_stand_and_what_they_name():
    sql = 'SELECT "a ""b""", `c``d`, [e f], \'it\'\'s\' -- end'

    tokens = tokenize(sql)

    assert [sql[token.start : token.end] for token in tokens] == [
        token.text for token in tokens
    ]
    assert [
        token.identifier for token in tokens if token.kind in ("name", "string")
    ] == ['a "b"', "c`d", "e f", "it's"]


@pytest.mark.parametrize(
    "sql",
    [
        'CREATE INDEX "i" ON "sessions" ("runner_id", "created_at" DESC, ("id" COLLATE "C") DESC) '
        'WHERE "runner_id" IS NOT NULL',
        'CREATE INDEX i ON public.sessions USING btree (runner_id, created_at DESC, id COLLATE "C" DESC) '
        "WHERE (runner_id IS NOT NULL)",
        'CREATE INDEX i ON defaultdb.public.sessions USING btree (runner_id ASC, created_at DESC, id COLLATE "C" DESC)'
        " WHERE runner_id IS NOT NULL",
        'create index if not exists i on sessions(runner_id asc,created_at desc,id collate pg_catalog."C" desc)'
        "where runner_id is not null",
    ],
)
def test_an_index_reads_the_same_from_django_and_from_each_engine(sql):
    index = parse_create_index(sql)

    assert (index.name, index.unique, index.condition) == (
        "i",
        False,
        "runner_id IS NOT NULL",
    )
    assert index.parts == (
        IndexPart("runner_id"),
        IndexPart("created_at", descending=True),
        IndexPart("id", descending=True, collation="C"),
    )


def test_everything_postgresql_says_about_an_index_is_read():
    index = parse_create_index(
        'CREATE UNIQUE INDEX "My Index" ON ONLY s."T" USING gist (lower(name) COLLATE "de_DE" text_pattern_ops DESC '
        "NULLS LAST, ((a || b)), c varchar_ops) INCLUDE (d, e) NULLS NOT DISTINCT WITH (fillfactor='70') "
        "WHERE (a > 0)"
    )

    assert (index.name, index.unique, index.method) == ("My Index", True, "gist")
    assert index.parts == (
        IndexPart("lower(name)", True, "de_DE", "last", "text_pattern_ops"),
        IndexPart("a || b"),
        IndexPart("c", operator_class="varchar_ops"),
    )
    assert (index.include, index.options, index.condition) == (
        ("d", "e"),
        ("nulls not distinct",),
        "a > 0",
    )


def test_everything_a_create_table_statement_says_beyond_the_pragmas_is_read():
    sql = """CREATE TABLE "t, (u)" (
        id TEXT CONSTRAINT pk PRIMARY KEY ON CONFLICT FAIL, -- UNIQUE, not really
        [a b] TEXT DEFAULT 'UNIQUE' COLLATE NOCASE NOT NULL UNIQUE,
        c INTEGER NOT NULL DEFAULT -1 CHECK (c <> 'x)' )
            REFERENCES o (x) ON DELETE SET NULL DEFERRABLE INITIALLY DEFERRED,
        d TEXT GENERATED ALWAYS AS (a || 'x') STORED CONSTRAINT du UNIQUE,
        e DEFAULT (f('check', 'unique')) NOT NULL,
        CONSTRAINT two UNIQUE (c, "d") ON CONFLICT REPLACE,
        FOREIGN KEY (c, d) REFERENCES o2 ON UPDATE NO ACTION NOT DEFERRABLE
        CONSTRAINT k CHECK (c > 0)
    ) WITHOUT ROWID, STRICT"""

    table = parse_create_table(sql)

    assert [column.name for column in table.columns] == ["id", "a b", "c", "d", "e"]
    assert [column.collation for column in table.columns] == [
        None,
        "NOCASE",
        None,
        None,
        None,
    ]
    assert [column.generated for column in table.columns] == [
        None,
        None,
        None,
        "a || 'x'",
        None,
    ]
    assert (
        sql[table.columns[4].start : table.columns[4].end]
        == "e DEFAULT (f('check', 'unique')) NOT NULL"
    )
    assert table.options == ("strict", "without rowid")
    assert table.constraints == [
        PrimaryKey("pk", ("id",), ("on conflict fail",)),
        Unique(None, ("a b",)),
        Check(None, "c <> 'x)'"),
        ForeignKey(None, ("c",), "o", ("x",)),
        Unique("du", ("d",)),
        Unique("two", ("c", "d"), ("on conflict replace",)),
        ForeignKey(None, ("c", "d"), "o2", ()),
        Check("k", "c > 0"),
    ]


def test_what_follows_a_foreign_key_does_not_change_its_column():
    table = parse_create_table(
        "CREATE TABLE t (a TEXT CONSTRAINT nn NOT NULL ON CONFLICT IGNORE "
        "CONSTRAINT fk REFERENCES o (x) ON DELETE SET DEFAULT NOT DEFERRABLE UNIQUE DEFAULT ('b') COLLATE NOCASE)"
    )

    (column,) = table.columns
    assert (column.conflict, column.collation) == ("ignore", "NOCASE")
    assert table.constraints == [
        ForeignKey("fk", ("a",), "o", ("x",)),
        Unique(None, ("a",)),
    ]


def test_a_key_that_ignores_case_is_another_one():
    table = parse_create_table(
        "CREATE TABLE t (a TEXT, b TEXT, PRIMARY KEY (a COLLATE NOCASE DESC), UNIQUE (a, b COLLATE binary))"
    )

    assert table.constraints == [
        PrimaryKey(None, ("a",), ("collate nocase",)),
        Unique(None, ("a", "b")),
    ]


@pytest.mark.parametrize(
    ("definition", "kept"),
    [
        (
            "note TEXT -- of the operator\n  NOT NULL  DEFAULT 'a  CHECK (name)'",
            "note TEXT -- of the operator\n  NOT NULL  DEFAULT 'a  CHECK (name)'",
        ),
        (
            "note TEXT -- its name is\n CHECK (name > 'x') DEFAULT ('a  b' /* c */ || 1)",
            "note TEXT DEFAULT ('a  b' /* c */ || 1)",
        ),
        (
            "note TEXT CONSTRAINT known CHECK (name > '  ') CHECK (note > '  ')",
            "note TEXT CHECK (note > '  ')",
        ),
        (
            "note TEXT REFERENCES notes CHECK (note <> name) DEFERRABLE INITIALLY DEFERRED",
            "note TEXT REFERENCES notes DEFERRABLE INITIALLY DEFERRED",
        ),
        ("CONSTRAINT known CHECK (name > note) ON CONFLICT ABORT", ""),
    ],
)
def test_a_definition_loses_the_checks_that_name_a_column_and_nothing_else(
    definition, kept
):
    assert without_checks(definition, {"name"}) == kept


@pytest.mark.parametrize(
    ("sql", "form"),
    [
        ("x::STRING", "x::text"),
        ("x::INT8", "x::bigint"),
        ("x::TIMESTAMPTZ", "x::timestamp with time zone"),
        ("'x':::STRING", "'x'"),
        ("(a)", "a"),
        ("((a))", "a"),
        ("(a, b)", "(a, b)"),
        ("a IN ((1))", "a IN (1)"),
        ("a IN (b)", "a IN (b)"),
        ("NOT (a)", "NOT a"),
        ("(a) AND (b)", "a AND b"),
        ("(a OR b) AND c", "(a OR b) AND c"),
        ("f()", "f()"),
        ("f((a))", "f(a)"),
        ('"f"(a)', "f(a)"),
        ("a::text::varchar(20)", "a::text::varchar(20)"),
        ("1::bigint", "1"),
        ("'x'::s.t", "'x'"),
        ("'x'::varchar(20) = b", "'x' = b"),
        ("a::timestamp (3) with time zone AND b", "a::timestamp (3) with time zone AND b"),
        ("'1'::timestamp with time zone AND b", "'1' AND b"),
        ("'1'::double precision", "'1'"),
        ("'{}'::text[] = a", "'{}' = a"),
        ("a->>'b'", "a ->> 'b'"),
        ("0x1F", "0x1F"),
        ("1e5+.5", "1e5 + .5"),
        ("a<>1", "a <> 1"),
        ("CASE WHEN a THEN 1 ELSE 2 END", "CASE WHEN a THEN 1 ELSE 2 END"),
        ('a collate "C"', 'a COLLATE "C"'),
        ("(a + b)::text", "(a + b)::text"),
        ('"order"', "order"),
        ('"A b"', '"A b"'),
        ('"A ""b"""', '"A ""b"""'),
    ],
)  # fmt: skip
def test_each_expression_has_one_form(sql: str, form: str):
    assert canonical(sql) == form
    assert canonical(form) == form


@pytest.mark.parametrize(
    ("key", "part"),
    [
        ("a", IndexPart("a")),
        ("a DESC", IndexPart("a", descending=True)),
        ("a ASC", IndexPart("a")),
        ("a NULLS FIRST", IndexPart("a", nulls="first")),
        ("a DESC NULLS LAST", IndexPart("a", descending=True, nulls="last")),
        ("a COLLATE NOCASE", IndexPart("a", collation="NOCASE")),
        (
            'a COLLATE pg_catalog."C" text_ops DESC',
            IndexPart("a", True, "C", None, "text_ops"),
        ),
        ("(lower(a))", IndexPart("lower(a)")),
        ("lower(a) text_ops", IndexPart("lower(a)", operator_class="text_ops")),
        ("a text_ops", IndexPart("a", operator_class="text_ops")),
        ("(b || c)", IndexPart("b || c")),
        ('(("A" COLLATE "C")) DESC', IndexPart('"A"', True, "C")),
        ("desc", IndexPart("desc")),
    ],
)
def test_each_part_of_a_key_of_an_index(key: str, part: IndexPart):
    alone = parse_create_index(f"CREATE INDEX i ON t ({key})")
    between = parse_create_index(f"CREATE UNIQUE INDEX i ON t (x, {key}, y DESC)")

    assert alone.parts == (part,)
    assert (alone.unique, alone.method, alone.include) == (False, "btree", ())
    assert (alone.options, alone.condition) == ((), None)
    assert between.parts == (IndexPart("x"), part, IndexPart("y", descending=True))
    assert between.unique


@pytest.mark.parametrize(
    ("vendor", "key", "part"),
    [
        ("sqlite", "a COLLATE binary", IndexPart("a")),
        ("sqlite", "a COLLATE nocase", IndexPart("a", collation="NOCASE")),
        ("sqlite", "a NULLS FIRST", IndexPart("a")),
        ("sqlite", "a NULLS LAST", IndexPart("a", nulls="last")),
        ("sqlite", "a DESC NULLS LAST", IndexPart("a", True)),
        ("sqlite", "a DESC NULLS FIRST", IndexPart("a", True, nulls="first")),
        ("postgresql", 'a COLLATE "default"', IndexPart("a")),
        ("postgresql", 'a COLLATE "c"', IndexPart("a", collation="c")),
        ("postgresql", "a NULLS LAST", IndexPart("a")),
        ("postgresql", "a NULLS FIRST", IndexPart("a", nulls="first")),
        ("postgresql", "a DESC NULLS FIRST", IndexPart("a", True)),
        ("postgresql", "a DESC NULLS LAST", IndexPart("a", True, nulls="last")),
    ],
)
def test_what_is_so_anyway_is_left_out_of_an_index(
    vendor: str, key: str, part: IndexPart
):
    connection: Any = SimpleNamespace(vendor=vendor)
    index = normal_index(
        connection, parse_create_index(f'CREATE INDEX "I" ON t ({key})')
    )

    assert index.parts == (part,)
    assert index.name == ("i" if vendor == "sqlite" else "I")


@pytest.mark.parametrize(
    ("vendor", "declared", "name"),
    [
        ("sqlite", "TEXT", "text"),
        ("postgresql", "timestamp  WITH time zone", "timestamp with time zone"),
        ("postgresql", "integer", "integer"),
        ("cockroachdb", "INTEGER", "bigint"),
        ("cockroachdb", "string", "text"),
        ("cockroachdb", "timestamptz", "timestamp with time zone"),
    ],
)
def test_a_type_has_one_name_on_each_engine(vendor: str, declared: str, name: str):
    connection: Any = SimpleNamespace(vendor=vendor)

    assert column_type(connection, declared) == name


def test_names_are_folded_in_an_index_of_sqlite():
    sql = 'CREATE INDEX i ON t ("A" DESC) WHERE "B" > 0'

    assert parse_create_index(sql).parts == (IndexPart('"A"', descending=True),)
    folded = parse_create_index(sql, fold_names=True)
    assert folded.parts == (IndexPart("a", descending=True),)
    assert (parse_create_index(sql).condition, folded.condition) == ('"B" > 0', "b > 0")


def test_constraints_have_folded_names_and_no_usual_action():
    table = parse_create_table(
        'CREATE TABLE t (A CHECK ("A" > 0), b NOT NULL ON CONFLICT ABORT, c NOT NULL ON CONFLICT FAIL NOT NULL, '
        "d UNIQUE ON CONFLICT ABORT, PRIMARY KEY (A ASC, B), CONSTRAINT q FOREIGN KEY (A) REFERENCES O (X)) STRICT"
    )

    assert table.constraints == [
        Check(None, "a > 0"),
        Unique(None, ("d",)),
        PrimaryKey(None, ("a", "b")),
        ForeignKey("q", ("a",), "o", ("x",)),
    ]
    assert [column.name for column in table.columns] == ["A", "b", "c", "d"]
    assert [column.conflict for column in table.columns] == [None, None, "fail", None]
    assert table.options == ("strict",)


def test_a_table_made_from_a_query_has_no_definitions():
    table = parse_create_table("CREATE TABLE t AS SELECT 1")

    assert (table.columns, table.constraints, table.options) == ([], [], ())


def test_an_empty_definition_is_skipped():
    table = parse_create_table("CREATE TABLE t (a,,b,)")

    assert [column.name for column in table.columns] == ["a", "b"]
