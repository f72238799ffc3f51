"""Metrics by the names that people type: conditions on their values, and the direction in which each is better."""

import ast
import re
from collections.abc import Mapping, Sequence

from train.grid.expressions import FUNCTIONS, Expression, parse

MAIN = re.compile(r":main(?=$|\[)")  # `val_loss` is the statistic val_loss:main
STEP = "step"  # in a condition: the number of optimizer steps so far
# A metric whose name is no name of Python: val_loss:balance, val_accuracy[long].
ODD_NAME = re.compile(r"[A-Za-z_]\w*(?::[\w.-]+\[[\w-]+\]|:[\w.-]+|\[[\w-]+\])")
HIGHER_IS_BETTER = ("accuracy", "exact_match")
LOWER_IS_BETTER = ("loss", "bits_per_byte", "perplexity")


class Condition:
    """A condition on metrics, such as `val_accuracy >= 0.99 and step > 1000`, in the grammar of the Grid section.

    Raise ValueError if `text` is no condition.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        odd_names = {name: f"metric_{i}_" for i, name in enumerate(dict.fromkeys(ODD_NAME.findall(text)))}
        plain = ODD_NAME.sub(lambda found: odd_names[found[0]], text)
        nodes = ast.walk(parse(plain))
        names = {node.id for node in nodes if isinstance(node, ast.Name)} - FUNCTIONS.keys()
        self.expression = Expression(plain, names)
        self.names = {name: name for name in self.expression.names} | {
            name: odd for odd, name in odd_names.items()
        }  # metrics by their names in the expression
        if not self.names:
            raise ValueError("it names no metric, as val_accuracy >= 0.99 does")
        try:
            outcome = self.expression(dict.fromkeys(self.names, 1.0))
        except ValueError:  # such as a division by 0 at these values
            return
        if not isinstance(outcome, bool):
            raise ValueError("it is no comparison, as val_accuracy >= 0.99 is")

    def __call__(self, values: Mapping[str, float]) -> bool:
        """Return whether the condition holds for these values of metrics. It does not if one of them is missing."""
        if not all(name in values for name in self.names.values()):
            return False
        try:
            return self.expression({own: values[name] for own, name in self.names.items()}) is True
        except ValueError:  # no value at this moment, such as a division by 0
            return False


def latest_values(train_stats: Mapping[str, Sequence], step: int) -> dict[str, float]:
    """Return the latest value of every statistic of a run, by the names that people type."""
    values = {typed_name(name): stats[-1].v for name, stats in train_stats.items() if stats}
    return values | {STEP: step}


def typed_name(statistic: str) -> str:
    """Return the name that people type for a statistic: val_loss for stat/val_loss:main."""
    return MAIN.sub("", statistic.removeprefix("stat/"))


def metric_and_sign(text: str) -> tuple[str, int]:
    """Return the metric that `patience_metric` names, and 1 if a lower value is better, else -1.

    Raise ValueError if neither is known.
    """
    direction, _, name = text.strip().rpartition(" ")
    if direction in ("min", "max"):
        return name, 1 if direction == "min" else -1
    kind = re.split(r"[:\[]", name)[0]
    if direction or not kind.endswith(HIGHER_IS_BETTER + LOWER_IS_BETTER):
        raise ValueError(
            f"it is not known whether a higher or a lower value is better: write 'max {name}' or 'min {name}'"
        )
    return name, -1 if kind.endswith(HIGHER_IS_BETTER) else 1
