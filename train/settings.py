"""Config text to settings, each with its place. Values are Python literals; nothing in a config runs."""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from train.params import SECTION_OF, SECTIONS, did_you_mean

GRID = "Grid"  # the section about the grid itself
GRID_KEYS = ("together", "skip", "derive", "variants")
VARIANT = "variant"  # chooses among the variants in an option, and names a run's own in an expression
HEADERS = (*SECTIONS, GRID)
# Where a header or `key = ...` begins; True, False or None alone on a line is the end of a list.
STATEMENT = re.compile(r"^(?=(?!True\b|False\b|None\b)[A-Za-z_]\w*[ \t]*(?:=|#|$))", re.MULTILINE)


class Place(NamedTuple):
    """Where a setting was made: a line of a config file, or a command line option (line 0)."""

    source: str
    line: int

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


class Setting(NamedTuple):
    """One `key = value`: the values of its axis (one, unless the config gives a list)."""

    key: str
    values: list[Any]
    place: Place
    is_list: bool = False


class Config(NamedTuple):
    """What one config file says: settings of fields, and the unread values of its Grid section."""

    source: str
    settings: dict[str, Setting]
    grid: dict[str, tuple[ast.expr, Place]]


class Errors:
    """What is wrong with one config, and which fields that was about: none is blamed again for what follows from it."""

    def __init__(self, fields: Iterable[str] = ()) -> None:
        self.lines: dict[str, None] = {}  # in order, each once
        self.fields = set(fields)
        self.notes: list[str] = []  # what is right, and perhaps not meant

    def add(self, place: Place, message: str, key: str = "") -> None:
        self.lines[f"{place}: {message}"] = None
        self.fields.add(key)

    def add_located(self, message: str, places: dict[str, Place]) -> None:
        """A message names the fields it is about as `field=value`; the places of these go in front."""
        named = fields_named(message)
        if not self.fields.intersection(named):
            self.lines[located(message, places)] = None


def fields_named(message: str) -> list[str]:
    return [name for name in dict.fromkeys(re.findall(r"\b([a-z_]\w*)=", message)) if name in SECTION_OF]


def located(message: str, places: dict[str, Place]) -> str:
    """A message behind the places of the fields it names."""
    where = sorted({places[name] for name in fields_named(message) if name in places})
    return f"{' and '.join(map(str, where)) or 'defaults'}: {message}"


def read_config(file: Path, errors: Errors) -> Config:
    """The settings of one config."""
    source = f"{file.parent.name}/{file.name}"
    config = Config(source, {}, {})
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        errors.add(Place(source, 0), f"not UTF-8 text: {error}")
        return config
    section: str | None = None
    for node in read_statements(text, source, errors):
        place = Place(source, node.lineno)
        match node:
            case ast.Expr(value=ast.Name(id=name)):
                section = name if name in HEADERS else None
                if section is None:
                    errors.add(place, f"there is no section {name!r}; {did_you_mean(name, HEADERS)}")
                    section = ""  # what follows is not to be blamed for having no section
            case ast.Assign(targets=[ast.Name(id=key)], value=value):
                if section is None:
                    errors.add(place, f"{key!r} stands before any section ({', '.join(HEADERS)})", key)
                elif section:
                    read_assignment(config, section, key, value, errors, place=place)
            case _:
                errors.add(place, f"expected `key = value` or a section name ({', '.join(HEADERS)})")
    return config


def read_statements(text: str, source: str, errors: Errors) -> Iterator[ast.stmt]:
    """The statements of a config text; one that is no Python is an error and hides no other."""
    line = 1
    for piece in STATEMENT.split(text):
        try:
            body = ast.parse(piece).body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            at = error.lineno or 1 if isinstance(error, SyntaxError) else 1
            reason = re.sub(r" \(.*\)$", "", error.msg if isinstance(error, SyntaxError) else str(error))
            shown = (piece.splitlines() or [""])[min(at, piece.count("\n") + 1) - 1].strip()
            key = match[0] if (match := re.match(r"\w+", piece)) else ""
            errors.add(Place(source, line + at - 1), f"syntax error in `{shown}`: {reason}", key)
            body = []
        yield from (ast.increment_lineno(node, line - 1) for node in body)
        line += piece.count("\n")


def read_assignment(
    config: Config, section: str, key: str, node: ast.expr, errors: Errors, *, place: Place
) -> None:
    """Adds what `key = ...` under `section` says to `config`."""
    known = GRID_KEYS if section == GRID else [k for k, owner in SECTION_OF.items() if owner == section]
    if key not in known:
        owner = SECTION_OF.get(key) or (GRID if key in GRID_KEYS else None)
        hint = f"it belongs under {owner}" if owner else did_you_mean(key, known)
        errors.add(place, f"{section} has no {key!r}; {hint}", key)
        return
    if section == GRID:
        if key in config.grid:
            errors.add(place, f"{key!r} is set twice, first at {config.grid[key][1]}", key)
        config.grid.setdefault(key, (node, place))
    elif setting := read_setting(key, node, place, errors):
        if key in config.settings:
            errors.add(place, f"{key!r} is set twice, first at {config.settings[key].place}", key)
        config.settings.setdefault(key, setting)


def read_setting(key: str, node: ast.expr, place: Place, errors: Errors) -> Setting | None:
    try:
        return check_setting(key, ast.literal_eval(node), place, errors)
    except (ValueError, TypeError, RecursionError, MemoryError):
        hint = f" (text needs quotes: {ast.unparse(node)!r})" if isinstance(node, ast.Name) else ""
        errors.add(place, f"{key} = {ast.unparse(node)} is no Python literal{hint}", key)
        return None


def read_options(options: Mapping[str, str], errors: Errors) -> dict[str, Setting]:
    """The settings made on the command line."""
    settings: dict[str, Setting] = {}
    for typed, option in options.items():
        if setting := read_option(option, Place(typed, 0), errors):
            if setting.key in settings:
                errors.add(setting.place, f"{setting.key!r} is set twice on the command line", setting.key)
            settings[setting.key] = setting
    return settings


def read_option(option: str, place: Place, errors: Errors) -> Setting | None:
    """A `key=value` of the command line; a value that is no Python literal is taken as text, since shells eat quotes."""
    key, equals, text = (part.strip() for part in option.partition("="))
    if not equals:
        errors.add(place, "expected key=value, as in --set lr=1e-3")
    elif key not in SECTION_OF and key != VARIANT:
        where = (
            f"edit {key} under {GRID} in the config" if key in GRID_KEYS else did_you_mean(key, SECTION_OF)
        )
        errors.add(place, f"there is no field {key!r}; {where}", key)
    else:
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            if text[:1] in tuple("[({"):
                errors.add(
                    place,
                    f'{text} is no Python literal; quote it for the shell: --set \'{key}=["a", "b"]\'',
                    key,
                )
                return None
            value = text
        return check_setting(key, value, place, errors)
    return None


def check_setting(key: str, value: object, place: Place, errors: Errors) -> Setting:
    """A list is an axis, anything else one value; each value is tried on its own, and left out if its field refuses it."""
    axis = value if isinstance(value, list) else [value]
    if not axis:
        errors.add(place, f"{key} = [] is an axis without values", key)
    section = SECTION_OF.get(key, "")
    good: list[object] = []
    for item in axis:
        if item in good and type(item) is type(good[good.index(item)]):
            errors.add(place, f"{key} = {value!r} has {item!r} twice", key)
        elif section and (reason := refusal(SECTIONS[section], key, item)):
            hint = (
                "; a list is an axis, for one value take a tuple"
                if "tuple" in reason and axis is value
                else ""
            )
            errors.add(place, f"{section} cannot have {key} = {item!r}: {reason}{hint}", key)
        else:
            good.append(item)
    return Setting(key, good, place, is_list=axis is value)


def refusal(params_class: type, key: str, value: object) -> str | None:
    """Why a field of `params_class` cannot have this value, apart from what other fields say; None: it can."""
    try:
        params_class(**{key: value})
    except ValidationError as error:
        reasons = [
            e["msg"].replace("Input should", "it should") for e in error.errors() if e["loc"][:1] == (key,)
        ]
        return "; ".join(dict.fromkeys(reasons)) or None
    return None
