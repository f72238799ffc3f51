"""What a part must stand: checks that raise Wrong with a sentence for the student, or return."""

import inspect
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from learn.checking.course import Case, Check, NotTried, Wrong
from learn.checking.explain import difference, equal
from learn.checking.mistakes import made_by_variant, pairs_of_variants, variants
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
            why = (
                "is there a bias=False?"
                if name.endswith(".bias")
                else "is it a plain tensor, or in a plain list?"
            )
            raise Wrong(f"{part} has no parameter `{name}`: {why}")
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
                out, right = call(case, made, args), reference(case, made, args)
            found = difference(out, right, case.part.axes)
            if found is None:
                continue
            if mistake := recognise(case, made, args, out, right):
                raise Wrong(f"it looks like {mistake}.")
            if looks_back_only in case.part.checks:  # which is to be mended before numbers are looked at
                looks_back_only(case)
            after = (
                " after every parameter was moved a little (they start as ones or zeros, which hides much)"
            )
            raise Wrong(
                f"{found}{after if spread else ''}{settings(case, args)}. {smallest(case, made, dtype)}".strip()
            )

    return check


def smallest(case: Case, made: Any, dtype: torch.dtype) -> str:
    """Whether the shortest sequence, in most parts of one position, comes out right: it tells where to look."""
    tries = [cast(args, dtype) for args in case.part.inputs()]
    args = min(tries, key=lambda args: args[0].numel() if args and isinstance(args[0], Tensor) else 0)
    if len(tries) == 1 or not args or not isinstance(args[0], Tensor) or args[0].dim() < 2:
        return ""
    with torch.no_grad():
        found = difference(call(case, made, args), reference(case, made, args), case.part.axes)
    what = f"an input of shape {list(args[0].shape)}"
    return f"It is wrong even for {what}." if found else f"For {what} it is right."


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
    try:
        out = made(*copies)
    except Exception as error:
        shapes = [str(list(a.shape)) for a in args if isinstance(a, Tensor)]
        error.add_note(f"(the input was {', '.join(shapes)})")
        raise
    for copy, arg in zip(copies, args, strict=True):
        if isinstance(arg, Tensor) and not torch.equal(copy, arg):
            raise Wrong(f"{case.name} changes its input: an operation in place (`+=`, `masked_fill_`)?")
    return case.part.counts(out, *args)


def reference(case: Case, made: Any, args: tuple) -> Tensor:
    """What is right."""
    return case.part.counts(case.part.reference(made, *args), *args)


def settings(case: Case, args: tuple) -> str:
    """The optional arguments that are there: tensors by their name, others with their value."""
    thing = getattr(case.solution, case.name)
    names = list(inspect.signature(getattr(thing, "forward", thing)).parameters.values())
    names = names[inspect.isclass(thing) :]  # without self
    told = [
        name.name.split("_")[0] if isinstance(a, Tensor) else f"{name.name}={a}"
        for name, a in zip(names, args, strict=False)
        if a is not None and not (isinstance(a, Tensor) and name.default is name.empty)
    ]
    return f" (with {', '.join(told)})" if told else ""


def recognise(case: Case, made: Any, args: tuple, out: object, right: Tensor) -> str | None:
    """The mistake, or the two of them, whose variant of the solution gives just what the student's code gives."""
    if not isinstance(out, Tensor):
        return None
    for mistake, module in variants(case):
        if gives(case, module, made, args, out, right):
            return mistake.says
    for (one, other), module in pairs_of_variants(case) if out.isfinite().all() else ():
        if gives(case, module, made, args, out, right):
            return f"two mistakes: {one.says}; and {other.says}"
    return None


def gives(case: Case, module: ModuleType, made: Any, args: tuple, out: Tensor, right: Tensor) -> bool:
    """Whether a mistaken variant comes to the student's output, and that is not right."""
    variant = made_by_variant(case, module, made)
    if variant is None:
        return False
    try:
        with torch.no_grad():
            other = case.part.counts(variant(*args), *args)
    except Exception:  # a variant need not run on everything
        return False
    return equal(out, other) and not (other.shape == right.shape and equal(other, right))


def gradients(case: Case) -> None:
    """The reference's gradients, with respect to parameters and inputs."""
    made = ready(case, SPREAD, torch.float64)
    for args in case.part.inputs():
        same_gradients(case, made, cast(args, torch.float64))


def same_gradients(case: Case, made: Any, args: tuple) -> None:
    args = tuple(
        a.clone().requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args
    )
    out, right = case.part.counts(made(*args), *args), reference(case, made, args)
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
        changed = ~torch.isclose(made(other)[:, :cut], out[:, :cut], equal_nan=True).all(dim=-1).all(dim=0)
        if changed.any():
            early = int(changed.nonzero()[0])
            raise Wrong(
                f"position {early} looks ahead: it changes when only positions from {cut} on do. "
                "Mend that first; other numbers may be wrong, too."
            )


def by_hand(case: Case) -> None:
    """No operator ran that does the student's work, nor other people's code."""
    made = ready(case, 0.0, torch.float32)
    for args in case.part.inputs():
        with Spy() as spy:
            made(*cast(args, torch.float32))
        honest(case, spy)


def by_hand_in(run: Callable[[Any], object], allowed: tuple[str, ...] = ()) -> Check:
    """The same of whatever `run` does with the student's file.

    Places of the spy's may take part if they are allowed, operators if a part of their names is.
    """

    def check(case: Case) -> None:
        with Spy() as spy:
            run(case.mine)
        honest(case, spy, allowed)

    return check


def honest(case: Case, spy: Spy, allowed: tuple[str, ...] = ()) -> None:
    for operator, what in spy.cheats().items():
        if not any(part in operator for part in allowed):
            raise Wrong(
                f"right, but {what} ran (torch's operator `{operator}`): here you write that yourself."
            )
    for place, name in spy.work_of_others():
        if place not in allowed:
            raise Wrong(f"right, but {name} of {place} did the work: here you write that yourself.")
    if (
        case.solution.__file__ != getattr(case.mine, "__file__", None)
        and (case.solution.__file__, case.name) in spy.code
    ):
        raise Wrong(f"right, but {case.name} of the solution did the work: here you write that yourself.")


def agrees(
    compute: Callable[[Any], Any], right: Callable[[], Any], differ: Callable[[Any, Any], str | None]
) -> Check:
    """What `compute` gets with the student's file is what is right, whatever kind of value that is.

    `differ` says in what two such values differ, or None if they do not. Mistakes are known by their results, or by
    stopping with the same exception.
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
        for mistake, module in variants(case):
            other, also_stopped = by_variant(module)
            if stopped or also_stopped:
                alike = same_exception(stopped, also_stopped)
            else:
                alike = differ(mine, other) is None and differ(other, expected) is not None
            if alike:
                raise Wrong(f"it looks like {mistake.says}.")
        if stopped:
            raise stopped
        raise Wrong(f"{case.name}: {says}.")

    return check


def attempt(compute: Callable[[Any], Any], module: Any) -> tuple[Any, Exception | None]:
    """What is computed, or the exception instead."""
    try:
        return compute(module), None
    except (NotImplementedError, NotTried):
        raise
    except Exception as error:
        return None, error


def same_exception(a: Exception | None, b: Exception | None) -> bool:
    return (type(a), str(a)) == (type(b), str(b))


EVERY = (own,)
MODULE = (seeded, parity(), parity(SPREAD), parity(SPREAD, torch.float32), gradients, by_hand)
FUNCTION = (parity(), parity(dtype=torch.float32), gradients, by_hand)
