"""Parses the SQL in which databases store their schema: a tokenizer, and the little grammar that this needs."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

from agentdb.schema.tables import (
    Check,
    ForeignKey,
    Index,
    IndexPart,
    PrimaryKey,
    Unique,
)

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
_WORDS_OF_OPERATORS = """
    AND AS BETWEEN CASE COLLATE ELSE END ESCAPE EXISTS GLOB IN IS ISNULL LIKE NOT NOTNULL
    NULL OR THEN WHEN
"""
_KEYWORDS = frozenset(_WORDS_OF_OPERATORS.split())
# Words that follow the first one of a type, which has several.
_TYPE_TAILS = {
    "character": ("varying",),
    "double": ("precision",),
    "time": ("with", "without", "time", "zone"),
    "timestamp": ("with", "without", "time", "zone"),
    "bit": ("varying",),
}
# Its own words, and PostgreSQL's.
_COCKROACH_TYPES = {
    "STRING": "text",
    "INT8": "bigint",
    "TIMESTAMPTZ": "timestamptz",
}


@dataclass(frozen=True)
class Token:
    kind: Literal["string", "name", "number", "word", "symbol"]
    text: str  # as written
    start: int
    end: int

    @property
    def word(self) -> str:
        """The token as a keyword, in upper case; '' for a quoted name or a literal."""
        return self.text.upper() if self.kind == "word" else ""

    @property
    def identifier(self) -> str:
        """The name, without its quotes."""
        if self.kind == "name":
            quote = self.text[-1]
            return (
                self.text[1:-1]
                if quote == "]"
                else self.text[1:-1].replace(quote * 2, quote)
            )
        if self.kind == "string":
            return self.text[1:-1].replace("''", "'")
        return self.text


def tokenize(sql: str) -> list[Token]:
    """Split ``sql`` into tokens, without white space and comments. Never fails: an unknown character is a symbol."""
    tokens = []
    for match in _TOKEN.finditer(sql):
        kind = match.lastgroup
        if kind != "space":
            tokens.append(Token(kind, match.group(), match.start(), match.end()))  # type: ignore[arg-type]
    return tokens


def names_in(sql: str) -> frozenset[str]:
    """Return the lower-case words and quoted names of an expression, to which it may refer."""
    return frozenset(
        token.identifier.lower()
        for token in tokenize(sql)
        if token.kind in ("word", "name")
    )


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
            if start < position:
                yield tokens[start:position]
            start = position + 1
    if start < len(tokens):
        yield tokens[start:]


def quote_name(name: str) -> str:
    """Return ``name`` in quotes, with inner quotes doubled, which Django's ``quote_name`` does not do."""
    return '"' + name.replace('"', '""') + '"'


def quoted(name: str) -> str:
    """Return ``name`` as a canonical expression shows it: without quotes if possible."""
    return name if _PLAIN_NAME.match(name) else quote_name(name)


# Not str.lower(), which would also fold letters that SQLite takes for different ones.
_LOWER = str.maketrans(
    {chr(code): chr(code).lower() for code in range(ord("A"), ord("Z") + 1)}
)


def folded(name: str) -> str:
    """Return the name in lower case, ASCII letters only, as SQLite compares names."""
    return name.translate(_LOWER)


def canonical(sql: str | Sequence[Token], *, fold_names: bool = False) -> str:
    """Return the canonical form of an expression, so that two spellings of it are equal.

    Keywords become upper case, other words lower case; unnecessary quotes, parentheses and casts of literals go.
    ``fold_names`` is for SQLite, which ignores the case of quoted names too.
    """
    tokens = tokenize(sql) if isinstance(sql, str) else list(sql)
    if fold_names:
        tokens = [
            replace(token, text=token.text.lower()) if token.kind == "name" else token
            for token in tokens
        ]
    return _joined(_render(_without_literal_casts(tokens)))


def _joined(pieces: Sequence[str]) -> str:
    text = ""
    for piece in pieces:
        glued = not text or piece in ("::", ".") or text.endswith(("::", "."))
        text += piece if glued else f" {piece}"
    return text


def _without_literal_casts(tokens: Sequence[Token]) -> list[Token]:
    """Drop the types that servers write behind literals: ``'x'::text`` is what became of ``DEFAULT 'x'``.

    A cast of anything else stays: it may change the value.
    """
    kept: list[Token] = []
    position = 0
    while position < len(tokens):
        token = tokens[position]
        literal = bool(kept) and (
            kept[-1].kind in ("string", "number") or kept[-1].word == "NULL"
        )
        # CockroachDB annotates every constant with ':::' and its type.
        if token.text == ":::" or (token.text == "::" and literal):
            position = _after_type(tokens, position + 1)
            continue
        if token.word in _COCKROACH_TYPES and kept and kept[-1].text == "::":
            token = replace(token, text=_COCKROACH_TYPES[token.word])
        kept.append(token)
        position += 1
    return kept


def _after_type(tokens: Sequence[Token], position: int) -> int:
    """Return the position behind a type: ``s.t``, ``varchar(20)``, ``text[]``, ``timestamp (3) with time zone``."""
    if position >= len(tokens):
        return position
    tail = _TYPE_TAILS.get(tokens[position].text.lower(), ())
    position += 1
    while position < len(tokens):
        text = tokens[position].text
        if text == "(":
            position = matching(tokens, position) + 1
        elif text.startswith("["):  # which the tokenizer reads as a name in brackets
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
        if tokens[position].text != "(":
            pieces.append(_spelt(tokens[position]))
            position += 1
            continue
        closing = matching(tokens, position)
        inner = tokens[position + 1 : closing]
        before = tokens[position - 1] if position else None
        # 'lower (x)' is a call, '(x)' alone is x, and '(x, y)' and what follows IN are lists.
        if before is not None and _is_called(before):
            pieces[-1] += f"({', '.join(_items(inner))})"
        else:
            is_whole = len(tokens) == closing - position + 1
            pieces.append(
                _parenthesis(
                    inner, is_whole, is_list=before is not None and before.word == "IN"
                )
            )
        position = closing + 1
    return pieces


def _is_called(token: Token) -> bool:
    return token.kind in ("word", "name") and token.word not in _KEYWORDS - {"EXISTS"}


def _items(inner: Sequence[Token]) -> list[str]:
    return [_joined(_render(item)) for item in split(inner)]


def _parenthesis(inner: Sequence[Token], is_whole: bool, *, is_list: bool) -> str:
    rendered = _items(inner)
    if is_list or len(rendered) != 1:
        return f"({', '.join(rendered)})"
    if is_whole or len(_render(inner)) == 1:
        return rendered[0]  # the whole expression, or a single term
    return f"({rendered[0]})"


def _spelt(token: Token) -> str:
    if token.kind == "word":
        return token.word if token.word in _KEYWORDS else token.text.lower()
    return quoted(token.identifier) if token.kind == "name" else token.text


def parse_create_index(sql: str, *, fold_names: bool = False) -> Index:
    """Read a CREATE INDEX statement of Django, of ``pg_get_indexdef`` or of ``sqlite_master``.

    Each part has the collation and the place of NULLs that are written, also if they are the engine's usual ones.
    """
    tokens = tokenize(sql)
    words = [token.word for token in tokens]
    on = words.index("ON")
    opening = next(
        place for place, token in enumerate(tokens) if place > on and token.text == "("
    )
    closing = matching(tokens, opening)
    clauses, condition = _parted(tokens[closing + 1 :], "WHERE")
    # Bare keywords belong to the statement, because engines quote reserved names.
    _, method = _parted(tokens[on:opening], "USING")
    return Index(
        name=tokens[on - 1].identifier,
        unique="UNIQUE" in words[:on],
        method=method[0].identifier.lower() if method else "btree",
        parts=tuple(
            _key(item, fold_names) for item in split(tokens[opening + 1 : closing])
        ),
        include=_included(clauses),
        options=tuple(
            "nulls not distinct" for token in clauses if token.word == "DISTINCT"
        ),
        condition=canonical(condition, fold_names=fold_names) if condition else None,
    )


def _parted(
    tokens: Sequence[Token], word: str
) -> tuple[Sequence[Token], Sequence[Token]]:
    """Return the tokens before and after the first ``word``; all and none without it."""
    for position, token in enumerate(tokens):
        if token.word == word:
            return tokens[:position], tokens[position + 1 :]
    return tokens, ()


def _included(clauses: Sequence[Token]) -> tuple[str, ...]:
    _, after = _parted(clauses, "INCLUDE")
    return tuple(map(canonical, split(after[1 : matching(after, 0)])))


def _key(tokens: Sequence[Token], fold_names: bool) -> IndexPart:
    """Read ``EXPRESSION [COLLATE x] [operator class] [ASC | DESC] [NULLS FIRST | LAST]`` from its end."""
    nulls: Literal["first", "last"] | None = None
    if len(tokens) > 2 and tokens[-2].word == "NULLS":
        nulls = "first" if tokens[-1].word == "FIRST" else "last"
        tokens = tokens[:-2]
    direction = tokens[-1].word if len(tokens) > 1 else ""
    if direction in ("ASC", "DESC"):
        tokens = tokens[:-1]
    operator_class = None
    if _ends_with_operator_class(tokens):
        operator_class = tokens[-1].identifier
        tokens = tokens[:-1]
    tokens, collation = _without_collation(tokens)
    # Django writes '("id" COLLATE "C") DESC', and PostgreSQL shows 'id COLLATE "C" DESC'.
    while _is_parenthesis(tokens):
        tokens, inner = _without_collation(tokens[1:-1])
        collation = collation or inner
    expression = canonical(tokens, fold_names=fold_names)
    return IndexPart(expression, direction == "DESC", collation, nulls, operator_class)


def _is_parenthesis(tokens: Sequence[Token]) -> bool:
    """Return whether the first token opens a parenthesis that the last one closes."""
    return (
        bool(tokens)
        and tokens[0].text == "("
        and matching(tokens, 0) == len(tokens) - 1
    )


def _ends_with_operator_class(tokens: Sequence[Token]) -> bool:
    """Whether a name follows a column or a closing parenthesis without an operator between: PostgreSQL's class."""
    if len(tokens) < 2 or tokens[-1].kind not in ("word", "name"):
        return False
    before, last = tokens[-2], tokens[-1]
    is_operand = before.text == ")" or before.kind in ("word", "name")
    return is_operand and not {before.word, last.word} & _KEYWORDS


def _without_collation(
    tokens: Sequence[Token],
) -> tuple[Sequence[Token], str | None]:
    for back in (2, 4):  # COLLATE "C", COLLATE pg_catalog."C"
        if (
            len(tokens) > back
            and tokens[-back].word == "COLLATE"
            and (back == 2 or tokens[-2].text == ".")
        ):
            return tokens[:-back], tokens[-1].identifier
    return tokens, None


_Constraint = TypeVar("_Constraint", PrimaryKey, Unique, ForeignKey, Check)


@dataclass
class ColumnText:
    """A column of a CREATE TABLE statement: what SQLite's pragmas omit, and its position."""

    name: str
    start: int  # of the definition within the statement
    end: int
    collation: str | None = None
    generated: str | None = None
    conflict: str | None = None  # of its NOT NULL


@dataclass
class TableText:
    """A parsed CREATE TABLE statement of SQLite."""

    columns: list[ColumnText] = field(default_factory=list)
    # Of its columns and of the table, in the order of the statement, with folded names.
    constraints: list[PrimaryKey | Unique | ForeignKey | Check] = field(
        default_factory=list
    )
    # The positions of the table's own constraints within the statement.
    spans: list[tuple[int, int]] = field(default_factory=list)
    options: tuple[str, ...] = ()  # strict, without rowid

    def of_kind(self, kind: type[_Constraint]) -> list[_Constraint]:
        return [each for each in self.constraints if isinstance(each, kind)]


def without_checks(definition: str, names: Collection[str]) -> str:
    """Return a column's definition without the CHECK constraints that name one of ``names``."""
    kept: list[str] = []
    clauses = list(filter(None, _clauses(tokenize(definition))))
    for clause in clauses:
        text = definition[clause[0].start : clause[-1].end]
        if clause[0].word != "CHECK" or names_in(text).isdisjoint(names):
            kept.append(text)
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
    "AS",
    "NOT",
}


def parse_create_table(sql: str) -> TableText:
    """Parse a CREATE TABLE statement from ``sqlite_master``."""
    tokens = tokenize(sql)
    table = TableText()
    opening = next(
        (position for position, token in enumerate(tokens) if token.text == "("), None
    )
    if opening is None:
        return table
    closing = matching(tokens, opening)
    for item in split(tokens[opening + 1 : closing]):
        clauses = list(_clauses(item))
        if item[0].word in _TABLE_CONSTRAINTS:
            table.constraints += _constraints(clauses, ())
            table.spans.append((item[0].start, item[-1].end))
        else:
            column = _column(item, clauses)
            table.columns.append(column)
            table.constraints += _constraints(clauses, (folded(column.name),))
    table.options = tuple(
        sorted(
            " ".join(token.text.lower() for token in item)
            for item in split(tokens[closing + 1 :])
        )
    )
    return table


def _clauses(definition: Sequence[Token]) -> Iterator[Sequence[Token]]:
    """Split the definition of a column, or of a table's constraints, before each word that begins a clause.

    What comes before the first is a column's name and type. Expressions stand in parentheses, and are not looked into.
    A foreign key's ``SET DEFAULT`` and ``NOT DEFERRABLE`` are split off as well, which says nothing and does no harm.
    """
    start = depth = 0
    for position, token in enumerate(definition):
        depth += {"(": 1, ")": -1}.get(token.text, 0)
        if not depth and token.word in _CLAUSES:
            yield definition[start:position]
            start = position
    yield definition[start:]


def _column(item: Sequence[Token], clauses: list[Sequence[Token]]) -> ColumnText:
    column = ColumnText(item[0].identifier, item[0].start, item[-1].end)
    for clause in clauses[1:]:
        match clause[0].word:
            case "COLLATE":
                column.collation = _identifier(clause, 1)
            case "AS":
                column.generated = canonical(_group(clause))
            case "NOT":
                column.conflict = column.conflict or _conflict(clause)
    return column


def _constraints(
    clauses: list[Sequence[Token]], own: tuple[str, ...]
) -> Iterator[PrimaryKey | Unique | ForeignKey | Check]:
    """Yield the constraints of a column, ``own``, or of the table."""
    name = None
    referring = own
    for clause in filter(None, clauses):
        columns = tuple(folded(each[0].identifier) for each in split(_group(clause)))
        key = columns or own
        match clause[0].word:
            case "CONSTRAINT":
                name = _identifier(clause, 1)
                continue
            case "FOREIGN":  # the next clause says what they refer to
                referring = columns
                continue
            case "REFERENCES":
                target = folded(_identifier(clause, 1))
                yield ForeignKey(name, referring, target, columns)
            case "CHECK":
                yield Check(name, canonical(_group(clause), fold_names=True))
            case "PRIMARY":
                yield PrimaryKey(name, key, _on_conflict(clause))
            case "UNIQUE":
                yield Unique(name, key, _on_conflict(clause))
        # A name is for the next constraint only; NOT NULL and DEFAULT may have one too, which says nothing.
        name = None


def _on_conflict(clause: Sequence[Token]) -> tuple[str, ...]:
    conflict = _conflict(clause)
    return (f"on conflict {conflict}",) if conflict else ()


def _group(clause: Sequence[Token]) -> Sequence[Token]:
    """Return what is in the first parenthesis; nothing if there is none."""
    for position, token in enumerate(clause):
        if token.text == "(":
            return clause[position + 1 : matching(clause, position)]
    return ()


def _conflict(clause: Sequence[Token]) -> str | None:
    """Return the action of ``ON CONFLICT``, unless it is the usual one."""
    _, action = _parted(clause, "CONFLICT")
    word = _identifier(action, 0).lower()
    return word if word not in ("", "abort") else None


def _identifier(tokens: Sequence[Token], position: int) -> str:
    return tokens[position].identifier if position < len(tokens) else ""
