"""Checks of one part. A check returns None, or raises Wrong with a sentence for the student."""

import inspect
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from learn.checking.course import Case, Check, NotTried, Wrong
from learn.checking.explain import equal
from learn.checking.mistakes import known_mistake, variants
from learn.checking.parity import SPREAD, cast, check_gradients, ready, same_outputs
from learn.checking.spy import Spy

MAY_CONTAIN = (nn.Linear, nn.ModuleList, nn.ModuleDict, nn.Sequential, nn.Identity)


def own(case: Case) -> None:
    """Raise Wrong unless the class or function exists and is the student's own code."""
    name, home = case.name, case.mine.__name__
    thing = getattr(case.mine, name, None)
    if thing is None:
        raise Wrong(f"there is no {name} in the file: put the stub back, and keep its name.")
    bases = (
        [base for base in inspect.getmro(thing) if base not in (nn.Module, object)]
        if inspect.isclass(thing)
        else [thing]
    )
    for base in bases:
        if base.__module__ != home:
            raise Wrong(f"{name} comes from {base.__module__}.{base.__name__}: write it yourself here.")
    made = case.part.make(case.mine)
    for inner in made.modules() if isinstance(made, nn.Module) else ():
        kind = type(inner)
        if (
            kind not in MAY_CONTAIN
            and kind.__module__ not in (home, case.solution.__name__)
            and not is_course(kind)
        ):
            raise Wrong(f"{name} contains a {kind.__module__}.{kind.__name__}: write that yourself here.")


def is_course(kind: type) -> bool:
    """Return True if a class is defined in learn/, such as the LayerNorm that BERT's file imports."""
    return kind.__module__.startswith("learn.")


def has(**kinds: Any) -> Check:
    """Return a check of attributes. The value of each is a class, the name of another part, or a parameter's shape."""

    def check(case: Case) -> None:
        made = case.part.make(case.mine)
        for name, kind in kinds.items():
            what = f"the attribute `{name}` of {case.name}"
            if not hasattr(made, name):
                raise Wrong(f"{what} is missing; the docstring lists all attributes.")
            value = getattr(made, name)
            if isinstance(kind, list):
                is_parameter(what, value, kind)
            else:
                expected = getattr(case.mine, kind) if isinstance(kind, str) else kind
                if not isinstance(value, expected):
                    raise Wrong(f"{what} is of type {type(value).__name__}, expected {expected.__name__}.")

    return check


def is_parameter(what: str, value: object, shape: list[int]) -> None:
    if not isinstance(value, nn.Parameter):
        raise Wrong(f"{what} is of type {type(value).__name__}: only an nn.Parameter is trained and saved.")
    if list(value.shape) != shape:
        raise Wrong(f"{what} has shape {list(value.shape)}, expected {shape}.")


def seeded(case: Case) -> None:
    """Raise Wrong unless one seed gives the same weights as the solution: names, shapes, values, order of draws."""
    mine, right = made_weights(case, case.mine), made_weights(case, case.solution)
    same_names(case.name, mine, right)
    if all(equal(mine[name], right[name]) for name in right):
        return
    for mistake, module in variants(case):
        other = made_weights(case, module)
        if all(name in other and equal(mine[name], other[name]) for name in mine):
            raise Wrong(f"it looks like {mistake.says}.")
    for name, value in right.items():
        explain_weights(name, mine[name], value)


def made_weights(case: Case, module: Any) -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {name: p.detach() for name, p in case.part.make(module).named_parameters()}


def same_names(part: str, mine: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    for name, value in mine.items():
        if name not in right:
            raise Wrong(f"{part} has a parameter `{name}` {list(value.shape)} that does not belong there.")
    for name, value in right.items():
        if name not in mine:
            why = (
                "is there a bias=False?"
                if name.endswith(".bias")
                else "is it a plain tensor, or in a plain list?"
            )
            raise Wrong(f"{part} has no parameter `{name}`: {why}")
        if mine[name].shape != value.shape:
            raise Wrong(f"`{name}` has shape {list(mine[name].shape)}, expected {list(value.shape)}.")


def explain_weights(name: str, mine: Tensor, right: Tensor) -> None:
    """Raise Wrong if a parameter starts with other values, and say whether its constant, spread or draws are wrong."""
    if equal(mine, right):
        return
    if not right.std() > 0:
        raise Wrong(f"`{name}` should start as {float(right.flatten()[0]):g} everywhere.")
    a, b = float(mine.std()), float(right.std())
    if abs(a / b - 1) > 0.2:
        raise Wrong(f"`{name}` starts with a standard deviation of {a:.3g}, expected about {b:.2g}.")
    raise Wrong(
        f"`{name}` starts with the right spread, but other numbers: draw random numbers in the order of the "
        "docstring."
    )


def by_hand(case: Case) -> None:
    """Call the student's class or function on test inputs.

    Raise Wrong if a ready-made operator, the solution or other people's code did the work.
    """
    made = ready(case, 0.0, torch.float32)
    for args in case.part.inputs():
        with Spy() as spy:
            made(*cast(args, torch.float32))
        honest(case, spy)


def by_hand_in(run: Callable[[Any], object], allowed: tuple[str, ...] = ()) -> Check:
    """Return a check like `by_hand`, for the work of `run` with the student's file.

    `allowed` lists places, by the spy's names, and parts of operator names.
    """

    def check(case: Case) -> None:
        with Spy() as spy:
            run(case.mine)
        honest(case, spy, allowed)

    return check


def honest(case: Case, spy: Spy, allowed: tuple[str, ...] = ()) -> None:
    """Raise Wrong if the spy recorded work by ready-made operators, other people's code or the solution."""
    for operator, what in spy.cheats().items():
        if not any(part in operator for part in allowed):
            raise Wrong(f"right, but {what} ran (torch's operator `{operator}`): write that yourself here.")
    for place, name in spy.work_of_others():
        if place not in allowed:
            raise Wrong(f"right, but {name} of {place} did the work: write that yourself here.")
    if (
        case.solution.__file__ != getattr(case.mine, "__file__", None)
        and (case.solution.__file__, case.name) in spy.code
    ):
        raise Wrong(f"right, but {case.name} of the solution did the work: write that yourself here.")


def agrees(
    compute: Callable[[Any], Any],
    right: Callable[[], Any],
    differ: Callable[[Any, Any], str | None],
    pairs: bool = False,
) -> Check:
    """Return a check that `compute`, called on the student's file, returns the same value as `right()`.

    `differ(mine, right)` describes the difference in words, or returns None if there is none. A known mistake is
    recognized by its value or its exception. With `pairs`, two mistakes at once are tried as well. Set it only if values
    are unlikely to agree by chance.
    """
    right = cache(right)

    @cache
    def by_variant(module: ModuleType) -> tuple[Any, Exception | None]:
        return attempt(compute, module)

    def check(case: Case) -> None:
        mine, stopped = attempt(compute, case.mine)
        expected = right()
        says = None if stopped else differ(mine, expected)
        if not stopped and says is None:
            return

        def alike(module: ModuleType) -> bool:
            other, also_stopped = by_variant(module)
            if stopped or also_stopped:
                return same_exception(stopped, also_stopped)
            return differ(mine, other) is None and differ(other, expected) is not None

        if mistake := known_mistake(case, alike, pairs and not stopped):
            raise Wrong(f"it looks like {mistake}.")
        if stopped:
            raise stopped
        raise Wrong(f"{case.name}: {says}{'' if str(says).endswith('?') else '.'}")

    return check


def attempt(compute: Callable[[Any], Any], module: Any) -> tuple[Any, Exception | None]:
    """Return (value, None), or (None, exception) if `compute` fails. Raise NotImplementedError and NotTried."""
    try:
        return compute(module), None
    except (NotImplementedError, NotTried):
        raise
    except Exception as error:
        return None, error


def same_exception(a: Exception | None, b: Exception | None) -> bool:
    return (type(a), str(a)) == (type(b), str(b))


EVERY = (own,)
MODULE = (
    seeded,
    same_outputs(),
    same_outputs(SPREAD),
    same_outputs(SPREAD, torch.float32),
    check_gradients,
    by_hand,
)
FUNCTION = (same_outputs(), same_outputs(dtype=torch.float32), check_gradients, by_hand)
