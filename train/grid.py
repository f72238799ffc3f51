"""Config text -> a list of runs, every mistake found first. Configs are read as Python literals; nothing in them runs."""

import ast
import difflib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from train.params import SECTION_OF, SECTIONS, Params, did_you_mean

MOST_ERRORS = 20  # shown at once
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


class Run(NamedTuple):
    """One point of the grid, and where its settings were made."""

    params: Params
    places: dict[str, Place]
    config: str  # the name of the file


class GridError(ValueError):
    """Everything that is wrong with a grid, one line each."""

    def __init__(self, errors: Iterable[str]) -> None:
        self.errors = list(dict.fromkeys(errors))
        hidden = len(self.errors) - MOST_ERRORS
        super().__init__("\n".join(self.errors[:MOST_ERRORS] + [f"... and {hidden} more"] * (hidden > 0)))


def config_files(name: str, folder: Path) -> list[Path]:
    """`name`.txt and every `name`-*.txt of `folder`, sorted."""
    stems = sorted(path.stem for path in folder.glob("*.txt"))
    chosen = [stem for stem in stems if stem == name or stem.startswith(f"{name}-")]
    if not chosen:
        names = {part for stem in stems for part in (stem, stem.split("-")[0])}
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]!r}" if near else ""
        raise GridError([f"--config={name}: no such config in {folder}{hint}? There are: {', '.join(stems)}"])
    return [folder / f"{stem}.txt" for stem in chosen]


def read_grid(
    files: list[Path],
    options: Mapping[str, str] | None = None,
    each: Callable[[Params], list[Params]] = lambda params: [params],
    problems: Callable[[list[Run]], Iterable[tuple[str, dict[str, Place]]]] = lambda runs: (),
    known: Iterable[str] = (),
    defaults: Callable[..., dict[str, Any]] = lambda **chosen: {},
) -> list[Run]:
    """The runs of all `files`; raises GridError with all mistakes at once, those `known` before among them.

    `options` are set in each file, {as typed: "key=value"}; `each` makes the runs of one grid point; `problems` finds
    what the text alone does not show, as (message, places of the settings); `defaults`, given what a grid point sets,
    says what its other fields are, where that is not what their classes say.
    """
    on_command_line = Errors()
    chosen = read_options(options or {}, on_command_line)
    runs, lines = [], [*known, *on_command_line.lines]
    for file in files:
        errors = Errors(on_command_line.fields)
        own = read_settings(file, errors)
        of_file = expand(list((own | chosen).values()), each, errors, file.stem, defaults)
        for message, places in problems(of_file):
            errors.add_located(message, places)
        runs += of_file
        lines += errors.lines
    if lines:
        raise GridError(lines)
    return runs


class Errors:
    """What is wrong with one config, and which fields that was about: none is blamed again for what follows from it."""

    def __init__(self, fields: Iterable[str] = ()) -> None:
        self.lines: list[str] = []
        self.fields = set(fields)

    def add(self, place: Place, message: str, key: str = "") -> None:
        self.lines.append(f"{place}: {message}")
        self.fields.add(key)

    def add_located(self, message: str, places: dict[str, Place]) -> None:
        """A message names the fields it is about as `field=value`; the places of these go in front."""
        named = fields_named(message)
        if not self.fields.intersection(named):
            self.lines.append(located(message, places))


def fields_named(message: str) -> list[str]:
    return [name for name in dict.fromkeys(re.findall(r"\b([a-z_]\w*)=", message)) if name in SECTION_OF]


def located(message: str, places: dict[str, Place]) -> str:
    """A message behind the places of the fields it names."""
    where = sorted({places[name] for name in fields_named(message) if name in places})
    return f"{' and '.join(map(str, where)) or 'defaults'}: {message}"


def read_settings(file: Path, errors: Errors) -> dict[str, Setting]:
    """The settings of one config."""
    source = f"{file.parent.name}/{file.name}"
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        errors.add(Place(source, 0), f"not UTF-8 text: {error}")
        return {}
    section: str | None = None
    settings: dict[str, Setting] = {}
    for line, node in read_statements(text, source, errors):
        place = Place(source, line)
        match node:
            case ast.Expr(value=ast.Name(id=name)):
                section = name if name in SECTIONS else None
                if section is None:
                    errors.add(place, f"there is no section {name!r}; {did_you_mean(name, SECTIONS)}")
                    section = ""  # what follows is not to be blamed for having no section
            case ast.Assign(targets=[ast.Name(id=key)], value=value):
                if section is None:
                    errors.add(place, f"{key!r} stands before any section ({', '.join(SECTIONS)})", key)
                elif section and (setting := read_setting(section, key, value, place, errors)):
                    if key in settings:
                        errors.add(place, f"{key!r} is set twice, first at {settings[key].place}", key)
                    settings.setdefault(key, setting)
            case _:
                errors.add(place, f"expected `key = value` or a section name ({', '.join(SECTIONS)})")
    return settings


def read_statements(text: str, source: str, errors: Errors) -> Iterator[tuple[int, ast.stmt]]:
    """The statements of a config text with their lines; one that is no Python is an error and hides no other."""
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
        yield from ((line + node.lineno - 1, node) for node in body)
        line += piece.count("\n")


def read_setting(section: str, key: str, node: ast.expr, place: Place, errors: Errors) -> Setting | None:
    if SECTION_OF.get(key) != section:
        elsewhere = f"it belongs under {SECTION_OF[key]}" if key in SECTION_OF else ""
        known = [name for name, owner in SECTION_OF.items() if owner == section]
        errors.add(place, f"{section} has no {key!r}; {elsewhere or did_you_mean(key, known)}", key)
        return None
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
    elif key not in SECTION_OF:
        errors.add(place, f"there is no field {key!r}; {did_you_mean(key, SECTION_OF)}", key)
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
    section = SECTION_OF[key]
    good: list[object] = []
    for item in axis:
        if item in good and type(item) is type(good[good.index(item)]):
            errors.add(place, f"{key} = {value!r} has {item!r} twice", key)
        elif reason := refusal(SECTIONS[section], key, item):
            hint = (
                "; a list is an axis, for one value take a tuple"
                if "tuple" in reason and axis is value
                else ""
            )
            errors.add(place, f"{section} cannot have {key} = {item!r}: {reason}{hint}", key)
        else:
            good.append(item)
    return Setting(key, good, place)


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


def expand(
    settings: list[Setting],
    each: Callable[[Params], list[Params]],
    errors: Errors,
    config: str,
    defaults: Callable[..., dict[str, Any]],
) -> list[Run]:
    """The full product of all axes; the axis named first varies slowest."""
    settings = [setting for setting in settings if setting.values]
    places = {setting.key: setting.place for setting in settings}
    runs = []
    for values in itertools.product(*(setting.values for setting in settings)):
        chosen = dict(zip(places, values, strict=True))
        try:
            chosen = defaults(**chosen) | chosen
        except ValueError as error:
            errors.add_located(str(error), places)
            continue
        try:
            params = Params(*(build(cls, chosen) for cls in SECTIONS.values()))
            runs += [Run(variant, places, config) for variant in each(params)]
        except ValidationError as error:
            for problem in error.errors():
                errors.add_located(problem["msg"].removeprefix("Value error, "), places)
        except ValueError as error:
            errors.add(Place("run_all in main.py", 0), str(error))
    return runs


def build(params_class: type, values: dict[str, Any]) -> Any:
    """`params_class` with those of `values` that are its own."""
    return params_class(
        **{key: value for key, value in values.items() if SECTION_OF[key] == params_class.__name__}
    )


def axes(runs: Iterable[tuple[str, Params]]) -> list[str]:
    """The fields that differ between runs (config, params) of one config, in the order of their sections."""
    seen: dict[str, dict[str, set[str]]] = {}
    for config, params in runs:
        for key, value in params.flat().items():
            seen.setdefault(key, {}).setdefault(config, set()).add(repr(value))
    return [key for key, values in seen.items() if any(len(of_config) > 1 for of_config in values.values())]
