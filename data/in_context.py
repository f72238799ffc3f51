"""Tasks that are learned from the sample itself: Markov chains, linear regression, clusters with labels, copies of a bigram.

Shape suffixes:  N state, bin or row  D input dimension  P point
"""

import itertools
import math
import random
from functools import cache

import numpy as np
from scipy import stats

from data.syntheticdata import Sample, check_bounds, n_queries, read_marks, registered


def dirichlet(rng: random.Random, n: int, alpha: float) -> list[float]:
    draws = [rng.gammavariate(alpha, 1.0) for _ in range(n)]
    return [draw / sum(draws) for draw in draws] if sum(draws) else [1 / n] * n


def bigram_losses(sample: Sample, n_states: int, alpha: float, **_: object) -> list[float]:
    """Return the nats of each scored token under the Bayes-optimal predictor: (count + alpha) / (total + n alpha)."""
    states = [int(token) for token in read_marks(sample).tokens if token != "."]
    counts, losses = np.full((n_states, n_states), alpha), []
    for before, after in itertools.pairwise(states):
        losses.append(-math.log(counts[before, after] / counts[before].sum()))
        counts[before, after] += 1
    return losses


@registered(slices={}, reference=bigram_losses)
def markov_chain(rng: random.Random, n_states: int = 3, length: int = 64, alpha: float = 1.0) -> list[str]:
    """2 « 0 1 2 2 0 1 2 » .   A Markov chain whose transitions are drawn for each sample, from a Dirichlet distribution.

    Statistical induction heads (Edelman et al. 2024, arXiv:2402.11004). The reference is the Bayes-optimal predictor.
    """
    if n_states < 2 or length < 2 or alpha <= 0:
        raise ValueError(f"markov_chain needs {n_states=} and {length=} from 2 and {alpha=} above 0")
    rows = [dirichlet(rng, n_states, alpha) for _ in range(n_states)]
    states = [rng.randrange(n_states)]
    while len(states) < length:
        states += rng.choices(range(n_states), rows[states[-1]])
    first, *others = map(str, states)
    return [first, "«", *others, "»", "."]


def bin_edges(n_bins: int, width: float) -> np.ndarray:
    """Return the edges between bins of equal probability of a normal distribution with this standard deviation."""
    return width * stats.norm.ppf(np.arange(1, n_bins) / n_bins)


@cache
def bin_values(n_bins: int, width: float) -> np.ndarray:
    """Return the median of each bin [N]."""
    return width * stats.norm.ppf((np.arange(n_bins) + 0.5) / n_bins)


def known_map(number: int, dims: int) -> list[float]:
    """Return the weights of one of the `n_tasks` maps of `linear_regression`, the same in all samples."""
    dice = random.Random(f"map {number}")
    return [dice.gauss(0, 1) for _ in range(dims)]


PREDICTORS = ("ridge", "least-squares")


def regression_losses(
    sample: Sample, dims: int, n_bins: int, predictor: str = "ridge", **_: object
) -> list[float]:
    """Return the nats of each scored value under ridge regression or least squares on the values of the bins.

    Ridge regression has a standard normal prior of the weights. The rounding of the bins counts as noise of the values. Least
    squares takes the solution of the smallest norm, without shrinkage. In directions without points, the variance of the
    weights is that of the prior for both.
    """
    numbers = [int(token[1:]) for token in read_marks(sample).tokens if token[0] in "xy"]
    width = math.sqrt(dims)
    points_PD = bin_values(n_bins, 1.0)[np.array(numbers).reshape(-1, dims + 1)[:, :dims]]
    bins_P = np.array(numbers).reshape(-1, dims + 1)[:, dims]
    values_P, edges_N = bin_values(n_bins, width)[bins_P], bin_edges(n_bins, width)
    noise = rounding_variance(dims, n_bins)
    losses = []
    for i, (x_D, bin_) in enumerate(zip(points_PD, bins_P, strict=True)):
        covariance_DD = covariance_of_weights(points_PD[:i], noise, predictor)
        mean_D = covariance_DD @ points_PD[:i].T @ values_P[:i] / noise
        if predictor == "least-squares":
            # Added after the mean: the directions without points do not change it.
            covariance_DD = covariance_DD + unseen_directions(points_PD[:i])
        deviation = math.sqrt(noise + x_D @ covariance_DD @ x_D)
        below_N = np.concatenate([[0.0], stats.norm.cdf(edges_N, mean_D @ x_D, deviation), [1.0]])
        losses.append(-math.log(max(below_N[bin_ + 1] - below_N[bin_], 1e-12)))
    return losses


def covariance_of_weights(seen_PD: np.ndarray, noise: float, predictor: str) -> np.ndarray:
    """Return the covariance of the weights [D, D] given the points that were seen."""
    precision_DD = seen_PD.T @ seen_PD / noise
    if predictor == "ridge":
        return np.linalg.inv(np.eye(seen_PD.shape[1]) + precision_DD)
    return np.linalg.pinv(precision_DD, hermitian=True)


def unseen_directions(seen_PD: np.ndarray) -> np.ndarray:
    """Return the projection [D, D] onto the directions without points."""
    return np.eye(seen_PD.shape[1]) - np.linalg.pinv(seen_PD) @ seen_PD


@cache
def rounding_variance(dims: int, n_bins: int) -> float:
    """Return the variance of a value after the bins of its point and its own bin have rounded it off, by a simulation."""
    dice = np.random.default_rng(0)
    x_PD, w_PD = dice.normal(size=(2, 20_000, dims))
    rounded_PD = bin_values(n_bins, 1.0)[np.digitize(x_PD, bin_edges(n_bins, 1.0))]
    y_P = (x_PD * w_PD).sum(axis=1)
    width = math.sqrt(dims)
    rounded_P = bin_values(n_bins, width)[np.digitize(y_P, bin_edges(n_bins, width))]
    return float(((rounded_PD * w_PD).sum(axis=1) - rounded_P).var())


@registered(slices={}, reference=regression_losses)
def linear_regression(
    rng: random.Random,
    dims: int = 4,
    n_points: int = 12,
    n_bins: int = 16,
    n_tasks: int = 0,
    predictor: str = "ridge",
) -> list[str]:
    """x3 x9 « y5 » x0 x14 « y12 » .   Points and their values under a linear map that is drawn for each sample.

    In-context linear regression (Garg et al. 2022, arXiv:2208.01066) with coordinates and values sorted into bins of equal
    probability. `n_tasks` maps are drawn once for all samples, as in Raventós et al. 2023 (arXiv:2306.15063); 0: a new one
    each time. `reference_loss` is that of ridge regression on the values of the bins, the best predictor with `n_tasks=0`.
    With `predictor="least-squares"` it is that of least squares. The predictor changes no sample.
    """
    if predictor not in PREDICTORS:
        raise ValueError(f"predictor must be one of {', '.join(PREDICTORS)}, not {predictor!r}")
    if dims < 1 or n_points < 1 or n_bins < 2 or n_tasks < 0:
        raise ValueError(
            f"linear_regression needs {dims=} and {n_points=} from 1, {n_bins=} from 2 and {n_tasks=} from 0"
        )
    weights = known_map(rng.randrange(n_tasks), dims) if n_tasks else [rng.gauss(0, 1) for _ in range(dims)]
    edges, edges_of_values = bin_edges(n_bins, 1.0), bin_edges(n_bins, math.sqrt(dims))
    sample = []
    for _ in range(n_points):
        point = [rng.gauss(0, 1) for _ in range(dims)]
        value = sum(x * w for x, w in zip(point, weights, strict=True))
        sample += [f"x{np.digitize(x, edges)}" for x in point]
        sample += ["«", f"y{np.digitize(value, edges_of_values)}", "»"]
    return [*sample, "."]


def one_label(n_labels: int, **_: object) -> float:
    return 1 / n_labels


def members_and_labels(n_classes: int, n_members: int, n_labels: int, **_: object) -> list[str]:
    return [*(f"c{i}" for i in range(n_classes * n_members)), *(f"l{i}" for i in range(n_labels))]


@registered(chance=one_label, slices={}, tokens=members_and_labels)
def few_shot(
    rng: random.Random,
    n_classes: int = 64,
    n_labels: int = 8,
    n_pairs: int = 8,
    *,
    burst: int = 4,
    zipf: float = 0.0,
    n_members: int = 4,
    relabel: bool = False,
) -> list[str]:
    """c5 l2 c9 l0 c5 l2 c7 l6 c4 « l2 » .   Members of classes and their labels, then a member without one.

    Few-shot classification (Chan et al. 2022, arXiv:2205.05055; Reddy 2023, arXiv:2312.03002). Each class has `n_members`
    tokens and a label, the same in all samples: a model can learn them by heart. `burst` of the pairs are of the class of
    the query. `zipf` is the exponent of the frequencies of classes. With `relabel` labels are drawn for each sample, so that
    only the sample tells them.
    """
    check_bounds(0, burst=burst, n_pairs=n_pairs)
    if min(n_classes, n_labels, n_members) < 1 or n_labels > n_classes or zipf < 0:
        raise ValueError(
            f"few_shot needs 1 <= n_labels <= n_classes, n_members from 1 and zipf from 0, not {n_labels=}, {n_classes=}, {n_members=}, {zipf=}"
        )
    frequencies = [(i + 1) ** -zipf for i in range(n_classes)]
    query, *others = rng.choices(range(n_classes), frequencies, k=1 + n_pairs - burst)
    classes = [query] * burst + others
    rng.shuffle(classes)
    shift = rng.randrange(n_labels) if relabel else 0
    sample = [
        token for one in classes for token in (member(rng, one, n_members), f"l{(one + shift) % n_labels}")
    ]
    return [*sample, member(rng, query, n_members), "«", f"l{(query + shift) % n_labels}", "»", "."]


def member(rng: random.Random, of_class: int, n_members: int) -> str:
    return f"c{of_class * n_members + rng.randrange(n_members)}"


@cache
def bigrams(vocab_size: int) -> list[list[float]]:
    """Return the probabilities of the next token, by token: the same in all samples."""
    dice = random.Random(0)
    return [dirichlet(dice, vocab_size, 0.3) for _ in range(vocab_size)]


def words_and_triggers(vocab_size: int, n_trigger_tokens: int, **_: object) -> list[str]:
    return [*map(str, range(vocab_size)), *(f"t{i}" for i in range(n_trigger_tokens))]


@registered(slices={"triggers": n_queries}, tokens=words_and_triggers)
def bigram_backcopy(
    rng: random.Random,
    vocab_size: int = 32,
    length: int = 64,
    n_trigger_tokens: int = 3,
    all_scored: bool = False,
) -> list[str]:
    """9 4 17 t0 « 17 » 8 3 t2 « 3 » 5 .   A fixed Markov chain, in which a trigger is followed by the token before it.

    Bigram-Backcopy (Guo et al. 2024, arXiv:2410.13835), where attention sinks arise at tokens that are no triggers. The paper
    trains on all tokens, as `all_scored` does; for accuracy, let an evaluation set score the copies alone.
    """
    if vocab_size < 2 or length < 4 or not 1 <= n_trigger_tokens < vocab_size:
        raise ValueError(
            f"bigram_backcopy needs {vocab_size=} from 2, {length=} from 4 and 1 <= {n_trigger_tokens=} < vocab_size"
        )
    rows = bigrams(vocab_size)
    token = rng.randrange(vocab_size)
    sample, n = [str(token)], 1
    while n < length:
        [token] = rng.choices(range(vocab_size), rows[token])
        is_trigger = token < n_trigger_tokens
        copy = [last_word(sample)] if all_scored else ["«", last_word(sample), "»"]
        sample += [f"t{token}", *copy] if is_trigger else [str(token)]
        token = int(last_word(sample)) if is_trigger else token
        n += 1 + is_trigger
    return [*sample, "."]


def last_word(sample: list[str]) -> str:
    """Return the last token that is a word of the chain, not a mark or a trigger."""
    return next(token for token in reversed(sample) if token.isdigit())
