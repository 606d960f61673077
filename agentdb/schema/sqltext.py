"""Reading the SQL that databases keep about themselves: a tokenizer, and what little grammar a schema needs."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

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
_TYPE_TAILS = {
    "character": ("varying",),
    "double": ("precision",),
    "time": ("with", "without", "time", "zone"),
    "timestamp": ("with", "without", "time", "zone"),
    "bit": ("varying",),
}
_COCKROACH_TYPES = {
    "STRING": "text",
    "INT8": "bigint",
    "TIMESTAMPTZ": "timestamptz",
}  # its own words, and PostgreSQL's


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
            return (
                self.text[1:-1]
                if quote == "]"
                else self.text[1:-1].replace(quote * 2, quote)
            )
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
        if tokens[position].text != "(":
            pieces.append(_spelt(tokens[position]))
            position += 1
            continue
        closing = matching(tokens, position)
        inner = tokens[position + 1 : closing]
        before = tokens[position - 1] if position else None
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
        return rendered[0]  # the whole expression, or a single thing
    return f"({rendered[0]})"


def _spelt(token: Token) -> str:
    if token.kind == "word":
        return token.word if token.word in _KEYWORDS else token.text.lower()
    return quoted(token.identifier) if token.kind == "name" else token.text


@dataclass(frozen=True)
class KeyText:
    """One key of a CREATE INDEX statement, as written."""

    expression: str  # canonical
    collation: str | None
    operator_class: str | None
    descending: bool
    nulls: Literal["first", "last"] | None  # None if nothing is written


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
    opening = next(
        place for place, token in enumerate(tokens) if place > on and token.text == "("
    )
    closing = matching(tokens, opening)
    clauses, condition = _parted(tokens[closing + 1 :], "WHERE")
    # Bare words here are the statement's: engines quote a name that is reserved.
    _, method = _parted(tokens[on:opening], "USING")
    return IndexText(
        name=tokens[on - 1].identifier,
        unique="UNIQUE" in words[:on],
        method=method[0].identifier.lower() if method else None,
        keys=tuple(
            _key(item, fold_names) for item in split(tokens[opening + 1 : closing])
        ),
        include=_included(clauses),
        nulls_not_distinct=any(token.word == "DISTINCT" for token in clauses),
        condition=canonical(condition, fold_names=fold_names) if condition else None,
    )


def _parted(
    tokens: Sequence[Token], word: str
) -> tuple[Sequence[Token], Sequence[Token]]:
    """Return the tokens before and after the first that is ``word``; all and none without it."""
    for position, token in enumerate(tokens):
        if token.word == word:
            return tokens[:position], tokens[position + 1 :]
    return tokens, ()


def _included(clauses: Sequence[Token]) -> tuple[str, ...]:
    _, after = _parted(clauses, "INCLUDE")
    return tuple(map(canonical, split(after[1 : matching(after, 0)])))


def _key(tokens: Sequence[Token], fold_names: bool) -> KeyText:
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
    while _is_parenthesis(tokens):
        tokens, inner = _without_collation(tokens[1:-1])
        collation = collation or inner
    expression = canonical(tokens, fold_names=fold_names)
    return KeyText(expression, collation, operator_class, direction == "DESC", nulls)


def _is_parenthesis(tokens: Sequence[Token]) -> bool:
    """Whether the first token opens a parenthesis that the last one closes."""
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

    def of_kind(self, kind: str) -> list[ConstraintText]:
        return [each for each in self.constraints if each.kind == kind]


def without_checks(definition: str, names: Collection[str]) -> str:
    """Return a column's definition without the CHECK constraints that name one of ``names``."""
    tokens = tokenize(definition)
    kept, position = [], 0
    for number, token in enumerate(tokens):
        if (
            token.word != "CHECK"
            or token.start < position
            or tokens[number + 1 : number + 2] == []
        ):
            continue
        end = tokens[matching(tokens, number + 1)].end
        if names_in(definition[token.start : end]).isdisjoint(names):
            continue
        named = number >= 2 and tokens[number - 2].word == "CONSTRAINT"
        kept.append(
            definition[position : tokens[number - 2].start if named else token.start]
        )
        position = end
    return "".join([*kept, definition[position:]]).rstrip()


_TABLE_CONSTRAINTS = frozenset({"CONSTRAINT", "PRIMARY", "UNIQUE", "CHECK", "FOREIGN"})


def parse_create_table(sql: str) -> TableText:
    """Read the CREATE TABLE statement that SQLite keeps in ``sqlite_master``."""
    tokens = tokenize(sql)
    table = TableText()
    opening = next(
        (position for position, token in enumerate(tokens) if token.text == "("), None
    )
    if opening is None:
        return table
    closing = matching(tokens, opening)
    for item in split(tokens[opening + 1 : closing]):
        if not item:
            continue
        if item[0].word in _TABLE_CONSTRAINTS:
            _Constraints(item, 0, None, table).read()
        else:
            column = ColumnText(item[0].identifier, item[0].start, item[-1].end)
            table.columns.append(column)
            _Constraints(item, 1, column, table).read()
    table.options = tuple(
        sorted(
            " ".join(token.text.lower() for token in item)
            for item in split(tokens[closing + 1 :])
            if item
        )
    )
    return table


def _names(tokens: Sequence[Token]) -> tuple[str, ...]:
    return tuple(item[0].identifier for item in split(tokens) if item)


@dataclass
class _Constraints:
    """Reads the constraints of one column, or of the table if ``column`` is None (several may follow each other)."""

    tokens: Sequence[Token]
    position: int
    column: ColumnText | None
    table: TableText
    name: str | None = None  # what CONSTRAINT called the next one

    def read(self) -> None:
        while self.position < len(self.tokens):
            reader = self._readers.get(self._word())
            if reader is None:
                self.position += 1  # the type, AUTOINCREMENT, STORED …
            else:
                reader(self)
            if reader is not _Constraints._constraint:
                self.name = None

    def _word(self, ahead: int = 0) -> str:
        token = self._token(ahead)
        return token.word if token else ""

    def _token(self, ahead: int = 0) -> Token | None:
        place = self.position + ahead
        return self.tokens[place] if place < len(self.tokens) else None

    def _identifier(self, ahead: int) -> str:
        token = self._token(ahead)
        return token.identifier if token else ""

    def _group(self) -> Sequence[Token]:
        """Take the parenthesis that opens here, and return what is in it; nothing if none opens."""
        start = self.position
        token = self._token()
        if token is None or token.text != "(":
            return ()
        end = matching(self.tokens, start)
        self.position = end + 1
        return self.tokens[start + 1 : end]

    def _own(self) -> tuple[str, ...]:
        return (self.column.name,) if self.column else ()

    def _conflict(self) -> str | None:
        """Take an ``ON CONFLICT`` clause, and return its action unless that is the usual one."""
        if (
            self._word() != "ON"
            or self._word(1) != "CONFLICT"
            or self._token(2) is None
        ):
            return None
        action = self._identifier(2).lower()
        self.position += 3
        return None if action == "abort" else action

    def _constraint(self) -> None:
        self.name = self._identifier(1)
        self.position += 2

    def _key(self) -> None:
        kind: Literal["primary key", "unique"] = "unique"
        self.position += 1
        if self._word() == "KEY":
            kind = "primary key"
            self.position += 1
        columns = _names(self._group()) or self._own()
        if self._word() in ("ASC", "DESC"):
            self.position += 1
        self.table.constraints.append(
            ConstraintText(kind, self.name, columns, conflict=self._conflict())
        )

    def _check(self) -> None:
        self.position += 1
        expression = canonical(self._group(), fold_names=True)
        self.table.constraints.append(
            ConstraintText("check", self.name, self._own(), expression=expression)
        )

    def _foreign_key(self) -> None:
        self.position += 2
        self._references(_names(self._group()))

    def _references(self, columns: tuple[str, ...] | None = None) -> None:
        target = self._identifier(1)
        self.position += 2
        target_columns = _names(self._group())
        self.table.constraints.append(
            ConstraintText(
                "foreign key",
                self.name,
                self._own() if columns is None else columns,
                target_table=target,
                target_columns=target_columns,
            )
        )
        while (length := self._length_of_action()) > 0:
            self.position += length

    def _length_of_action(self) -> int:
        """How many tokens the next clause of a foreign key has; 0 if it has no more."""
        match self._word(), self._word(1), self._word(2):
            case "NOT", "NULL", _:
                return 0  # the column's
            case "ON", _, "SET" | "NO":
                return 4  # ON DELETE SET NULL, ON UPDATE NO ACTION
            case "ON", _, _:
                return 3
            case "NOT" | "DEFERRABLE", _, _:
                return 1
            case "MATCH" | "INITIALLY", _, _:
                return 2
        return 0

    def _default(self) -> None:
        self.position += 1
        if self._group():
            return
        token = self._token()
        self.position += 2 if token is not None and token.text in ("+", "-") else 1

    def _collation(self) -> None:
        if self.column:
            self.column.collation = self._identifier(1)
        self.position += 2

    def _generated(self) -> None:
        if self._word() == "GENERATED":
            self.position += 2  # to the AS behind ALWAYS
        self.position += 1
        expression = canonical(self._group())
        if self.column:
            self.column.generated = expression

    def _not_null(self) -> None:
        if self._word(1) != "NULL":
            self.position += 1
            return
        self.position += 2
        conflict = self._conflict()
        if self.column:
            self.column.conflict = conflict

    _readers: ClassVar[Mapping[str, Callable[[_Constraints], None]]] = {
        "CONSTRAINT": _constraint,
        "PRIMARY": _key,
        "UNIQUE": _key,
        "CHECK": _check,
        "FOREIGN": _foreign_key,
        "REFERENCES": _references,
        "DEFAULT": _default,
        "COLLATE": _collation,
        "GENERATED": _generated,
        "AS": _generated,
        "NOT": _not_null,
    }
