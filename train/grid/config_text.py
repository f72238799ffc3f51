"""Read settings from config text, each with its place. Values are Python literals; nothing in a config is executed."""

import ast
import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from common.text import did_you_mean
from train.grid.expressions import ARITHMETIC, MAX_BITS
from train.grid.params import FOREIGN_NAMES, MEASURING, SECTION_OF, SECTIONS, field_hint

GRID_SECTION = "Grid"  # the section about the grid itself
GRID_KEYS = ("together", "skip", "derive", "variants", "match")
EXPECT_SECTION = "Expect"  # the section about its results; see train/grid/claims.py
EXPECT_KEYS = ("topic", "source", "minutes", "claims")
KEYS_OF = {GRID_SECTION: GRID_KEYS, EXPECT_SECTION: EXPECT_KEYS}  # sections whose values stay syntax trees
VARIANT = "variant"  # in an option it selects variants; in an expression it is the name of the run's variant
HEADERS = (*SECTIONS, *KEYS_OF)
# The start of a header or of `key = ...`. True, False or None alone on a line belongs to a list.
STATEMENT = re.compile(r"^(?=(?!True\b|False\b|None\b)[A-Za-z_]\w*[ \t]*(?:=|#|$))", re.MULTILINE)
# Python's spelling of values that are often written in other ways.
BARE_WORDS = {"true": "True", "false": "False", "none": "None", "null": "None"}
MAX_ELEMENTS = 10_000  # of a repeated tuple
MAX_VALUE_CHARS = 80  # characters of a value in a message


class Place(NamedTuple):
    """The origin of a setting: a line of a config file, or a command line option (line 0)."""

    source: str
    line: int

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


class Setting(NamedTuple):
    """A `key = value` line with the values of its axis; a single one unless the config gives a list."""

    key: str
    values: list[Any]
    place: Place
    is_list: bool = False


class Config(NamedTuple):
    """The content of a config file: settings of fields, and the syntax trees of its other sections."""

    source: str
    settings: dict[str, Setting]
    trees: dict[str, dict[str, tuple[ast.expr, Place]]]  # by section and key

    @property
    def grid(self) -> dict[str, tuple[ast.expr, Place]]:
        return self.trees.get(GRID_SECTION, {})

    @property
    def expect(self) -> dict[str, tuple[ast.expr, Place]]:
        return self.trees.get(EXPECT_SECTION, {})


class Errors:
    """Errors of one config. `fields` are those that have an error already: what follows from it is not reported."""

    def __init__(self, fields: Iterable[str] = ()) -> None:
        self.lines: dict[str, None] = {}  # in order, each once
        self.fields = set(fields)
        self.notes: list[str] = []  # on valid settings that may not be intended
        self.is_misread = False  # the text has a syntax error, or a name that does not exist

    def add(self, place: Place, message: str, key: str = "", *, is_misread: bool = False) -> None:
        self.lines[f"{place}: {message}"] = None
        self.fields.add(key)
        self.is_misread = self.is_misread or is_misread

    def add_located(self, message: str, places: dict[str, Place]) -> None:
        """Add an error with the places of the fields that it names as `field=value`."""
        named = fields_named(message)
        if not self.fields.intersection(named):
            self.lines[located(message, places)] = None


def fields_named(message: str) -> list[str]:
    return [name for name in dict.fromkeys(re.findall(r"\b([a-z_]\w*)=", message)) if name in SECTION_OF]


def located(message: str, places: dict[str, Place]) -> str:
    """Return a message prefixed with the places of the fields it names."""
    where = sorted({places[name] for name in fields_named(message) if name in places})
    return f"{' and '.join(map(str, where)) or 'defaults'}: {message}"


def read_config(file: Path, errors: Errors) -> Config:
    """Return the settings of one config. Errors are added to `errors`."""
    source = f"{file.parent.name}/{file.name}"
    config = Config(source, {}, {})
    try:
        text = read_config_file(file)
    except ValueError as error:
        errors.add(Place(source, 0), str(error))
        return config
    section: str | None = None
    for node in read_statements(text, source, errors):
        place = Place(source, node.lineno)
        match node:
            case ast.Expr(value=ast.Name(id=name)):
                section = name if name in HEADERS else None
                if section is None:
                    errors.add(
                        place, f"there is no section {name!r}; {did_you_mean(name, HEADERS)}", is_misread=True
                    )
                    section = ""  # spare the settings below an error about a missing section
            case ast.Assign(targets=[ast.Name(id=key)], value=value):
                if section is None:
                    errors.add(place, f"{key!r} stands before any section ({', '.join(HEADERS)})", key)
                elif section:
                    read_assignment(config, section, key, value, errors, place=place)
            case _:
                errors.add(place, f"expected `key = value` or a section name ({', '.join(HEADERS)})")
    if not (config.settings or config.trees or errors.lines):
        errors.notes.append(f"{source} sets nothing: every field has its default")
    return config


def read_config_file(file: Path) -> str:
    """Return the text of a file. Raise ValueError if it is not UTF-8 or cannot be read."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}") from None
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None


def read_statements(text: str, source: str, errors: Errors) -> Iterator[ast.stmt]:
    """Yield the statements of a config text. A syntax error is added to `errors` and hides no other statement."""
    line = 1
    for piece in STATEMENT.split(text):
        try:
            body = ast.parse(piece).body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            at = error.lineno or 1 if isinstance(error, SyntaxError) else 1
            reason = re.sub(r" \(.*\)$", "", error.msg if isinstance(error, SyntaxError) else str(error))
            shown = (piece.splitlines() or [""])[min(at, piece.count("\n") + 1) - 1].strip()
            key = match[0] if (match := re.match(r"\w+", piece)) else ""
            errors.add(
                Place(source, line + at - 1), f"syntax error in `{shown}`: {reason}", key, is_misread=True
            )
            body = []
        yield from (ast.increment_lineno(node, line - 1) for node in body)
        line += piece.count("\n")


def read_assignment(
    config: Config, section: str, key: str, node: ast.expr, errors: Errors, *, place: Place
) -> None:
    """Add the setting `key = ...` under `section` to `config`."""
    known = KEYS_OF.get(section) or [k for k, owner in SECTION_OF.items() if owner == section]
    if key not in known:
        owner = SECTION_OF.get(key) or next((name for name, keys in KEYS_OF.items() if key in keys), None)
        hint = f"it belongs under {owner}" if owner else foreign_name(key, section) or field_hint(key, known)
        errors.add(place, f"{section} has no {key!r}; {hint}", key, is_misread=True)
        return
    if section in KEYS_OF:
        trees = config.trees.setdefault(section, {})
        if key in trees:
            errors.add(place, f"{key!r} is set twice, first at {trees[key][1]}", key)
        trees.setdefault(key, (node, place))
    elif setting := read_setting(key, node, place, errors):
        if key in config.settings:
            errors.add(place, f"{key!r} is set twice, first at {config.settings[key].place}", key)
        config.settings.setdefault(key, setting)


def foreign_name(key: str, section: str) -> str:
    """Return a hint if `key` is another project's name for a field of another section, else ""."""
    owner = SECTION_OF.get(FOREIGN_NAMES.get(key, ("",))[0])
    if owner in (None, section):
        return ""
    return f"{field_hint(key, SECTION_OF).removesuffix('?')}, a field of {owner}?"


def read_setting(key: str, node: ast.expr, place: Place, errors: Errors) -> Setting | None:
    try:
        return check_setting(key, value_of(node), place, errors)
    except (ValueError, TypeError, ArithmeticError, RecursionError, MemoryError) as error:
        text = unparsed(node)
        reason = "is no Python literal" + (hint_for_name(text) if isinstance(node, ast.Name) else "")
        if is_arithmetic(node):
            reason = f"has no value: {error}"
        errors.add(place, f"{key} = {text} {reason}", key, is_misread=True)
        return None


def value_of(node: ast.expr) -> object:
    """Return the value of a Python literal. Arithmetic + - * / ** of number literals is allowed, also inside lists.

    Tuples can be added and repeated: `(64,) * 3 + (None,)`.

    Raise ValueError for anything else, and ArithmeticError for a division by 0 or a number too large.
    """
    return ast.literal_eval(ArithmeticFolder().visit(copy.deepcopy(node)))


class ArithmeticFolder(ast.NodeTransformer):
    """Replaces arithmetic of number literals, and sums and repetitions of tuples, by their value."""

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        self.generic_visit(node)
        if type(node.op) not in ARITHMETIC:
            raise ValueError(f"{type(node.op).__name__} is not allowed")
        if (joined := joined_tuples(node)) is not None:
            return ast.copy_location(joined, node)
        left, right = (number_in(side) for side in (node.left, node.right))
        return ast.copy_location(ast.Constant(ARITHMETIC[type(node.op)](left, right)), node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        self.generic_visit(node)
        if isinstance(node.op, ast.USub):
            return ast.copy_location(ast.Constant(-number_in(node.operand)), node)
        return node


def joined_tuples(node: ast.BinOp) -> ast.Tuple | None:
    """Return the sum of two tuples, or a tuple repeated an int number of times; None for anything else."""
    match node:
        case ast.BinOp(left=ast.Tuple(elts=a), op=ast.Add(), right=ast.Tuple(elts=b)):
            elements = [*a, *b]
        case (
            ast.BinOp(left=ast.Tuple(elts=a), op=ast.Mult(), right=ast.Constant(value=int(n)))
            | ast.BinOp(left=ast.Constant(value=int(n)), op=ast.Mult(), right=ast.Tuple(elts=a))
        ) if not isinstance(n, bool):
            if len(a) * n > MAX_ELEMENTS:
                raise OverflowError(f"it has more than {MAX_ELEMENTS:,} elements")
            elements = a * n
        case _:
            return None
    return ast.Tuple(elements, ast.Load())


def number_in(node: ast.expr) -> int | float:
    value = ast.literal_eval(node)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"arithmetic is for numbers, not {value!r:.40}")
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise OverflowError("a number in it is too large")
    return value


def is_arithmetic(node: ast.AST) -> bool:
    """Return True if a value consists of numbers and operators only, so that an error is one of arithmetic."""
    allowed = (ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop, ast.List, ast.Tuple, ast.Constant, ast.Load)
    parts = list(ast.walk(node))
    return any(isinstance(part, ast.BinOp) for part in parts) and all(
        isinstance(part, allowed) for part in parts
    )


def hint_for_name(name: str) -> str:
    """Return a hint for a bare name: true, none, or text without quotes."""
    return (
        f"; did you mean {BARE_WORDS[name.lower()]}?"
        if name.lower() in BARE_WORDS
        else f" (text needs quotes: {name!r})"
    )


def unparsed(node: ast.expr) -> str:
    """Return a value as text, shortened."""
    text = ast.unparse(node)
    return text if len(text) <= MAX_VALUE_CHARS else f"{text[:MAX_VALUE_CHARS]}..."


def read_options(options: Mapping[str, str], errors: Errors) -> dict[str, Setting]:
    """Return the settings made on the command line."""
    settings: dict[str, Setting] = {}
    for typed, option in options.items():
        if setting := read_option(option, Place(typed, 0), errors):
            if setting.key in settings:
                errors.add(setting.place, f"{setting.key!r} is set twice on the command line", setting.key)
            settings[setting.key] = setting
    return settings


def read_option(option: str, place: Place, errors: Errors) -> Setting | None:
    """Return the setting `key=value` of the command line, or None after an error.

    A value that is not a Python literal is taken as text, since shells remove quotes.
    """
    key, equals, text = (part.strip() for part in option.partition("="))
    if not equals:
        errors.add(place, "expected key=value, as in --set lr=1e-3")
    elif key not in SECTION_OF and key != VARIANT:
        where = (
            f"edit {key} under {GRID_SECTION} in the config"
            if key in GRID_KEYS
            else field_hint(key, SECTION_OF)
        )
        errors.add(place, f"there is no field {key!r}; {where}", key, is_misread=True)
    else:
        return read_option_value(key, text, place, errors)
    return None


def read_option_value(key: str, text: str, place: Place, errors: Errors) -> Setting | None:
    """Return the setting of an option. Its value is a literal, else text if the field takes text, else arithmetic."""
    try:
        return check_setting(key, ast.literal_eval(text), place, errors)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        node = arithmetic(text)
    begins_as_literal = text[:1] in tuple("[({")
    if node is not None and (begins_as_literal or not takes(key, text)):
        return read_setting(key, node, place, errors)
    if begins_as_literal:
        example = f'--set \'{key}=["a", "b"]\''
        errors.add(
            place, f"{text} is no Python literal; quote it for the shell: {example}", key, is_misread=True
        )
        return None
    return check_setting(key, text, place, errors)


def arithmetic(text: str) -> ast.expr | None:
    """Return `text` as an expression if it is arithmetic of number literals, else None."""
    try:
        node = ast.parse(text, mode="eval").body
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    return node if is_arithmetic(node) else None


def takes(key: str, value: object) -> bool:
    """Return True if a field can have this value. `variant` takes any text."""
    return key not in SECTION_OF or refusal(SECTIONS[SECTION_OF[key]], key, value) is None


def check_setting(key: str, value: object, place: Place, errors: Errors) -> Setting:
    """Return the setting of a field: a list is an axis, anything else one value. Refused values become errors."""
    axis = value if isinstance(value, list) else [value]
    if not axis:
        errors.add(place, f"{key} = [] is an axis without values", key)
    if axis is value and key in MEASURING:
        errors.add(
            place,
            f"{key} = {value!r:.80} is no axis: it changes nothing that is trained; give one value",
            key,
        )
        axis = axis[:1]
    section = SECTION_OF.get(key, "")
    good: list[object] = []
    for item in axis:
        if item in good and type(item) is type(good[good.index(item)]):
            errors.add(place, f"{key} = {value!r} has {item!r} twice", key)
        elif section and (reason := refusal(SECTIONS[section], key, item)):
            hint = hint_for_value(key, item, reason, in_list=axis is value)
            errors.add(place, f"{section} cannot have {key} = {item!r}: {reason}{hint}", key)
        else:
            good.append(item)
    return Setting(key, good, place, is_list=axis is value)


def hint_for_value(key: str, item: object, reason: str, in_list: bool) -> str:
    """Return a hint for a refused value, if a list, None, True or False was probably meant."""
    if "tuple" in reason and in_list:
        return "; a list is an axis: write a single value as a tuple"
    if isinstance(item, tuple) and item and all(takes(key, one) for one in item):
        return f"; for an axis write a list, {[*item]!r}"
    if (
        isinstance(item, str)
        and (word := BARE_WORDS.get(item.lower()))
        and takes(key, ast.literal_eval(word))
    ):
        return f"; did you mean {word}?"
    if item in (0, False, -1) and not isinstance(item, str) and takes(key, None):
        return "; None switches it off"
    return ""


def refusal(params_class: type, key: str, value: object) -> str | None:
    """Return why `params_class` refuses this value for its field `key` whatever other fields are, or None."""
    try:
        params_class(**{key: value})
    except ValidationError as error:
        reasons = [
            e["msg"].replace("Input should", "it should").replace("a valid boolean", "True or False")
            for e in error.errors()
            if e["loc"][:1] == (key,)
        ]
        return "; ".join(dict.fromkeys(reasons)) or None
    return None
