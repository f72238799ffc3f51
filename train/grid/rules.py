"""The Grid section of a config: axes that advance together, points left out, derived fields, variants, equal sizes."""

import ast
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from common.text import did_you_mean
from train.grid.config_text import VARIANT, Config, Errors, Place, Setting, read_setting
from train.grid.expressions import Expression
from train.grid.params import SECTION_OF, field_hint

TOGETHER = 'together takes a list of tuples of fields, as in [("dim", "n_heads")]'
SKIP = 'skip takes a list of conditions, as in ["dim == 512 and lr > 1e-2"]'
DERIVE = 'derive takes an expression for each field, as in {"n_heads": "dim // 64"}'
MATCH = ("params", "flops")  # sizes that runs can have in common
VARIANTS = 'variants takes fields for each name, as in {"gru": {"layer_architecture": "torch-gru"}}'


class Together(NamedTuple):
    """Fields whose lists advance together."""

    fields: list[str]
    place: Place


class Rule(NamedTuple):
    """An expression and its place: a condition of `skip`, or the formula of a derived field."""

    expression: Expression
    place: Place


class MatchRule(NamedTuple):
    """The size that the runs of a group have in common."""

    what: str
    place: Place


class VariantSettings(NamedTuple):
    """The settings of one variant. A grid without variants has a single one, without a name or settings."""

    name: str | None
    settings: dict[str, Setting]


class Rules(NamedTuple):
    """The valid part of a config's Grid section."""

    together: list[Together]
    skip: list[Rule]
    derive: dict[str, Rule]  # in order: each may name those before it
    variants: list[VariantSettings]
    match: MatchRule | None = None


def read_rules(config: Config, options: Mapping[str, Setting], errors: Errors) -> Rules:
    """Return the valid part of the Grid section of `config`. `options` are the settings of the command line."""
    reader = Reader(config, options, errors)
    derive = reader.derive()
    variants = reader.variants(derive)
    rules = Rules(reader.together(derive), reader.skip(), derive, variants, reader.match())
    if VARIANT in options and VARIANT not in SECTION_OF:
        rules = rules._replace(variants=reader.select(variants, options[VARIANT]))
    return rules if rules.variants else rules._replace(variants=[VariantSettings(None, {})])


class Reader:
    """Reader of one Grid section. Invalid parts are left out, and their errors are added to `errors`."""

    def __init__(self, config: Config, options: Mapping[str, Setting], errors: Errors) -> None:
        self.config = config
        self.options = options
        self.errors = errors
        # Names that expressions may use.
        self.known = [*SECTION_OF, *([VARIANT] if "variants" in config.grid else [])]

    def together(self, derive: Mapping[str, Rule]) -> list[Together]:
        groups: list[Together] = []
        taken: set[str] = set()
        for node, place in self.items("together", TOGETHER):
            elements = node.elts if isinstance(node, ast.Tuple | ast.List) else []
            names = [name for element in elements if (name := text_of(element)) is not None]
            if len(names) < 2 or len(names) < len(elements):
                self.errors.add(place, f"{TOGETHER}; not {ast.unparse(node)}")
                continue
            for name in names:
                if not self.is_field(name, "together", place):
                    continue
                if name in derive:
                    self.errors.add(
                        place, f"{name!r} is in together, but derived at {derive[name].place}", name
                    )
                if name in taken:
                    self.errors.add(place, f"{name!r} is in together twice", name)
                taken.add(name)
            groups.append(Together(names, place))
        return groups

    def skip(self) -> list[Rule]:
        rules: dict[str, Rule] = {}
        for node, place in self.items("skip", SKIP):
            if (text := text_of(node)) is None:
                self.errors.add(place, f"{SKIP}; not {ast.unparse(node)}")
            elif text in rules:
                self.errors.add(place, f"skip has {text!r} twice")
            elif expression := self.expression(text, "skip", place):
                rules[text] = Rule(expression, place)
        return list(rules.values())

    def derive(self) -> dict[str, Rule]:
        """Return the rules of derived fields. A field that the command line sets is not derived."""
        pairs = list(self.pairs("derive", DERIVE))
        pairs = [pair for pair in pairs if self.is_field(pair[0], "derive", pair[2])]
        to_come = [key for key, *_ in pairs]
        rules: dict[str, Rule] = {}
        for key, node, place in pairs:
            if key in self.config.settings:
                at = self.config.settings[key].place
                self.errors.add(place, f"{key!r} is derived, but also set at {at}", key)
            if (text := text_of(node)) is None:
                self.errors.add(place, f"{DERIVE}; {key!r} has {ast.unparse(node)}, which is not text", key)
            elif expression := self.expression(text, f"derive {key!r}", place, key):
                if early := [name for name in expression.names if name in to_come]:
                    needs = (
                        "itself"
                        if early[0] == key
                        else f"{early[0]!r}, which is derived after it: put that first"
                    )
                    self.errors.add(place, f"derive {key!r} = {text!r} needs {needs}", key)
                else:
                    rules[key] = Rule(expression, place)
            to_come.remove(key)
        return {key: rule for key, rule in rules.items() if key not in self.options}

    def variants(self, derive: Mapping[str, Rule]) -> list[VariantSettings]:
        before = len(self.errors.lines)
        found: list[VariantSettings] = []
        for name, node, place in self.pairs("variants", VARIANTS):
            if not isinstance(node, ast.Dict):
                self.errors.add(place, f"{VARIANTS}; {name!r} has {ast.unparse(node)}")
                continue
            settings: dict[str, Setting] = {}
            for key, value, at in self.entries(node, f"variant {name!r}", VARIANTS):
                if self.is_field(key, f"variant {name!r}", at):
                    self.refuse_second_owner(key, name, at, derive)
                    if setting := read_setting(key, value, at, self.errors):
                        settings[key] = setting
            same = [v.name for v in found if texts_of_settings(v.settings) == texts_of_settings(settings)]
            if same and len(self.errors.lines) == before:
                self.errors.add(place, f"the variants {same[0]!r} and {name!r} set the same")
            found.append(VariantSettings(name, settings))
        if "variants" in self.config.grid and not found and len(self.errors.lines) == before:
            self.errors.add(self.config.grid["variants"][1], "variants = {} is an axis without values")
        if len(self.errors.lines) > before:
            self.errors.fields.add(VARIANT)
        return found

    def match(self) -> MatchRule | None:
        if "match" not in self.config.grid:
            return None
        node, place = self.config.grid["match"]
        if (what := text_of(node)) in MATCH:
            return MatchRule(str(what), place)
        self.errors.add(place, f"match takes {' or '.join(map(repr, MATCH))}, not {ast.unparse(node)}")
        return None

    def refuse_second_owner(self, key: str, variant: str, place: Place, derive: Mapping[str, Rule]) -> None:
        """Add an error if a field of a variant is also set elsewhere: it would be unclear which value holds."""
        if key in self.config.settings:
            at = self.config.settings[key].place
            self.errors.add(place, f"{key!r} is set by variant {variant!r}, but also at {at}", key)
        if key in derive:
            self.errors.add(
                place, f"{key!r} is set by variant {variant!r}, but also derived at {derive[key].place}", key
            )
        if key in self.options and key not in self.errors.fields:
            typed = self.options[key].place
            said = f"{key!r} is set by the variants at {place}: change it there"
            self.errors.add(typed, said, key)

    def select(self, variants: list[VariantSettings], setting: Setting) -> list[VariantSettings]:
        """Return the variants that --set variant=... names, in its order."""
        by_name = {variant.name: variant for variant in variants}
        for name in setting.values:
            if name not in by_name and VARIANT not in self.errors.fields:
                names = [str(known) for known in by_name]
                there = did_you_mean(str(name), names) if names else f"{self.config.source} has none"
                self.errors.add(setting.place, f"there is no variant {name!r}; {there}")
        return [by_name[name] for name in setting.values if name in by_name]

    def items(self, key: str, expected: str) -> Iterator[tuple[ast.expr, Place]]:
        """Yield the elements of the list `key`, with their places."""
        node, place = self.config.grid.get(key, (ast.List([]), None))
        if not isinstance(node, ast.List):
            assert place is not None
            self.errors.add(place, f"{expected}; not {ast.unparse(node)}")
            return
        yield from ((item, self.place(item)) for item in node.elts)

    def pairs(self, key: str, expected: str) -> Iterator[tuple[str, ast.expr, Place]]:
        """Yield the keys and values of the dict `key`, with their places."""
        node, place = self.config.grid.get(key, (ast.Dict([], []), None))
        if not isinstance(node, ast.Dict):
            assert place is not None
            self.errors.add(place, f"{expected}; not {ast.unparse(node)}")
            return
        yield from self.entries(node, key, expected)

    def entries(self, node: ast.Dict, what: str, expected: str) -> Iterator[tuple[str, ast.expr, Place]]:
        seen = set()
        for key, value in zip(node.keys, node.values, strict=True):
            place = self.place(key or value)
            if key is None or not (name := text_of(key)):
                shown = f"**{ast.unparse(value)}" if key is None else ast.unparse(key)
                self.errors.add(place, f"{expected}; {shown} is no name")
            elif name in seen:
                self.errors.add(place, f"{what} has {name!r} twice", name)
            else:
                seen.add(name)
                yield name, value, place

    def place(self, node: ast.expr) -> Place:
        return Place(self.config.source, node.lineno)

    def is_field(self, name: str, what: str, place: Place) -> bool:
        if name not in SECTION_OF:
            hint = field_hint(name, SECTION_OF)
            self.errors.add(place, f"{what} names {name!r}, which is no field; {hint}", name, is_misread=True)
        return name in SECTION_OF

    def expression(self, text: str, what: str, place: Place, key: str = "") -> Expression | None:
        try:
            return Expression(text, self.known)
        except ValueError as error:
            self.errors.add(place, f"{what}: {text!r}: {error}", key)
            return None


def text_of(node: ast.expr) -> str | None:
    """Return the text of a string literal, or None for any other expression."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def texts_of_settings(settings: Mapping[str, Setting]) -> dict[str, str]:
    return {key: repr(setting.values) for key, setting in settings.items()}
