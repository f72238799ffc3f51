"""Expressions of a config's Grid section: arithmetic and comparisons of fields.

simpleeval evaluates them; they are never run as Python.
"""

import ast
import re
from collections.abc import Callable, Collection, Mapping

from simpleeval import DEFAULT_OPERATORS, EvalWithCompoundTypes

from common.text import did_you_mean
from train.grid.params import field_hint

MAX_EXPRESSION_CHARS = 1_000  # characters of an expression
MAX_BITS = 1_000  # of an integer that ** gives
MAX_DIGITS = 20  # second argument of `round`

# The syntax of an expression. simpleeval would evaluate more, so everything else is refused beforehand.
SYNTAX = (
    *(ast.Expression, ast.Constant, ast.Name, ast.Load, ast.Tuple, ast.List, ast.Subscript),
    *(ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow),
    *(ast.UnaryOp, ast.USub, ast.UAdd, ast.Not, ast.BoolOp, ast.And, ast.Or, ast.IfExp, ast.Call),
    *(ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.In, ast.NotIn, ast.Is, ast.IsNot),
)
ALLOWED = (
    "fields by name, numbers, text, tuples, True, False, None, + - * / // % **, comparisons, "
    "in, and, or, not, if else, [ ], min, max, abs, round, int, float"
)


def numbers_only(operator: Callable[[float, float], float]) -> Callable[[object, object], float]:
    """Restrict an operator to numbers: with text and tuples it could build values of any size."""

    def checked(a: object, b: object) -> float:
        if not isinstance(a, int | float) or not isinstance(b, int | float):
            raise TypeError(f"it needs two numbers, not {a!r:.40} and {b!r:.40}")
        return operator(a, b)

    return checked


def power(a: float, b: float) -> float:
    if isinstance(a, int) and isinstance(b, int) and a.bit_length() * b > MAX_BITS:
        raise ValueError(f"{a!r:.40} ** {b!r:.40} is too large")
    try:
        result = a**b
    except OverflowError:
        raise ValueError(f"{a} ** {b} is too large") from None
    if isinstance(result, complex):
        raise ValueError(f"{a} ** {b} is not a real number")
    return result


def rounded(x: float, digits: int | None = None) -> float:
    if digits is not None and abs(digits) > MAX_DIGITS:
        raise ValueError(f"round takes up to {MAX_DIGITS} digits, not {digits!r:.40}")
    return round(x, digits)


OPERATORS = DEFAULT_OPERATORS | {
    ast.Mult: numbers_only(DEFAULT_OPERATORS[ast.Mult]),
    ast.Mod: numbers_only(DEFAULT_OPERATORS[ast.Mod]),
    ast.Pow: numbers_only(power),
}
# Operators allowed between number literals outside the Grid section.
ARITHMETIC: dict[type[ast.operator], Callable[[float, float], float]] = {
    op: OPERATORS[op] for op in (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow)
}
FUNCTIONS = {"min": min, "max": max, "abs": abs, "round": rounded, "int": int, "float": float}


class Expression:
    """An expression over `known` names. Raise ValueError if `text` is not a valid expression."""

    def __init__(self, text: str, known: Collection[str]) -> None:
        self.text = text
        self.tree = parse(text)
        names = [node.id for node in ast.walk(self.tree) if isinstance(node, ast.Name)]
        functions = [
            node.func.id
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        ]
        for name in functions:
            if name not in FUNCTIONS:
                raise ValueError(f"there is no function {name!r}; {did_you_mean(name, FUNCTIONS)}")
            names.remove(name)
        for name in names:
            if name not in known:
                raise ValueError(unknown_field(name, known))
        self.names = list(dict.fromkeys(names))
        # By the values of its names, of which a grid has few combinations.
        self.outcomes: dict[tuple[str, ...], object] = {}

    def __call__(self, values: Mapping[str, object]) -> object:
        """Return the value of the expression for these `values` of names. Raise ValueError if it has none."""
        key = tuple(repr(values[name]) for name in self.names)
        if key not in self.outcomes:
            self.outcomes[key] = self.evaluate(values)
        outcome = self.outcomes[key]
        if isinstance(outcome, ValueError):
            raise outcome
        return outcome

    def evaluate(self, values: Mapping[str, object]) -> object:
        own = {name: values[name] for name in self.names}
        evaluator = EvalWithCompoundTypes(OPERATORS, FUNCTIONS.copy(), own, allowed_attrs={})
        try:
            return evaluator.eval(self.text, self.tree.body)
        except Exception as error:  # arithmetic raises many kinds
            return ValueError(f"{type(error).__name__}{self.at(values)}: {error}")

    def at(self, values: Mapping[str, object]) -> str:
        """Return the values of the expression's names as text, for an error."""
        shown = ", ".join(f"{name} {values[name]!r}" for name in self.names)
        return f" at {shown}" if shown else ""


def parse(text: str, with_keywords: bool = False) -> ast.Expression:
    """Return the syntax tree of an expression. Raise ValueError if it contains anything that is not allowed.

    `with_keywords` allows calls to have some.
    """
    if len(text) > MAX_EXPRESSION_CHARS:
        raise ValueError(f"it is longer than {MAX_EXPRESSION_CHARS:,} characters")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else f"{type(error).__name__} {error}"
        hint = "; to compare write ==" if re.search(r"[^=<>!]=[^=]", text) else ""
        raise ValueError(f"syntax error: {re.sub(r' [(].*[)]$', '', reason)}{hint}") from None
    for node in ast.walk(tree):
        if not (is_allowed(node) or (with_keywords and is_of_call(node))):
            raise ValueError(f"`{source_of(node)}` is not allowed in an expression; allowed are {ALLOWED}")
    return tree


def is_allowed(node: ast.AST) -> bool:
    match node:
        case ast.Constant(value=value):
            return value is None or isinstance(value, int | float | str)
        case ast.Call(func=function, keywords=keywords):
            return isinstance(function, ast.Name) and not keywords
        case ast.Compare(ops=operators, comparators=values) if has_identity(operators):
            return all(isinstance(value, ast.Constant) and value.value is None for value in values)
    return isinstance(node, SYNTAX)


def is_of_call(node: ast.AST) -> bool:
    """Return True for a call of a name, with or without keywords, and for a keyword or a dict."""
    if isinstance(node, ast.keyword):
        return node.arg is not None
    return isinstance(node, ast.Dict) or (isinstance(node, ast.Call) and isinstance(node.func, ast.Name))


def has_identity(operators: list[ast.cmpop]) -> bool:
    """Return True for `is` and `is not`, which may only compare with None."""
    return any(isinstance(operator, ast.Is | ast.IsNot) for operator in operators)


def source_of(node: ast.AST) -> str:
    try:
        return ast.unparse(node)[:80].strip() or type(node).__name__
    except (ValueError, RecursionError):
        return type(node).__name__


def unknown_field(name: str, known: Collection[str]) -> str:
    hint = field_hint(name, [*known, *FUNCTIONS])
    quoted = f"; text needs quotes: {name!r}" if hint.startswith("there are") else f"; {hint}"
    return f"there is no field {name!r}{quoted}"
