"""What a part must stand: checks that raise Wrong with a sentence for the student, or return."""

import inspect
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from learn.checking.course import Case, Check, Wrong
from learn.checking.explain import difference, equal
from learn.checking.honesty import honest
from learn.checking.mistakes import made_by_variant, variants
from learn.checking.spy import Spy

MAY_CONTAIN = (nn.Linear, nn.ModuleList, nn.ModuleDict, nn.Sequential, nn.Identity)
SPREAD = 0.1  # of what is added to every parameter, so that ones and zeros hide nothing


def own(case: Case) -> None:
    """The class or function is there, and is the student's own."""
    name, home = case.name, case.mine.__name__
    thing = getattr(case.mine, name, None)
    if thing is None:
        raise Wrong(f"there is no {name} in the file: put the stub back, its name has to stay.")
    bases = (
        [base for base in inspect.getmro(thing) if base not in (nn.Module, object)]
        if inspect.isclass(thing)
        else [thing]
    )
    for base in bases:
        if base.__module__ != home:
            raise Wrong(f"{name} comes from {base.__module__}.{base.__name__}: here you write it yourself.")
    made = case.part.make(case.mine)
    for inner in made.modules() if isinstance(made, nn.Module) else ():
        kind = type(inner)
        if (
            kind not in MAY_CONTAIN
            and kind.__module__ not in (home, case.solution.__name__)
            and not is_course(kind)
        ):
            raise Wrong(
                f"{name} has a {kind.__module__}.{kind.__name__} inside: here you write that yourself."
            )


def is_course(kind: type) -> bool:
    """Whether a class is of a course's file that the student's file imports."""
    return kind.__module__.startswith("learn.")


def has(**kinds: Any) -> Check:
    """Attributes by name: a class, the name of another part's class, or the shape of a parameter."""

    def check(case: Case) -> None:
        made = case.part.make(case.mine)
        for name, kind in kinds.items():
            what = f"the attribute `{name}` of {case.name}"
            if not hasattr(made, name):
                raise Wrong(f"{what} is missing; the docstring lists what it should have.")
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
    """With one seed the same weights as the solution's: names, shapes, sizes, and the order of drawing."""
    mine, right = weights(case, case.mine), weights(case, case.solution)
    same_names(case.name, mine, right)
    if all(equal(mine[name], right[name]) for name in right):
        return
    for mistake, module in variants(case):
        other = weights(case, module)
        if all(name in other and equal(mine[name], other[name]) for name in mine):
            raise Wrong(f"it looks like {mistake.says}.")
    for name, value in right.items():
        explain_weights(name, mine[name], value)


def weights(case: Case, module: Any) -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {name: p.detach() for name, p in case.part.make(module).named_parameters()}


def same_names(part: str, mine: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    for name, value in mine.items():
        if name not in right:
            raise Wrong(f"{part} has a parameter `{name}` {list(value.shape)} that does not belong there.")
    for name, value in right.items():
        if name not in mine:
            raise Wrong(f"{part} has no parameter `{name}`: is it a plain tensor, or in a plain list?")
        if mine[name].shape != value.shape:
            raise Wrong(f"`{name}` has shape {list(mine[name].shape)}, expected {list(value.shape)}.")


def explain_weights(name: str, mine: Tensor, right: Tensor) -> None:
    """One parameter as it was initialised: constant, of another spread, or drawn in another order."""
    if equal(mine, right):
        return
    if not right.std() > 0:
        raise Wrong(f"`{name}` should start as {float(right.flatten()[0]):g} everywhere.")
    a, b = float(mine.std()), float(right.std())
    if abs(a / b - 1) > 0.2:
        raise Wrong(f"`{name}` starts with a standard deviation of {a:.3g}, expected {b:.3g}.")
    raise Wrong(
        f"`{name}` starts with the right spread and other numbers: random numbers are drawn in another order than "
        "the docstring's."
    )


def parity(spread: float = 0.0, dtype: torch.dtype = torch.float64) -> Check:
    """The reference's outputs on the same weights: as they start, or each of them moved a little."""

    def check(case: Case) -> None:
        made = ready(case, spread, dtype)
        for args in case.part.inputs():
            args = cast(args, dtype)
            with torch.no_grad():
                out, right = call(case, made, args), case.part.reference(made, *args)
            found = difference(out, right, case.part.axes)
            if found is None:
                continue
            if mistake := recognise(case, made, args, out, right):
                raise Wrong(f"it looks like {mistake}.")
            after = (
                " after every parameter was moved a little (they start as ones or zeros, which hides much)"
            )
            raise Wrong(f"{found}{after if spread else ''}{settings(case, args)}.")

    return check


def ready(case: Case, spread: float, dtype: torch.dtype) -> Any:
    """What the student made, with moved parameters if asked for."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = case.part.make(case.mine)
        if isinstance(made, nn.Module):
            with torch.no_grad():
                for parameter in made.parameters():
                    parameter.add_(spread * torch.randn_like(parameter))
            made = made.to(dtype)
    return made


def cast(args: tuple, dtype: torch.dtype) -> tuple:
    return tuple(a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)


def call(case: Case, made: Any, args: tuple) -> Any:
    """The student's output, on inputs that must stay as they are."""
    copies = tuple(a.clone() if isinstance(a, Tensor) else a for a in args)
    out = made(*copies)
    for copy, arg in zip(copies, args, strict=True):
        if isinstance(arg, Tensor) and not torch.equal(copy, arg):
            raise Wrong(f"{case.name} changes its input: an operation in place (`+=`, `masked_fill_`)?")
    return out


def settings(case: Case, args: tuple) -> str:
    """The arguments that are not tensors, by name."""
    names = list(inspect.signature(getattr(case.solution, case.name)).parameters)
    told = [
        f"{n}={a}" for n, a in zip(names, args, strict=False) if not isinstance(a, Tensor) and a is not None
    ]
    return f" (with {', '.join(told)})" if told else ""


def recognise(case: Case, made: Any, args: tuple, out: object, right: Tensor) -> str | None:
    """The mistake whose variant of the solution gives just what the student's code gives."""
    if not isinstance(out, Tensor):
        return None
    for mistake, module in variants(case):
        variant = made_by_variant(case, module, made)
        if variant is None:
            continue
        try:
            with torch.no_grad():
                other = variant(*args)
        except Exception:  # a variant need not run on everything
            continue
        if equal(out, other) and not (other.shape == right.shape and equal(other, right)):
            return mistake.says
    return None


def gradients(case: Case) -> None:
    """The reference's gradients, with respect to parameters and inputs."""
    made = ready(case, SPREAD, torch.float64)
    args = tuple(
        a.clone().requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a
        for a in cast(case.part.inputs()[0], torch.float64)
    )
    out, right = made(*args), case.part.reference(made, *args)
    sources = dict[str, Tensor]()
    if isinstance(made, nn.Module):
        sources |= {f"`{n}`": p for n, p in made.named_parameters()}
    sources |= {f"input {i}": a for i, a in enumerate(args, 1) if isinstance(a, Tensor) and a.requires_grad}
    weight = torch.randn(right.shape, generator=torch.Generator().manual_seed(2), dtype=right.dtype)
    expected = torch.autograd.grad((right * weight).sum(), list(sources.values()))
    hint = "something was detached: .detach(), .data, .item(), torch.tensor(...) or torch.no_grad()?"
    if not out.requires_grad:
        raise Wrong(f"outputs are right, but no gradient flows back from them: {hint}")
    found = torch.autograd.grad((out * weight).sum(), list(sources.values()), allow_unused=True)
    for name, mine, grad in zip(sources, found, expected, strict=True):
        if mine is None:
            raise Wrong(f"outputs are right, but no gradient reaches {name}: {hint}")
        if not torch.allclose(mine, grad, 1e-5, 1e-9):
            size = float(mine.norm() / grad.norm())
            raise Wrong(
                f"outputs are right, but the gradient of {name} is not ({size:.3g} times its size): {hint}"
            )


def looks_back_only(case: Case) -> None:
    """What comes later changes nothing earlier."""
    made = ready(case, SPREAD, torch.float64)
    [x] = cast(case.part.inputs()[0], torch.float64)
    out = made(x)
    for cut in range(1, x.shape[1]):
        other = torch.cat([x[:, :cut], x[:, cut:].flip(0)], dim=1)
        changed = ~torch.isclose(made(other)[:, :cut], out[:, :cut]).all(dim=-1).all(dim=0)
        if changed.any():
            early = int(changed.nonzero()[0])
            raise Wrong(f"position {early} looks ahead: it changes when only positions from {cut} on do.")


def by_hand(case: Case) -> None:
    """No operator ran that does the student's work, nor other people's code."""
    made = ready(case, 0.0, torch.float32)
    for args in case.part.inputs():
        with Spy() as spy:
            made(*cast(args, torch.float32))
        honest(case, spy)


def agrees(
    compute: Callable[[Any], Any], right: Callable[[], Any], differ: Callable[[Any, Any], str | None]
) -> Check:
    """What `compute` gets with the student's file is what is right, whatever kind of value that is.

    `differ` says in what two such values differ, or None if they do not. Mistakes are known by their results.
    """
    right = cache(right)

    @cache
    def by_variant(module: ModuleType) -> Any:
        try:
            return compute(module)
        except Exception:  # a variant need not run on everything
            return None

    def check(case: Case) -> None:
        mine, expected = compute(case.mine), right()
        says = differ(mine, expected)
        if says is None:
            return
        for mistake, module in variants(case):
            other = by_variant(module)
            if other is not None and differ(mine, other) is None and differ(other, expected) is not None:
                raise Wrong(f"it looks like {mistake.says}.")
        raise Wrong(f"{case.name}: {says}.")

    return check


EVERY = (own,)
MODULE = (seeded, parity(), parity(SPREAD), parity(SPREAD, torch.float32), gradients, by_hand)
FUNCTION = (parity(), parity(dtype=torch.float32), gradients, by_hand)
