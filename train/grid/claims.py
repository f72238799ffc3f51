"""The Expect section of a config: claims about the results of its runs, to be judged over their seeds.

    claims = {"two layers can": "val_accuracy(n_layers=2) >= 0.95"}

A claim compares numbers, in the grammar of the Grid section. A call in it picks runs: the name is that of a column of
`runs()`, and the keywords are values of fields. This file imports no torch.
"""

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from train.grid.config_text import VARIANT, Config, Errors, Place, value_of
from train.grid.expressions import FUNCTIONS, Expression, parse, source_of
from train.grid.params import MEASURING, SECTION_OF, field_hint
from train.grid.rules import text_of
from train.grid.run import Run

CLAIMS = (
    'claims takes an expression for each name, as in {"two layers can": "val_accuracy(n_layers=2) >= 0.95"}'
)
COST_UNITS = ("steps", "flops", "seconds")
# Called with a condition: steps_to("val_accuracy >= 0.95"). The column of such a call matches TIME_TO.
TIMES = tuple(f"{unit}_to" for unit in COST_UNITS)
TIME_TO = re.compile(rf"({'|'.join(COST_UNITS)})_to\s*:\s*(\S+?)\s*(<=|>=|<|>)\s*(\S+)")
# Called with two columns: how the second changes with the first, over all runs that are picked.
TRENDS = ("slope", "spearman")
# Called with a column: its largest value minus the smallest, over all runs that are picked.
SPREADS = ("spread",)
SEED = "random_seed"
TUNED = ("lr",)  # a pick takes the best of the values that the grid tries
OPERATORS_OF_CLAIMS = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}


@dataclass(frozen=True)
class Pick:
    """The number that a call in a claim stands for: a column of the runs with these values of fields."""

    text: str
    columns: tuple[str, ...]  # two for a trend
    fields: Mapping[str, object]
    function: str = ""  # "" for the value of the column, else one of TRENDS or SPREADS
    log: bool = False  # of a slope: both columns as logarithms

    def takes(self, values: Mapping[str, object]) -> bool:
        """Return True if a run with these values of fields is picked."""
        return all(name in values and is_value(values[name], value) for name, value in self.fields.items())


def is_value(found: object, wanted: object) -> bool:
    """Return True if a field has the wanted value. A dict may have further keys."""
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        return all(key in found and found[key] == value for key, value in wanted.items())
    return found == wanted


class Comparison(NamedTuple):
    """Two numbers of a claim, `left` < or > `right`. Each is an expression over picks."""

    left: Expression
    operator: str
    right: Expression


class Claim(NamedTuple):
    """A claim. It holds if all its comparisons do."""

    name: str
    text: str
    place: Place
    picks: Mapping[str, Pick]  # by their names in the expressions
    comparisons: Sequence[Comparison]


class Expectations(NamedTuple):
    """The Expect section of a config."""

    source: str = ""  # the paper that the claims are from
    minutes: float | None = None  # that the grid takes on two CPU cores
    claims: Sequence[Claim] = ()
    topic: str = ""  # heading in lists of published results


def read_expectations(config: Config, errors: Errors) -> Expectations:
    """Return the valid part of the Expect section of `config`. Errors are added to `errors`."""
    topic, source = (text_in(config, key, errors) for key in ("topic", "source"))
    minutes = literal_in(config, "minutes", errors)
    if isinstance(minutes, bool) or not isinstance(minutes, int | float | None):
        errors.add(config.expect["minutes"][1], f"minutes takes a number, not {minutes!r:.80}")
    claims = list(read_claims(config, errors))
    return Expectations(source, minutes if isinstance(minutes, int | float) else None, claims, topic)


def text_in(config: Config, key: str, errors: Errors) -> str:
    value = literal_in(config, key, errors)
    if not isinstance(value, str | None):
        errors.add(config.expect[key][1], f"{key} takes text, not {value!r:.80}")
    return str(value or "")


def literal_in(config: Config, key: str, errors: Errors) -> object:
    if key not in config.expect:
        return None
    node, place = config.expect[key]
    try:
        return value_of(node)
    except (ValueError, TypeError, ArithmeticError):
        errors.add(place, f"{key} = {source_of(node)} is no Python literal")
        return None


def read_claims(config: Config, errors: Errors) -> Iterator[Claim]:
    node, place = config.expect.get("claims", (ast.Dict([], []), Place(config.source, 0)))
    if not isinstance(node, ast.Dict):
        errors.add(place, f"{CLAIMS}; not {source_of(node)}")
        return
    names = set[str]()
    for key, value in zip(node.keys, node.values, strict=True):
        at = Place(config.source, (key or value).lineno)
        name, text = text_of(key) if key else None, text_of(value)
        if not name or text is None:
            errors.add(at, f"{CLAIMS}; not {source_of(key or value)}: {source_of(value)}")
        elif name in names:
            errors.add(at, f"claims has {name!r} twice")
        else:
            names.add(name)
            try:
                yield read_claim(name, text, at)
            except ValueError as error:
                errors.add(at, f"claim {name!r}: {error}", is_misread=True)


def read_claim(name: str, text: str, place: Place) -> Claim:
    """Return the claim that `text` makes. Raise ValueError if it is none."""
    tree = parse(text, with_keywords=True).body
    if not isinstance(tree, ast.Compare) or any(type(op) not in OPERATORS_OF_CLAIMS for op in tree.ops):
        allowed = ", ".join(OPERATORS_OF_CLAIMS.values())
        raise ValueError(f"`{text}` is no comparison; write two numbers with one of {allowed} between them")
    picks: dict[str, Pick] = {}
    sides = [with_names(side, picks) for side in (tree.left, *tree.comparators)]
    if not picks:
        raise ValueError(
            f"`{text}` calls no column; brackets pick the runs, as in val_loss(n_layers=2) or val_loss()"
        )
    expressions = [Expression(ast.unparse(side), picks) for side in sides]
    operators = [OPERATORS_OF_CLAIMS[type(op)] for op in tree.ops]
    pairs = zip(expressions, operators, expressions[1:], strict=False)
    return Claim(name, text, place, picks, [Comparison(*pair) for pair in pairs])


def with_names(node: ast.expr, picks: dict[str, Pick]) -> ast.expr:
    """Return a side of a claim with a name in place of each pick. The picks are added to `picks`, by name."""

    class Namer(ast.NodeTransformer):
        def visit_Call(self, call: ast.Call) -> ast.expr:
            assert isinstance(call.func, ast.Name)
            if call.func.id in FUNCTIONS and not call.keywords:
                self.generic_visit(call)
                return call
            pick = read_pick(call, call.func.id)
            name = next((known for known, other in picks.items() if other == pick), f"pick_{len(picks)}")
            picks[name] = pick
            return ast.copy_location(ast.Name(name, ast.Load()), call)

    return Namer().visit(node)


def read_pick(call: ast.Call, name: str) -> Pick:
    """Return the pick that a call of `name` stands for. Raise ValueError if it is none."""
    text = ast.unparse(call)
    fields = {str(keyword.arg): value_of(keyword.value) for keyword in call.keywords}
    texts = [text_of(argument) for argument in call.args]
    if None in texts:
        raise ValueError(f"`{text}`: values need the names of their fields, as in {name}(n_layers=2)")
    words = [str(one) for one in texts]
    log = fields.pop("log", False) if name == "slope" else False
    for field in fields:
        if field not in SECTION_OF and field != VARIANT:
            raise ValueError(f"`{text}`: there is no field {field!r}; {field_hint(field, SECTION_OF)}")
    if name in (*TRENDS, *SPREADS):
        n_columns = 2 if name in TRENDS else 1
        if len(words) != n_columns:
            needs = 'two columns, as in slope("n_params", "val_loss")' if n_columns == 2 else "one column"
            raise ValueError(f"`{text}`: {name} takes {needs}")
        return Pick(text, tuple(words), fields, name, bool(log))
    if len(words) > 1:
        raise ValueError(f"`{text}` has several texts; a column takes at most the name of an evaluation set")
    if name in TIMES:
        column = f"{name}: {words[0] if words else ''}"
        if not TIME_TO.fullmatch(column):
            raise ValueError(f'`{text}`: {name} takes a condition, as in {name}("val_accuracy >= 0.95")')
        return Pick(text, (column,), fields)
    return Pick(text, (f"{name}[{words[0]}]" if words else name,), fields)


def check_claims(claims: Sequence[Claim], runs: Sequence[Run], errors: Errors) -> None:
    """Add an error for every pick of `claims` that none of the `runs` has, or several have that are not the same but for seeds."""
    values = [fields_and_variant(run) for run in runs]
    for claim in claims:
        for pick in claim.picks.values():
            if problem := problem_of_pick(pick, values):
                errors.add(claim.place, f"claim {claim.name!r}: `{pick.text}` {problem}")


def fields_and_variant(run: Run) -> dict[str, object]:
    """Return the values by which a claim picks a run."""
    return run.params.flat() | {VARIANT: run.variant}


def problem_of_pick(pick: Pick, values: Sequence[Mapping[str, object]]) -> str | None:
    """Return why a pick is not clear in a grid whose runs have these `values` of fields, or None."""
    picked = [of_run for of_run in values if pick.takes(of_run)]
    if not picked:
        return f"picks no run; {values_of_grid(pick, values)}"
    if pick.function:
        return None
    left_open = {
        name: list(dict.fromkeys(repr(of_run[name]) for of_run in picked))
        for name in SECTION_OF
        if name not in (SEED, *TUNED) and name not in MEASURING
    }
    several = {name: found for name, found in left_open.items() if len(found) > 1}
    if VARIANT not in pick.fields and len({of_run[VARIANT] for of_run in picked}) > 1:
        several = {VARIANT: list(dict.fromkeys(repr(of_run[VARIANT]) for of_run in picked))}
    if not several:
        return None
    name, found = next(iter(several.items()))
    return f"picks runs with several values of {name} ({', '.join(found[:5])}); add {name}={found[0]}"


def values_of_grid(pick: Pick, values: Sequence[Mapping[str, object]]) -> str:
    """Return which values the grid has of the first field that is wrong in a pick."""
    for name, value in pick.fields.items():
        found = list(dict.fromkeys(repr(of_run.get(name)) for of_run in values))
        if repr(value) not in found:
            return f"{name} is {', '.join(found[:10])} here"
    return "no run has all these values"
