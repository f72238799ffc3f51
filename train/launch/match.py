"""`Grid match`: give the runs of a group the same number of parameters or FLOPs, by their dim_ff or else their dim."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cache, partial
from itertools import chain, zip_longest
from typing import Any

from model.model_params import ModelParams
from model.shapes import build_on_meta, with_fewer_layers
from train.flops import row_flops
from train.grid.run import Run

MATCH_TOLERANCE = 0.02  # largest relative difference from the target
# Parameters that "params" leaves out.
UNCOUNTED_PARAMETERS = ("embed.*", "unembed.*", "transform.*", "*.value_embedding.*")
MAX_WIDTH = 2**20
MAX_TRIES = 16  # neighbors of a width to try if a model cannot be built with it
UNITS = {"params": "parameters without embeddings", "flops": "FLOPs a token"}
Measure = Callable[[ModelParams], float | None]  # the size of a model, or None if it cannot be built


def matched(runs: list[Run], errors: list[str]) -> list[Run]:
    """Return the runs with matched sizes. The first run of each group sets the target. Add refusals to `errors`."""
    targets: dict[str, float] = {}
    solutions: dict[tuple[object, ...], ModelParams | str] = {}
    found = []
    for run in runs:
        if (match := run.match) is None:
            found.append(run)
            continue
        model, measure = run.params.model, partial(SIZE_MEASURES[match.what], n_tokens=run.data.n_tokens)
        size = measure(model)
        if size is None:
            errors.append(
                f"{match.place}: match = {match.what!r}: the {UNITS[match.what]} of run {run.number} are unknown"
            )
            continue
        target = targets.setdefault(match.group, size)
        if (key := (match.what, model, target, run.data.n_tokens)) not in solutions:
            solutions[key] = solve(model, target, measure)
        solved = solutions[key]
        if isinstance(solved, str):
            errors.append(
                f"{match.place}: match = {match.what!r}: run {run.number} {solved} {UNITS[match.what]}"
            )
            continue
        size = measure(solved) or size
        params = run.params._replace(model=solved)
        found.append(replace(run, params=params, match=match._replace(size=size, target=target)))
    errors += doubles(found)
    return found


def doubles(runs: list[Run]) -> Iterator[str]:
    """Yield an error for runs that are equal once their sizes match, but were not before."""
    seen: dict[str, Run] = {}
    for run in runs:
        if run.match is not None:
            first = seen.setdefault(f"{run.match.group} {run.params}", run)
            if first is not run:
                yield (
                    f"{run.match.place}: match = {run.match.what!r} makes runs {first.number} and {run.number} equal: "
                    "they differ only in the width that it sets"
                )


def solve(model: ModelParams, target: float, measure: Measure) -> ModelParams | str:
    """Return `model` with the dim_ff, or else the dim, that brings its size nearest to `target`.

    Return the nearest size as text if it is more than MATCH_TOLERANCE away.
    """
    if (now := measure(model) or 0.0) == target:
        return model
    field, width, unit = width_to_solve(model, measure)
    with_width = partial(changed, model, field, unit)

    @cache
    def size_at(n: int) -> float | None:
        candidate = with_width(n)
        return None if candidate is None else measure(candidate)

    n = nearest_width(target, width // unit, size_at, MAX_WIDTH // unit)
    size, best = (now, model)
    if n is not None and abs((size_at(n) or 0.0) - target) < abs(now - target):
        size, best = size_at(n) or 0.0, with_width(n) or model
    if abs(size - target) <= MATCH_TOLERANCE * target:
        return best
    shown = f"{field}={getattr(best, field)}"
    return f"comes no nearer to the {target:,.0f} of the first of its group than {size:,.0f}, with {shown}: at most 2 % apart are allowed, in"


def width_to_solve(model: ModelParams, measure: Measure) -> tuple[str, int, int]:
    """Return the field to solve, its value and the unit in which it changes: dim_ff if it has an effect, else dim."""
    width = model.at(0).ff_width
    wider = None if "dim_ff" in model.turns else changed(model, "dim_ff", 1, width + 8)
    if width and wider is not None and measure(wider) != measure(model):
        return "dim_ff", width, 1
    return "dim", model.dim, math.lcm(*model.values_of("n_heads"))


def changed(model: ModelParams, field: str, unit: int, n: int) -> ModelParams | None:
    """Return `model` with a field set to `n` units, or None if it cannot have that value."""
    width: dict[str, Any] = {field: n * unit}
    try:
        return replace(model, **width)
    except ValueError:
        return None


def nearest_width(
    target: float, start: int, size_at: Callable[[int], float | None], limit: int
) -> int | None:
    """Return the number from 1 to `limit` whose size is nearest to `target`. Sizes grow; some may be None.

    `start` is a number with a known size.
    """
    low = next((n for n in range(1, min(start, MAX_TRIES) + 1) if size_at(n) is not None), start)
    high = start
    while (size_at(high) or 0.0) < target and high < limit:
        high = min(2 * high, limit)
        high = next((n for n in range(high, high + MAX_TRIES) if size_at(n) is not None), limit)
    while (between := first_known(low, high, target, size_at)) is not None:
        if known(size_at, between) < target:
            low = between
        else:
            high = between
    ends = [n for n in (low, high) if size_at(n) is not None]
    return min(ends, key=lambda n: abs(known(size_at, n) - target), default=None)


def first_known(low: int, high: int, target: float, size_at: Callable[[int], float | None]) -> int | None:
    """Return a number between `low` and `high` that has a size, near to where a straight line meets the target."""
    if high - low < 2 or not known(size_at, low) < target < known(size_at, high):
        return None
    share = (target - known(size_at, low)) / (known(size_at, high) - known(size_at, low))
    guess = min(max(round(low + share * (high - low)), low + 1), high - 1)
    pairs = zip_longest(
        range(guess, min(high, guess + MAX_TRIES)), range(guess - 1, max(low, guess - MAX_TRIES), -1)
    )
    return next((n for n in chain(*pairs) if n is not None and size_at(n) is not None), None)


def known(size_at: Callable[[int], float | None], n: int) -> float:
    return size_at(n) or 0.0


@cache
def params_without_embeddings(model: ModelParams, n_tokens: int) -> int | None:
    """Return the number of parameters outside the tables of tokens and positions and the unembedding."""
    try:
        lm = build_on_meta(with_fewer_layers(model), n_tokens)
    except ValueError:
        return None
    counted = {
        name: p.numel()
        for name, p in lm.named_parameters()
        if not any(fnmatchcase(name, pattern) for pattern in UNCOUNTED_PARAMETERS)
    }
    n_built, period = lm.model_params.n_layers, model.period
    # The last ones, so that weights that all layers share do not count.
    turn = tuple(f"decoder.layers.{i}." for i in range(max(0, n_built - period), n_built))
    of_turn = sum(n for name, n in counted.items() if name.startswith(turn))
    return sum(counted.values()) + (model.n_layers - n_built) // period * of_turn


@cache
def flops_per_token(model: ModelParams, n_tokens: int) -> float | None:
    """Return the operations of training on a row of max_seq_len tokens, for each of them."""
    try:
        flops = row_flops(model, n_tokens, model.max_seq_len)
    except ValueError:
        return None
    return None if flops is None else flops / model.max_seq_len


SIZE_MEASURES: dict[str, Callable[..., float | None]] = {
    "params": params_without_embeddings,
    "flops": flops_per_token,
}


def match_notes(runs: list[Run]) -> Iterator[tuple[Run, str]]:
    """Yield each run whose size was matched, with what was chosen, for the log."""
    for run in runs:
        if (match := run.match) is not None:
            model = run.params.model
            away = f"{(match.size - match.target) / match.target:+.2%}"
            dim_ff = model.dim_ff if "dim_ff" in model.turns else model.at(0).ff_width
            widths = f"dim={model.dim}, dim_ff={dim_ff}"
            yield (
                run,
                f"match = {match.what!r}: {widths} make {match.size:,.0f} {UNITS[match.what]} ({away} from the target)",
            )
