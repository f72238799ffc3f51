"""Compare a part's outputs and gradients with those of other people's code on the same weights."""

import inspect
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from learn.checking.course import Case, Check, Wrong
from learn.checking.explain import difference, equal
from learn.checking.mistakes import known_mistake, made_by_variant

SPREAD = 0.1  # standard deviation of noise on every parameter, because ones and zeros hide mistakes


def same_outputs(spread: float = 0.0, dtype: torch.dtype = torch.float64) -> Check:
    """Return a check of outputs against the reference, with noise of deviation `spread` on every parameter."""

    def check(case: Case) -> None:
        made = ready(case, spread, dtype)
        for args in case.part.inputs():
            args = cast(args, dtype)
            with torch.no_grad():
                out, right = call(case, made, args), reference_output(case, made, args)
            found = difference(out, right, case.part.axes)
            if found is None:
                continue
            if mistake := recognize(case, made, args, out, right):
                raise Wrong(f"it looks like {mistake}.")
            if looks_back_only in case.part.checks:  # this mistake has to be fixed first
                looks_back_only(case)
            after = " after noise was added to every parameter (ones and zeros at the start hide mistakes)"
            raise Wrong(
                f"{found}{after if spread else ''}{settings(case, args)}. {smallest(case, made, dtype)}".strip()
            )

    return check


def smallest(case: Case, made: Any, dtype: torch.dtype) -> str:
    """Say if the result is right for the shortest input. If it has one position, that tells the student where to look."""
    tries = [cast(args, dtype) for args in case.part.inputs()]
    args = min(tries, key=lambda args: args[0].numel() if args and isinstance(args[0], Tensor) else 0)
    if len(tries) == 1 or not args or not isinstance(args[0], Tensor) or args[0].dim() < 2:
        return ""
    with torch.no_grad():
        found = difference(call(case, made, args), reference_output(case, made, args), case.part.axes)
    what = f"an input of shape {list(args[0].shape)}"
    return f"It is wrong even for {what}." if found else f"For {what} it is right."


def ready(case: Case, spread: float, dtype: torch.dtype) -> Any:
    """Make the student's part in `dtype`, with noise of deviation `spread` added to every parameter."""
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
    """Return the student's output. Raise Wrong if the call changes its inputs."""
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


def reference_output(case: Case, made: Any, args: tuple) -> Tensor:
    """Return the reference's output."""
    return case.part.counts(case.part.reference(made, *args), *args)


def settings(case: Case, args: tuple) -> str:
    """List the optional arguments of a call: tensors by name, other arguments with their value."""
    thing = getattr(case.solution, case.name)
    names = list(inspect.signature(getattr(thing, "forward", thing)).parameters.values())
    names = names[inspect.isclass(thing) :]  # without self
    listed = [
        name.name.split("_")[0] if isinstance(a, Tensor) else f"{name.name}={a}"
        for name, a in zip(names, args, strict=False)
        if a is not None and not (isinstance(a, Tensor) and name.default is name.empty)
    ]
    return f" (with {', '.join(listed)})" if listed else ""


def recognize(case: Case, made: Any, args: tuple, out: object, right: Tensor) -> str | None:
    """Return the message of the known mistake, or of two mistakes at once, that gives the student's output."""
    if not isinstance(out, Tensor):
        return None
    return known_mistake(
        case, lambda module: gives(case, module, made, args, out, right), pairs=bool(out.isfinite().all())
    )


def gives(case: Case, module: ModuleType, made: Any, args: tuple, out: Tensor, right: Tensor) -> bool:
    """Return True if `module`, the solution with a known mistake, reproduces the student's output `out`.

    It must also differ from the right output, `right`. `made` is what the student's file made, `args` is the input.
    """
    variant = made_by_variant(case, module, made)
    if variant is None:
        return False
    try:
        with torch.no_grad():
            other = case.part.counts(variant(*args), *args)
    except Exception:  # a variant may fail on some inputs
        return False
    return equal(out, other) and not (other.shape == right.shape and equal(other, right))


def check_gradients(case: Case) -> None:
    """Raise Wrong unless gradients of parameters and inputs equal the reference's."""
    made = ready(case, SPREAD, torch.float64)
    for args in case.part.inputs():
        same_gradients(case, made, cast(args, torch.float64))


def same_gradients(case: Case, made: Any, args: tuple) -> None:
    args = tuple(
        a.clone().requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args
    )
    out, right = case.part.counts(made(*args), *args), reference_output(case, made, args)
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
    """Raise Wrong if a later position changes the output at an earlier one."""
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
                "Fix that first; other numbers may be wrong, too."
            )
