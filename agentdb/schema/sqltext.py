"""Parses the SQL in which databases store their schema, and normalises what engines and Django spell differently."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from string import ascii_lowercase, ascii_uppercase
from typing import Any, Literal

from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.schema.queries import quote_name
from agentdb.schema.tables import Check, Column, ForeignKey, Key, KeyKind

# Each letter beyond ASCII may stand in a name, also one that Python takes for a space, a digit or a symbol.
_WORD = r"[a-z_\x80-\U0010ffff][\w$\x80-\U0010ffff]*"
# s.t, varchar(20), numeric (10, 2), timestamp (3) with time zone, text[]
_TYPE = rf"""
    (?:{_WORD}\.)?(?:"[^"]*"|{_WORD})
    (?:\s+(?:varying|precision)\b)?
    (?:\s*\([\d\s,]*\))?
    (?:\s+with(?:out)?\s+time\s+zone\b)?
    (?:\[\])*
"""
# Servers write the type behind a literal: 'x'::text is what became of DEFAULT 'x'. So a literal's casts belong to it; a
# cast of anything else may change the value. CockroachDB annotates every constant with ':::' and its type.
_TOKEN = re.compile(
    rf"""
      (?P<space>\s+|--[^\n]*|/\*.*?(?:\*/|$)|:::\s*{_TYPE})
    | (?:
        (?P<string>[ex]?'(?:[^']|'')*'|\$\$.*?\$\$)
      | (?P<number>0x[0-9a-f]+|(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)
      ) (?:\s*:::?\s*{_TYPE})*
    | (?P<name>"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\])
    | (?P<cast>::\s*{_TYPE})
    | (?P<word>{_WORD})
    | (?P<symbol>\|\||->>|->|<>|<=|>=|==|!=|<<|>>|.)
    """,
    re.VERBOSE | re.DOTALL | re.IGNORECASE | re.ASCII,
)
_PLAIN_NAME = re.compile(r"[a-z_][a-z0-9_]*\Z")
_WORDS_OF_OPERATORS = """
    AND AS BETWEEN CASE COLLATE ELSE END ESCAPE GLOB IN IS ISNULL LIKE NOT NOTNULL NULL OR
    THEN WHEN
"""
_KEYWORDS = frozenset(_WORDS_OF_OPERATORS.split())
# CockroachDB's names of types, and PostgreSQL's.
COCKROACH_TYPES = {
    "string": "text",
    "int8": "bigint",
    "timestamptz": "timestamp with time zone",
}


@dataclass(frozen=True)
class Token:
    """A piece of SQL: a word, a literal, ``::`` with its type, or a parenthesis with all that is in it."""

    kind: Literal["string", "name", "cast", "number", "word", "symbol", "group"]
    text: str  # as written; '' for a group
    start: int
    end: int
    items: Sequence[Sequence[Token]] = ()  # of a group: what its commas separate

    @property
    def word(self) -> str:
        """The token as a keyword, in upper case; '' for a quoted name or a literal."""
        return self.text.upper() if self.kind == "word" else ""

    @property
    def identifier(self) -> str:
        """The name, without its quotes."""
        if self.kind not in ("name", "string"):
            return self.text
        quote = self.text[-1]
        return self.text[1:-1].replace(quote * 2, quote)


def tokenize(sql: str) -> list[Token]:
    """Split ``sql`` into tokens, without white space and comments, each parenthesis on its own.

    Never fails: an unknown character is a symbol.
    """
    tokens = []
    for match in _TOKEN.finditer(sql):
        kind: Any = match.lastgroup
        if kind != "space":
            tokens.append(Token(kind, match[kind], match.start(), match.end()))
    return tokens


# What stands before the first token: nothing that the first one could belong to.
[_START] = tokenize(";")


def _items(sql: str, *, fold_names: bool = False) -> Sequence[Sequence[Token]]:
    """Split ``sql`` at the commas outside of parentheses; each parenthesis is a single token."""
    tokens = tokenize(sql)
    if fold_names:
        tokens = [
            replace(token, text=folded(token.text))
            if token.kind in ("name", "word")
            else token
            for token in tokens
        ]
    return _group(iter(tokens), 0).items


def _group(tokens: Iterator[Token], start: int) -> Token:
    """Take tokens up to the one that closes the parenthesis, or all if none does."""
    items: list[list[Token]] = [[]]
    end = start
    for token in tokens:
        if token.text == "(":
            token = _group(tokens, token.start)
        end = token.end
        if token.text == ")":
            break
        if token.text == ",":
            items.append([])
        else:
            items[-1].append(token)
    return Token("group", "", start, end, [item for item in items if item])


def names_in(sql: str) -> frozenset[str]:
    """Return the lower-case words and quoted names of an expression, to which it may refer."""
    return frozenset(
        token.identifier.lower()
        for token in tokenize(sql)
        if token.kind in ("word", "name")
    )


def quoted(name: str) -> str:
    """Return ``name`` as a canonical expression shows it: without quotes if possible."""
    return name if _PLAIN_NAME.match(name) else quote_name(name)


# Not str.lower(), which would also fold letters that SQLite takes for different ones.
_LOWER = str.maketrans(ascii_uppercase, ascii_lowercase)


def folded(name: str) -> str:
    """Return the name in lower case, ASCII letters only, as SQLite compares names."""
    return name.translate(_LOWER)


def canonical(sql: str | Sequence[Token]) -> str:
    """Return the canonical form of an expression, so that two spellings of it are equal.

    Keywords become upper case, other words lower case; unnecessary quotes, parentheses and casts of literals go.
    """
    items = _items(sql) if isinstance(sql, str) else [sql]
    return ", ".join(map(_joined, items))


def _joined(tokens: Sequence[Token]) -> str:
    return " ".join(_terms(tokens))


def _terms(tokens: Sequence[Token]) -> list[str]:
    """Render the tokens of one level; a call, a cast and a qualified name are one term: 'f ( x )' is 'f(x)'."""
    terms: list[str] = []
    before = _START
    for token in tokens:
        text = _spelt(token)
        if token.kind == "group":
            is_list = before.word == "IN" or _is_called(before)
            text = _list(token) if is_list else _parenthesis(token, len(tokens) == 1)
        if terms and _is_glued(before, token):
            terms[-1] += text
        else:
            terms.append(text)
        before = token
    return terms


def _is_glued(before: Token, token: Token) -> bool:
    """Return whether the token belongs to the term before it."""
    if token.kind == "group":
        return _is_called(before)
    return token.kind == "cast" or "." in (before.text, token.text)


def _is_called(token: Token) -> bool:
    return token.kind in ("word", "name") and token.word not in _KEYWORDS


def _list(group: Token) -> str:
    """Render a list of arguments or values, whose parentheses stay."""
    return f"({', '.join(map(_joined, group.items))})"


def _parenthesis(group: Token, is_whole: bool) -> str:
    """Render an expression in parentheses, without them around a single term or the whole expression."""
    if len(group.items) != 1:
        return _list(group)
    terms = _terms(group.items[0])
    text = " ".join(terms)
    return text if is_whole or len(terms) == 1 else f"({text})"


def _spelt(token: Token) -> str:
    """Return a token, other than a group, as every spelling of it is written in a canonical expression."""
    if token.kind == "name":
        return quoted(token.identifier)
    if token.kind == "cast":
        type_ = _plain_type(token.text.removeprefix("::"))
        return f"::{COCKROACH_TYPES.get(type_, type_)}"
    if token.kind == "word" and token.word not in _KEYWORDS:
        return token.text.lower()
    return token.word or token.text


def parse_create_index(sql: str, *, fold_names: bool = False) -> Key:
    """Read a CREATE INDEX statement of Django, of ``pg_get_indexdef`` or of ``sqlite_master``.

    ``fold_names`` is for SQLite, which ignores the case of quoted names too.
    """
    [statement] = _items(sql, fold_names=fold_names)
    # Bare keywords belong to the statement, because engines quote reserved names.
    before, keys, clauses = _around_group(statement)
    created, target = _parted(before, "ON")
    _, method = _parted(target, "USING")
    clauses, condition = _parted(clauses, "WHERE")
    _, include = _parted(clauses, "INCLUDE")
    words = [token.word for token in (*created, *clauses)]
    return Key(
        name=created[-1].identifier,
        columns=tuple(map(_key_column, keys)),
        kind="unique index" if "UNIQUE" in words else "index",
        condition=canonical(condition) if condition else None,
        include=tuple(map(canonical, include[0].items)) if include else (),
        method=method[0].identifier.lower() if method else "btree",
        options=("nulls not distinct",) if "DISTINCT" in words else (),
    )


def _parted(
    tokens: Sequence[Token], word: str
) -> tuple[Sequence[Token], Sequence[Token]]:
    """Return the tokens before and after the first ``word``; all and none without it."""
    for position, token in enumerate(tokens):
        if token.word == word:
            return tokens[:position], tokens[position + 1 :]
    return tokens, ()


def _around_group(
    tokens: Sequence[Token],
) -> tuple[Sequence[Token], Sequence[Sequence[Token]], Sequence[Token]]:
    """Return the tokens before the first parenthesis, its items, and the tokens after it."""
    for position, token in enumerate(tokens):
        if token.kind == "group":
            return tokens[:position], token.items, tokens[position + 1 :]
    return tokens, (), ()


def _key_column(tokens: Sequence[Token]) -> str:
    """Return ``EXPRESSION [COLLATE x] [operator class] [DESC] [NULLS FIRST | LAST]`` in canonical form."""
    direction = tokens[-1].word if len(tokens) > 1 else ""
    if direction in ("ASC", "DESC"):
        tokens = tokens[:-1]
    is_in_parentheses = False
    # Django writes '("id" COLLATE "C") DESC', and PostgreSQL shows 'id COLLATE "C" DESC'.
    while len(tokens) == 1 and len(tokens[0].items) == 1:
        tokens = tokens[0].items[0]
        is_in_parentheses = True
    terms = _terms(tokens)
    text = " ".join(terms)
    if is_in_parentheses and len(terms) > 1 and terms[-2] != "COLLATE":
        text = f"({text})"
    text = text.replace(" COLLATE binary", "")  # the usual one of SQLite
    return f"{text} DESC" if direction == "DESC" else text


@dataclass
class TableText:
    """A parsed CREATE TABLE statement."""

    columns: list[Column] = field(default_factory=list)
    # Of its columns and of the table, in the order of the statement.
    keys: list[Key] = field(default_factory=list)
    foreign_keys: list[ForeignKey] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    definitions: dict[str, str] = field(default_factory=dict)  # columns, as written
    constraints: list[str] = field(default_factory=list)  # the table's own, as written
    options: tuple[str, ...] = ()  # strict, without rowid


def without_checks(definition: str, names: Collection[str]) -> str:
    """Return a column's definition without the CHECK constraints that name one of ``names``."""
    clauses = [
        definition[clause[0].start : clause[-1].end]
        for item in _items(definition)
        for clause in _clauses(item)
    ]
    kept: list[str] = []
    for clause in clauses:
        is_check = tokenize(clause)[0].word == "CHECK"
        if not is_check or names_in(clause).isdisjoint(names):
            kept.append(clause)
        elif kept and tokenize(kept[-1])[0].word == "CONSTRAINT":
            kept.pop()  # the name of the check
    # As it was written if nothing goes: the operator's comments stand between the clauses.
    return " ".join(kept) if len(kept) < len(clauses) else definition


_TABLE_CONSTRAINTS = frozenset({"CONSTRAINT", "PRIMARY", "UNIQUE", "CHECK", "FOREIGN"})
# The words that begin a clause of a definition. As names they would be in quotes.
_CLAUSES = _TABLE_CONSTRAINTS | {
    "REFERENCES",
    "DEFERRABLE",
    "DEFAULT",
    "COLLATE",
    "GENERATED",
    "AS",
    "NOT",
    "NULL",
}


def parse_create_table(sql: str) -> TableText:
    """Parse a CREATE TABLE statement of Django or from ``sqlite_master``, with names as SQLite folds them."""
    table = TableText()
    statement, *more = _items(sql, fold_names=True) or [[]]
    _, definitions, options = _around_group(statement)
    for item in definitions:
        clauses = list(_clauses(item))
        written = sql[item[0].start : item[-1].end]
        if item[0].word in _TABLE_CONSTRAINTS:
            _read_constraints(table, clauses, ())
            table.constraints.append(written)
        else:
            column = _column(clauses)
            table.columns.append(column)
            table.definitions[column.name] = written
            _read_constraints(table, clauses, (column.name,))
    words = [_joined(option).lower() for option in (options, *more)]
    table.options = tuple(sorted(filter(None, words)))
    return table


def _clauses(definition: Sequence[Token]) -> Iterator[Sequence[Token]]:
    """Split the definition of a column, or of a table's constraints, before each word that begins a clause.

    What comes before the first is a column's name and type. Expressions stand in parentheses, and are not looked into.
    ``NOT NULL`` is split in two. So are ``NOT DEFERRABLE`` and a foreign key's ``SET DEFAULT``, which say nothing.
    """
    start = 0
    for position, token in enumerate(definition):
        if position and token.word in _CLAUSES:
            yield definition[start:position]
            start = position
    yield definition[start:]


def _column(clauses: Sequence[Sequence[Token]]) -> Column:
    (name, *type_), *rest = clauses
    found: dict[str, Any] = {"nullable": True, "default": None}
    before = ""
    for clause in rest:
        match clause[0].word:
            case "DEFAULT" if before != "SET":
                # DEFAULT NULL is split in two as well.
                found["default"] = column_default(_joined(clause[1:]) or None)
            case "COLLATE":
                collation = _identifier(clause).upper()
                found["collation"] = None if collation == "BINARY" else collation
            case "AS":
                found["generated"] = canonical(clause[1:2])
            case "NULL" if before == "NOT":
                found["nullable"] = False
                found["conflict"] = found.get("conflict") or _conflict(clause)
        before = clause[-1].word
    return Column(name.identifier, _plain_type(_joined(type_)), **found)


def _read_constraints(
    table: TableText, clauses: list[Sequence[Token]], own: tuple[str, ...]
) -> None:
    """Add the constraints of a column, ``own``, or of the table."""
    name = ""
    referring = own
    for clause in clauses:
        _, items, _ = _around_group(clause)
        columns = tuple(item[0].identifier for item in items)
        match clause[0].word:
            case "CONSTRAINT":
                name = _identifier(clause)
                continue
            case "FOREIGN":  # the next clause says what they refer to
                referring = columns
                continue
            case "REFERENCES":
                target = _identifier(clause)
                table.foreign_keys.append(ForeignKey(name, referring, target, columns))
            case "CHECK":
                table.checks.append(Check(name, canonical(clause[1:2])))
            case "PRIMARY" | "UNIQUE" as word:
                is_primary = word == "PRIMARY"
                kind: KeyKind = "primary key" if is_primary else "unique constraint"
                options = _key_options(clause, items)
                table.keys.append(Key(name, columns or own, kind, options=options))
        # A name is for the next constraint only; NOT NULL and DEFAULT may have one too, which says nothing.
        name = ""


def _key_options(
    clause: Sequence[Token], columns: Sequence[Sequence[Token]]
) -> tuple[str, ...]:
    """Return what makes a key another one than its columns alone."""
    options = []
    if conflict := _conflict(clause):
        options.append(f"on conflict {conflict}")
    for column in columns:
        _, collation = _parted(column, "COLLATE")
        if collation and collation[0].word != "BINARY":
            options.append(f"collate {collation[0].identifier.lower()}")
    return tuple(options)


def _conflict(clause: Sequence[Token]) -> str | None:
    """Return the action of ``ON CONFLICT``, unless it is the usual one."""
    _, action = _parted(clause, "CONFLICT")
    if not action or action[0].word == "ABORT":
        return None
    return action[0].text.lower()


def _identifier(clause: Sequence[Token]) -> str:
    """Return the name after the clause's first word; '' if the statement breaks off there."""
    return clause[1].identifier if len(clause) > 1 else ""


# The SQL standard's name, which is 64 bits wide there.
_COCKROACH_TYPES = {**COCKROACH_TYPES, "integer": "bigint"}


def column_type(connection: BaseDatabaseWrapper, declared: str) -> str:
    """Return the type in lower case, with single spaces and PostgreSQL's name for it."""
    name = _plain_type(declared)
    if connection.vendor == "cockroachdb":
        return _COCKROACH_TYPES.get(name, name)
    return name


def _plain_type(name: str) -> str:
    # A server quotes all names if a role's settings ask for it.
    return " ".join(name.lower().replace('"', "").split())


def column_default(sql: str | None) -> str | None:
    """Return the canonical default; None for ``NULL``, which some servers write out and which does what none does."""
    if sql is None:
        return None
    text = canonical(sql)
    return None if text.partition("::")[0] == "NULL" else text
