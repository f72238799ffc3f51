"""Pairs of runs for a report's page: the step at which the losses of any two runs part, and what changed in their code."""

from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise

import numpy as np

from explore.compare.code import CodeOfRun, changes_between
from train.stats import Stat

MAX_CHANGES = 20_000  # characters of the diff between two versions of the code
MAX_ALL_CHANGES = 400_000  # characters of all these diffs together
# Run, its last step, and the step at which it parts from the run of the next entry.
Parting = tuple[int, int, int | None]


def losses_of_batches(values: Sequence[Stat]) -> np.ndarray:
    """Return the step and the training loss of every batch [batch, 2]. NaN becomes infinite, so that two of them are equal."""
    losses = np.array([(stat.s, stat.v) for stat in values]).reshape(-1, 2)
    return np.where(np.isnan(losses), np.inf, losses)


def sortable_losses(values: Sequence[Stat]) -> bytes:
    """Return `losses_of_batches` as bytes, or b"" if steps are missing, as in a long run that still trains."""
    losses = losses_of_batches(values)
    return b"" if (np.diff(losses[:, 0]) > 1).any() else losses.tobytes()


def partings(losses: Sequence[bytes]) -> list[Parting]:
    """Return the runs sorted by their losses, as `sortable_losses` returns them; leave out runs without any.

    Two runs part at the first step at which any two neighbors between them do. They never part if that is None, or if it
    comes after the last step of one of them. So N entries tell this of all N * (N - 1) / 2 pairs.
    """
    order = sorted((i for i, values in enumerate(losses) if values), key=losses.__getitem__)
    batches = [np.frombuffer(losses[i]).reshape(-1, 2) for i in order]
    steps = [first_difference(one, other) for one, other in pairwise(batches)]
    return [
        (i, int(own[-1, 0]), step)
        for i, own, step in zip(order, batches, [*steps, None][: len(order)], strict=True)
    ]


def first_difference(one: np.ndarray, other: np.ndarray) -> int | None:
    """Return the first step at which the losses of two runs, arrays [batch, 2], differ, or None if they never do."""
    n = min(len(one), len(other))
    differs = (one[:n] != other[:n]).any(axis=1)
    first = int(differs.argmax()) if differs.any() else None
    return None if first is None else int(min(one[first, 0], other[first, 0]))


def code_changes(versions: Mapping[str, CodeOfRun]) -> list[tuple[str, str, str]]:
    """Return for each two versions of the code their labels, and what changed from the first one to the second one."""
    changes, n_left = [], MAX_ALL_CHANGES
    for (label, one), (other_label, other) in combinations(versions.items(), 2):
        text = changes_between(one, other) if n_left > 0 else ""
        if not text or len(text) > MAX_CHANGES:
            text = f"{text[:MAX_CHANGES]}\n... model_explorer.diff shows all of it".strip()
        n_left -= len(text)
        changes.append((label, other_label, text))
    return changes
