"""Reading the SQL that databases keep about themselves: a tokenizer, and what little grammar a schema needs."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

_TOKEN = re.compile(
    r"""
      (?P<space>\s+|--[^\n]*|/\*.*?(?:\*/|$))
    | (?P<string>[eExX]?'(?:[^']|'')*'|\$\$.*?\$\$)
    | (?P<name>"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\])
    | (?P<number>0[xX][0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
    | (?P<word>[^\W\d][\w$]*)
    | (?P<symbol>:::|::|\|\||->>|->|<>|<=|>=|==|!=|<<|>>|.)
    """,
    re.VERBOSE | re.DOTALL,
)
_PLAIN_NAME = re.compile(r"[a-z_][a-z0-9_]*\Z")
_KEYWORDS = frozenset(
    ["AND", "AS", "BETWEEN", "CASE", "COLLATE", "ELSE", "END", "ESCAPE", "EXISTS", "GLOB", "IN", "IS", "ISNULL", "LIKE"]
    + ["NOT", "NOTNULL", "NULL", "OR", "THEN", "WHEN"]
)
_TYPE_TAILS = {
    "character": ("varying",),
    "double": ("precision",),
    "time": ("with", "without", "time", "zone"),
    "timestamp": ("with", "without", "time", "zone"),
    "bit": ("varying",),
}


@dataclass(frozen=True)
class Token:
    kind: Literal["string", "name", "number", "word", "symbol"]
    text: str  # as written
    start: int
    end: int

    @property
    def word(self) -> str:
        """The keyword this may be, in upper case; empty for a quoted name or a literal."""
        return self.text.upper() if self.kind == "word" else ""

    @property
    def identifier(self) -> str:
        """The name this stands for, without its quotes."""
        if self.kind == "name":
            quote = self.text[-1]
            return self.text[1:-1] if quote == "]" else self.text[1:-1].replace(quote * 2, quote)
        if self.kind == "string":
            return self.text[1:-1].replace("''", "'")
        return self.text


def tokenize(sql: str) -> list[Token]:
    """Split ``sql`` into tokens, without white space and comments. Never fails: what it does not know is a symbol."""
    tokens = []
    for match in _TOKEN.finditer(sql):
        kind = match.lastgroup
        if kind != "space":
            tokens.append(Token(kind, match.group(), match.start(), match.end()))  # type: ignore[arg-type]
    return tokens


def names_in(sql: str) -> frozenset[str]:
    """Return every word and quoted name of an expression, in lower case: what it may refer to."""
    return frozenset(token.identifier.lower() for token in tokenize(sql) if token.kind in ("word", "name"))


def matching(tokens: Sequence[Token], opening: int) -> int:
    """Return the position of the parenthesis that closes the one at ``opening``; the last token if none does."""
    depth = 0
    for position in range(opening, len(tokens)):
        if tokens[position].text == "(":
            depth += 1
        elif tokens[position].text == ")":
            depth -= 1
            if not depth:
                return position
    return len(tokens) - 1


def split(tokens: Sequence[Token]) -> Iterator[Sequence[Token]]:
    """Split a list's tokens, without its parentheses, at the commas of its own level."""
    start = depth = 0
    for position, token in enumerate(tokens):
        depth += {"(": 1, ")": -1}.get(token.text, 0)
        if token.text == "," and not depth:
            yield tokens[start:position]
            start = position + 1
    if start < len(tokens):
        yield tokens[start:]


def quote_name(name: str) -> str:
    """Return ``name`` in quotes, its own doubled, which Django's ``quote_name`` does not do."""
    return '"' + name.replace('"', '""') + '"'


def quoted(name: str) -> str:
    """Return ``name`` as a canonical expression shows it: bare where it can be."""
    return name if _PLAIN_NAME.match(name) else quote_name(name)


def canonical(sql: str | Sequence[Token], *, fold_names: bool = False) -> str:
    """Return an expression in one spelling, so that two spellings of the same thing are equal.

    Keywords are upper case, other words lower case, quotes, casts of literals and parentheses that do nothing are gone.
    ``fold_names`` is for SQLite, to which a quoted name is in lower case too.
    """
    tokens = tokenize(sql) if isinstance(sql, str) else list(sql)
    if fold_names:
        tokens = [replace(token, text=token.text.lower()) if token.kind == "name" else token for token in tokens]
    return _joined(_render(_without_literal_casts(tokens)))


def _joined(pieces: Sequence[str]) -> str:
    text = ""
    for piece in pieces:
        glued = not text or piece in ("::", ".") or text.endswith(("::", "."))
        text += piece if glued else f" {piece}"
    return text


def _without_literal_casts(tokens: Sequence[Token]) -> list[Token]:
    kept: list[Token] = []
    position = 0
    while position < len(tokens):
        token = tokens[position]
        literal = bool(kept) and (kept[-1].kind in ("string", "number") or kept[-1].word == "NULL")
        # CockroachDB annotates every constant with ':::' and its type.
        if token.text == ":::" or (token.text == "::" and literal):
            position = _after_type(tokens, position + 1)
            continue
        kept.append(token)
        position += 1
    return kept


def _after_type(tokens: Sequence[Token], position: int) -> int:
    if position >= len(tokens):
        return position
    tail = _TYPE_TAILS.get(tokens[position].text.lower(), ())
    position += 1
    while position < len(tokens):
        text = tokens[position].text
        if text in ("(", "["):
            closing = ")" if text == "(" else "]"
            while position < len(tokens) and tokens[position].text != closing:
                position += 1
            position += 1
        elif text == "." or text.lower() in tail:
            position += 2 if text == "." else 1
        else:
            break
    return position


def _render(tokens: Sequence[Token]) -> list[str]:
    """Render the tokens of one level; a call stays one piece, so that 'f ( x )' and 'f(x)' are equal."""
    pieces: list[str] = []
    position = 0
    while position < len(tokens):
        token = tokens[position]
        if token.text == "(":
            closing = matching(tokens, position)
            inner = tokens[position + 1 : closing]
            called = bool(position) and tokens[position - 1].kind in ("word", "name")
            called = called and tokens[position - 1].word not in _KEYWORDS - {"EXISTS"}
            is_list = called or (bool(position) and tokens[position - 1].word == "IN")
            rendered = [_joined(_render(item)) for item in split(inner)]
            if called:
                pieces[-1] += f"({', '.join(rendered)})"
            elif is_list or len(rendered) != 1:
                pieces.append(f"({', '.join(rendered)})")
            elif len(tokens) == closing - position + 1 or len(_render(inner)) == 1:
                pieces.append(rendered[0])  # the whole expression, or a single thing
            else:
                pieces.append(f"({rendered[0]})")
            position = closing + 1
            continue
        if token.kind == "word":
            pieces.append(token.word if token.word in _KEYWORDS else token.text.lower())
        elif token.kind == "name":
            pieces.append(quoted(token.identifier))
        else:
            pieces.append(token.text)
        position += 1
    return pieces


@dataclass(frozen=True)
class KeyText:
    """One key of a CREATE INDEX statement, as written."""

    expression: str  # canonical
    collation: str | None
    operator_class: str | None
    descending: bool
    nulls: str | None  # first, last, or None where nothing is written


@dataclass(frozen=True)
class IndexText:
    """What a CREATE INDEX statement says."""

    name: str
    unique: bool
    method: str | None
    keys: tuple[KeyText, ...]
    include: tuple[str, ...]
    nulls_not_distinct: bool
    condition: str | None


def parse_create_index(sql: str, *, fold_names: bool = False) -> IndexText:
    """Read a CREATE INDEX statement of Django, of ``pg_get_indexdef`` or of ``sqlite_master``."""
    tokens = tokenize(sql)
    words = [token.word for token in tokens]
    on = words.index("ON")
    opening = next(position for position in range(on, len(tokens)) if tokens[position].text == "(")
    closing = matching(tokens, opening)
    method = None
    if "USING" in words[on:opening]:
        method = tokens[words.index("USING", on) + 1].identifier.lower()
    include: tuple[str, ...] = ()
    nulls_not_distinct = False
    condition = None
    position = closing + 1
    while position < len(tokens):
        if words[position] == "INCLUDE":
            end = matching(tokens, position + 1)
            include = tuple(canonical(item) for item in split(tokens[position + 2 : end]))
            position = end
        elif words[position : position + 3] == ["NULLS", "NOT", "DISTINCT"]:
            nulls_not_distinct = True
        elif words[position] == "WHERE":
            condition = canonical(tokens[position + 1 :], fold_names=fold_names)
            break
        elif words[position] == "WITH":
            position = matching(tokens, position + 1)
        position += 1
    return IndexText(
        name=tokens[on - 1].identifier,
        unique="UNIQUE" in words[:on],
        method=method,
        keys=tuple(_key(list(item), fold_names) for item in split(tokens[opening + 1 : closing])),
        include=include,
        nulls_not_distinct=nulls_not_distinct,
        condition=condition,
    )


def _key(tokens: list[Token], fold_names: bool) -> KeyText:
    nulls = operator_class = collation = None
    descending = False
    if len(tokens) > 2 and tokens[-2].word == "NULLS":
        nulls = tokens[-1].text.lower()
        tokens = tokens[:-2]
    if len(tokens) > 1 and tokens[-1].word in ("ASC", "DESC"):
        descending = tokens[-1].word == "DESC"
        tokens = tokens[:-1]
    tokens, collation = _without_collation(tokens)
    # Whatever follows a column or a closing parenthesis without an operator between is PostgreSQL's operator class.
    if (
        collation is None
        and len(tokens) > 1
        and tokens[-1].kind in ("word", "name")
        and (tokens[-2].text == ")" or tokens[-2].kind in ("word", "name"))
        and tokens[-1].word not in _KEYWORDS
        and tokens[-2].word not in _KEYWORDS
    ):
        operator_class = tokens[-1].identifier
        tokens, collation = _without_collation(tokens[:-1])
    while tokens and tokens[0].text == "(" and matching(tokens, 0) == len(tokens) - 1:
        tokens, inner = _without_collation(tokens[1:-1])
        collation = collation or inner
    return KeyText(canonical(tokens, fold_names=fold_names), collation, operator_class, descending, nulls)


def _without_collation(tokens: list[Token]) -> tuple[list[Token], str | None]:
    for back in (2, 4):  # COLLATE "C", COLLATE pg_catalog."C"
        if len(tokens) > back and tokens[-back].word == "COLLATE" and (back == 2 or tokens[-2].text == "."):
            return tokens[:-back], tokens[-1].identifier
    return tokens, None


@dataclass(frozen=True)
class ConstraintText:
    """A constraint of a CREATE TABLE statement, of a column or of the table."""

    kind: Literal["primary key", "unique", "foreign key", "check"]
    name: str | None
    columns: tuple[str, ...] = ()
    expression: str = ""  # canonical, of a check
    target_table: str = ""
    target_columns: tuple[str, ...] = ()
    conflict: str | None = None  # rollback, abort, fail, ignore, replace


@dataclass
class ColumnText:
    """A column of a CREATE TABLE statement: what SQLite's pragmas do not tell, and where it is written."""

    name: str
    start: int  # of the definition within the statement
    end: int
    collation: str | None = None
    generated: str | None = None
    conflict: str | None = None  # of its NOT NULL


@dataclass
class TableText:
    """What a CREATE TABLE statement of SQLite says."""

    columns: list[ColumnText] = field(default_factory=list)
    constraints: list[ConstraintText] = field(default_factory=list)
    options: tuple[str, ...] = ()  # strict, without rowid


def without_checks(definition: str, names: Collection[str]) -> str:
    """Return a column's definition without the CHECK constraints that name one of ``names``."""
    tokens = tokenize(definition)
    kept, position = [], 0
    for number, token in enumerate(tokens):
        if token.word != "CHECK" or token.start < position or tokens[number + 1 : number + 2] == []:
            continue
        end = tokens[matching(tokens, number + 1)].end
        if names_in(definition[token.start : end]).isdisjoint(names):
            continue
        named = number >= 2 and tokens[number - 2].word == "CONSTRAINT"
        kept.append(definition[position : tokens[number - 2].start if named else token.start])
        position = end
    return "".join([*kept, definition[position:]]).rstrip()


_TABLE_CONSTRAINTS = frozenset({"CONSTRAINT", "PRIMARY", "UNIQUE", "CHECK", "FOREIGN"})


def parse_create_table(sql: str) -> TableText:
    """Read the CREATE TABLE statement that SQLite keeps in ``sqlite_master``."""
    tokens = tokenize(sql)
    table = TableText()
    opening = next((position for position, token in enumerate(tokens) if token.text == "("), None)
    if opening is None:
        return table
    closing = matching(tokens, opening)
    for item in split(tokens[opening + 1 : closing]):
        if not item:
            continue
        if item[0].word in _TABLE_CONSTRAINTS:
            _read_constraints(item, 0, None, table)
        else:
            column = ColumnText(item[0].identifier, item[0].start, item[-1].end)
            table.columns.append(column)
            _read_constraints(item, 1, column, table)
    table.options = tuple(
        sorted(" ".join(token.text.lower() for token in item) for item in split(tokens[closing + 1 :]) if item)
    )
    return table


def _names(tokens: Sequence[Token]) -> tuple[str, ...]:
    return tuple(item[0].identifier for item in split(tokens) if item)


def _read_constraints(tokens: Sequence[Token], position: int, column: ColumnText | None, table: TableText) -> None:
    """Read the constraints of one column, or of the table where ``column`` is None (there may follow several)."""
    name: str | None = None
    own: tuple[str, ...] = (column.name,) if column else ()

    def group(after: int) -> tuple[Sequence[Token], int]:
        """The tokens of the parenthesis that opens at ``after``, and the position behind it."""
        if after < len(tokens) and tokens[after].text == "(":
            end = matching(tokens, after)
            return tokens[after + 1 : end], end + 1
        return (), after

    def conflict_clause(after: int) -> tuple[str | None, int]:
        """What ``ON CONFLICT`` at ``after`` says, unless it is the usual, and the position behind it."""
        if after + 2 < len(tokens) and tokens[after + 1].word == "CONFLICT":
            return {"abort": None}.get(action := tokens[after + 2].text.lower(), action), after + 3
        return None, after

    while position < len(tokens):
        word = tokens[position].word
        following = tokens[position + 1].word if position + 1 < len(tokens) else ""
        if word == "CONSTRAINT" and position + 1 < len(tokens):
            name = tokens[position + 1].identifier
            position += 2
            continue
        if word in ("PRIMARY", "UNIQUE"):
            listed, position = group(position + (2 if word == "PRIMARY" else 1))
            if position < len(tokens) and tokens[position].word in ("ASC", "DESC"):
                position += 1
            conflict, position = conflict_clause(position)
            kind: Literal["primary key", "unique"] = "primary key" if word == "PRIMARY" else "unique"
            table.constraints.append(ConstraintText(kind, name, _names(listed) or own, conflict=conflict))
        elif word == "CHECK":
            inner, position = group(position + 1)
            table.constraints.append(ConstraintText("check", name, own, expression=canonical(inner, fold_names=True)))
        elif word == "FOREIGN" or word == "REFERENCES":
            columns = own
            if word == "FOREIGN":
                listed, position = group(position + 2)
                columns = _names(listed)
            target = tokens[position + 1].identifier if position + 1 < len(tokens) else ""
            listed, position = group(position + 2)
            table.constraints.append(
                ConstraintText("foreign key", name, columns, target_table=target, target_columns=_names(listed))
            )
            while position < len(tokens) and tokens[position].word in ("ON", "MATCH", "NOT", "DEFERRABLE", "INITIALLY"):
                step = tokens[position].word
                if step == "NOT" and tokens[position + 1 : position + 2] and tokens[position + 1].word == "NULL":
                    break
                if step == "ON":  # ON DELETE SET NULL, ON UPDATE NO ACTION, ON DELETE CASCADE
                    action = tokens[position + 2].word if position + 2 < len(tokens) else ""
                    position += 4 if action in ("SET", "NO") else 3
                else:
                    position += 1 if step in ("NOT", "DEFERRABLE") else 2
        elif word == "DEFAULT":
            _, after = group(position + 1)
            signed = position + 1 < len(tokens) and tokens[position + 1].text in ("+", "-")
            position = after if after > position + 1 else position + (3 if signed else 2)
        elif word == "COLLATE" and position + 1 < len(tokens):
            if column:
                column.collation = tokens[position + 1].identifier
            position += 2
        elif word == "AS" or (word == "GENERATED" and following == "ALWAYS"):
            inner, position = group(position + (1 if word == "AS" else 3))
            if column:
                column.generated = canonical(inner)
        elif word == "NOT" and following == "NULL":
            conflict, position = conflict_clause(position + 2)
            if column:
                column.conflict = conflict
        else:
            position += 1  # the type, AUTOINCREMENT, STORED …
            continue
        name = None
