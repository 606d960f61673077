"""Reading the SQL that SQLite and PostgreSQL keep about tables and indexes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from agentdb.schema.sqltext import (
    canonical,
    column_type,
    parse_create_index,
    parse_create_table,
    tokenize,
    without_checks,
)
from agentdb.schema.tables import Check, Column, ForeignKey, Key


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("'default'", "'default'::text"),
        ("'default'", "('default'::character varying)"),
        ("'a'", "'a'::character varying(100)"),
        ("'x'", "'x'::pg_catalog.text"),
        ("a = '{}' AND b", "a = '{}'::text[] AND b"),
        ("a > 1 AND b", "a > 1::numeric(10, 2) AND b"),
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

    assert (folded.columns[0], folded.condition) == ("status", "status <> 'A'")
    assert (exact.columns[0], exact.condition) == (
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
        'create index if not exists i on sessions(runner_id asc,created_at desc,id collate "C" desc)'
        "where runner_id is not null",
    ],
)
def test_an_index_reads_the_same_from_django_and_from_each_engine(sql):
    index = parse_create_index(sql)

    assert (index.name, index.kind, index.condition) == (
        "i",
        "index",
        "runner_id IS NOT NULL",
    )
    assert index.columns == ("runner_id", "created_at DESC", 'id COLLATE "C" DESC')


def test_everything_postgresql_says_about_an_index_is_read():
    index = parse_create_index(
        'CREATE UNIQUE INDEX "My Index" ON ONLY s."T" USING gist (lower(name) COLLATE "de_DE" text_pattern_ops DESC '
        "NULLS LAST, ((a || b)), c varchar_ops) INCLUDE (d, e) NULLS NOT DISTINCT WITH (fillfactor='70') "
        "WHERE (a > 0)"
    )

    assert (index.name, index.kind, index.method) == (
        "My Index",
        "unique index",
        "gist",
    )
    assert index.columns == (
        'lower(name) COLLATE "de_DE" text_pattern_ops desc nulls last',
        "(a || b)",
        "c varchar_ops",
    )
    assert (index.include, index.options, index.condition) == (
        ("d", "e"),
        ("nulls not distinct",),
        "a > 0",
    )


def test_everything_that_a_create_table_statement_says_is_read():
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

    assert table.columns == [
        Column("id", "text", True, None),
        Column("a b", "text", False, "'UNIQUE'", collation="NOCASE"),
        Column("c", "integer", False, "- 1"),
        Column("d", "text", True, None, generated="a || 'x'"),
        Column("e", "", False, "f('check', 'unique')"),
    ]
    assert table.definitions["e"] == "e DEFAULT (f('check', 'unique')) NOT NULL"
    assert table.constraints[0] == 'CONSTRAINT two UNIQUE (c, "d") ON CONFLICT REPLACE'
    assert table.options == ("strict", "without rowid")
    assert table.keys == [
        Key("pk", ("id",), "primary key", options=("on conflict fail",)),
        Key("", ("a b",), "unique constraint"),
        Key("du", ("d",), "unique constraint"),
        Key("two", ("c", "d"), "unique constraint", options=("on conflict replace",)),
    ]
    assert table.checks == [Check("", "c <> 'x)'"), Check("k", "c > 0")]
    assert table.foreign_keys == [
        ForeignKey("", ("c",), "o", ("x",)),
        ForeignKey("", ("c", "d"), "o2", ()),
    ]


def test_what_follows_a_foreign_key_does_not_change_its_column():
    table = parse_create_table(
        "CREATE TABLE t (a TEXT CONSTRAINT nn NOT NULL ON CONFLICT IGNORE "
        "CONSTRAINT fk REFERENCES o (x) ON DELETE SET DEFAULT NOT DEFERRABLE UNIQUE DEFAULT ('b') COLLATE NOCASE)"
    )

    assert table.columns == [
        Column("a", "text", False, "'b'", collation="NOCASE", conflict="ignore")
    ]
    assert table.foreign_keys == [ForeignKey("fk", ("a",), "o", ("x",))]
    assert table.keys == [Key("", ("a",), "unique constraint")]


def test_a_key_that_ignores_case_is_another_one():
    table = parse_create_table(
        "CREATE TABLE t (a TEXT, b TEXT, PRIMARY KEY (a COLLATE NOCASE DESC), UNIQUE (a, b COLLATE binary))"
    )

    assert table.keys == [
        Key("", ("a",), "primary key", options=("collate nocase",)),
        Key("", ("a", "b"), "unique constraint"),
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
        ("'1':::STRING::text", "'1'"),
        ('now()::"text"', "now()::text"),
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
    ("written", "column"),
    [
        ("a", "a"),
        ("a DESC", "a DESC"),
        ("a ASC", "a"),
        ("a NULLS FIRST", "a nulls first"),
        ("a DESC NULLS LAST", "a desc nulls last"),
        ("a COLLATE NOCASE", "a COLLATE nocase"),
        ('a COLLATE "Binary"', 'a COLLATE "Binary"'),
        ("a COLLATE BINARY DESC", "a DESC"),
        ('a COLLATE "C" text_ops DESC', 'a COLLATE "C" text_ops DESC'),
        ("(lower(a))", "lower(a)"),
        ("lower(a) text_ops", "lower(a) text_ops"),
        ("a text_ops", "a text_ops"),
        ("((b || c))", "(b || c)"),
        ("(b IS NULL) DESC", "(b IS NULL) DESC"),
        ("((b + c) * d)", "((b + c) * d)"),
        ('(("A" COLLATE "C")) DESC', '"A" COLLATE "C" DESC'),
        ("desc", "desc"),
    ],
)
def test_each_column_of_an_index(written: str, column: str):
    alone = parse_create_index(f"CREATE INDEX i ON t ({written})")
    between = parse_create_index(f"CREATE UNIQUE INDEX i ON t (x, {written}, y DESC)")

    assert alone == Key("i", (column,))
    assert between == Key("i", ("x", column, "y DESC"), "unique index")


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

    assert parse_create_index(sql).columns == ('"A" DESC',)
    folded = parse_create_index(sql, fold_names=True)
    assert folded.columns == ("a DESC",)
    assert (parse_create_index(sql).condition, folded.condition) == ('"B" > 0', "b > 0")


def test_constraints_have_folded_names_and_no_usual_action():
    table = parse_create_table(
        'CREATE TABLE t (A CHECK ("A" > 0), b NOT NULL ON CONFLICT ABORT, c NOT NULL ON CONFLICT FAIL NOT NULL, '
        "d UNIQUE ON CONFLICT ABORT, PRIMARY KEY (A ASC, B), CONSTRAINT q FOREIGN KEY (A) REFERENCES O (X)) STRICT"
    )

    assert table.keys == [
        Key("", ("d",), "unique constraint"),
        Key("", ("a", "b"), "primary key"),
    ]
    assert table.checks == [Check("", "a > 0")]
    assert table.foreign_keys == [ForeignKey("q", ("a",), "o", ("x",))]
    conflicts = {column.name: column.conflict for column in table.columns}
    assert conflicts == {"a": None, "b": None, "c": "fail", "d": None}
    assert table.options == ("strict",)


def test_a_table_made_from_a_query_has_no_definitions():
    table = parse_create_table("CREATE TABLE t AS SELECT 1")

    assert (table.columns, table.keys, table.options) == ([], [], ())


def test_a_name_may_have_any_letter_beyond_ascii():
    names = ["größe", "😀", "😀😃", "x\u00a0y", "\u0663", "\u2003"]

    parsed = parse_create_table(f"CREATE TABLE t ({' TEXT, '.join(names)} TEXT)")

    assert [(each.name, each.type) for each in parsed.columns] == [
        (name, "text") for name in names
    ]


def test_an_empty_definition_is_skipped():
    table = parse_create_table("CREATE TABLE t (a,,b,)")

    assert [column.name for column in table.columns] == ["a", "b"]
