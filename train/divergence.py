"""Divergence: decide step by step whether a run's training losses have diverged."""

import math
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from statistics import fmean, median

from train.stats import Stat

PREFIX = "stat/train_loss:"
MAX_RATIO = 3.0  # median loss over the larger of chance level and best median so far
WINDOW = 25  # optimizer steps in a median, so that single bad batches do not count
MIN_STEPS = 3  # values that a median needs


class Divergence:
    """Decides from the losses of optimizer steps, each a mean over its batches, whether a run has diverged.

    A run has diverged if its latest loss is not finite, or if the running median of "main" is too high. Too high is
    MAX_RATIO times the larger of log(vocabulary), the loss of a uniform guess, and the lowest median so far. Taking
    log(vocabulary) into account keeps a first loss of 0 from setting the limit to 0.
    """

    def __init__(self, n_tokens: int) -> None:
        self.chance = math.log(max(2, n_tokens))
        self.n_seen: dict[str, int] = {}  # values already judged, by name
        self.recent: deque[tuple[int, float]] = deque(maxlen=WINDOW)  # (step, "main")
        self.best = math.inf  # lowest median
        # The step at which losses stopped being finite, and the name and value of the first such loss.
        self.not_finite: tuple[int, str, float] | None = None

    def judge(self, train_stats: Mapping[str, Sequence[Stat]]) -> str | None:
        """Add the statistics since the last call. Return why the run has diverged, or None."""
        why = None
        for step, losses in sorted(self.new_steps(train_stats).items()):
            bad = next(((name, loss) for name, loss in losses.items() if not math.isfinite(loss)), None)
            self.not_finite = None if bad is None else self.not_finite or (step, *bad)
            if bad is None and "main" in losses:
                why = why or self.add(step, losses["main"])
        if self.not_finite is None:
            return why
        step, name, loss = self.not_finite
        return f"diverged: training loss {loss:.4g} at step {step}" + f" ({name})" * (name != "main")

    def new_steps(self, train_stats: Mapping[str, Sequence[Stat]]) -> dict[int, dict[str, float]]:
        batches: defaultdict[int, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for key, values in train_stats.items():
            if key.startswith(PREFIX):
                name = key.removeprefix(PREFIX)
                for stat in values[self.n_seen.get(name, 0) :]:
                    batches[stat.s][name].append(stat.v)
                self.n_seen[name] = len(values)
        return {
            step: {name: fmean(values) for name, values in losses.items()} for step, losses in batches.items()
        }

    def add(self, step: int, loss: float) -> str | None:
        self.recent.append((step, loss))
        now = median(loss for _, loss in self.recent)
        self.best = min(self.best, now)
        limit = MAX_RATIO * max(self.chance, self.best)
        if len(self.recent) < MIN_STEPS or now <= limit:
            return None
        first = next(step for step, loss in self.recent if loss > limit)
        return (
            f"diverged: training loss {now:.4g} since step {first} (median of {len(self.recent)} steps); "
            f"best {self.best:.4g}, a uniform guess {self.chance:.4g}"
        )

    def state_dict(self) -> dict[str, object]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, object]) -> None:
        vars(self).update(state)
