"""Scores of heads, losses by position and token, and any such result over the checkpoints of a run.

Shape suffixes:  B batch  H head  T position  S position attended to
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, TypeAlias, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from explore.inspection.analysis import Samples, batches_of, eval_no_grad
from explore.inspection.patterns import attention_patterns
from model.inputs import Input, ids_of
from model.lm import LM
from model.perplexity import NO_LOSS

DEFAULT_LENGTH = 50  # default number of different tokens in the repeated sequence


def head_scores(lm: LM, n_samples: int = 16, length: int | None = None, seed: int = 0) -> pd.DataFrame:
    """Return how much attention, from 0 to 1, each head pays to three positions, as a table by layer and head.

    The input is a random sequence, written twice. The columns are "previous_token" (attention to the position before),
    "duplicate_token" (to the first occurrence of the same token) and "induction" (to the token after that; Olsson et
    al. 2022). Each is the mean over the second half of `n_samples` sequences. `length` is the length of the sequence;
    None takes the longest that fits, at most 50 tokens. Raise ValueError for a length that does not fit.
    """
    ids_BT, length = repeated_sequences(lm, n_samples, length, seed)
    with eval_no_grad(lm), lm.record("layers.*.pattern") as seen:
        lm(ids_BT)
    back = {"previous_token": 1, "duplicate_token": length, "induction": length - 1}
    tables = {}
    for name, pattern_BHTS in seen.items():
        columns = {score: stripe(pattern_BHTS, n, length).tolist() for score, n in back.items()}
        tables[int(name.split(".")[1])] = pd.DataFrame(columns).rename_axis("head")
    return pd.concat(tables, names=["layer"])


def repeated_sequences(lm: LM, n_samples: int, length: int | None, seed: int) -> tuple[Tensor, int]:
    """Return ids [n_samples, T] and the length: bos, if any, then `length` different random tokens, written twice."""
    tokenizer = lm.tokenizer
    tokens = [i for i in range(lm.n_tokens) if i not in (tokenizer.bos, tokenizer.eos, tokenizer.pad)]
    start = [tokenizer.bos] if tokenizer.bos in range(lm.n_tokens) else []
    longest = min((lm.model_params.max_seq_len - len(start)) // 2, len(tokens))
    length = min(DEFAULT_LENGTH, longest) if length is None else length
    if not 2 <= length <= longest:
        raise ValueError(
            f"length={length}: the sequence is written twice, so max_seq_len={lm.model_params.max_seq_len} and "
            f"{len(tokens)} different tokens allow 2 to {longest}"
        )
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(tokens), generator=generator)[:length] for _ in range(n_samples)]
    half_BT = torch.tensor(tokens)[torch.stack(orders)]
    start_BT = torch.tensor(start, dtype=torch.int64).expand(n_samples, -1)
    return torch.cat([start_BT, half_BT, half_BT], dim=1).to(lm.device), length


def stripe(pattern_BHTS: Tensor, back: int, n: int) -> Tensor:
    """Return the mean attention [H] of the last `n` queries to the key `back` positions before each."""
    return pattern_BHTS.diagonal(-back, dim1=-2, dim2=-1)[..., -n:].mean(dim=(0, 2))


def detect_heads(
    lm: LM,
    samples: Input | Sequence[str] | Mapping[str, Tensor],
    pattern: Tensor | np.ndarray | None = None,
    *,
    measure: Literal["share", "distance"] = "share",
    exclude_first: bool = False,
    exclude_self: bool = False,
) -> pd.DataFrame:
    """Return how well each head's attention on texts of your own agrees with expected patterns.

    `samples` are a text or a list of texts; or ids: of one sequence, in lists of any lengths, in a tensor [B, T], or in a
    batch of a DataLoader. Of several sequences, the result is the mean. Padding does not count: what the mask of a batch
    hides, and in a tensor of several rows the pad tokens at their ends.

    The table has a row for each (layer, head). Its columns are "previous_token", "duplicate_token" and "induction", or
    "pattern" if you give one: the attention [T, T] (query, key) that you expect. `measure` compares the two:

    - "share": the share of the head's attention that lies on the pattern, usually of zeros and ones.
    - "distance": 1 - the sum of absolute differences / T. It is 1 for equal patterns, and -1 if no query agrees.

    `exclude_first` ignores attention to the first token, and `exclude_self` that of tokens to themselves. These are the
    measures "mul" and "abs" of TransformerLens. Raise ValueError for an unknown measure, or a pattern of another shape.
    """
    if measure not in ("share", "distance"):
        raise ValueError(f"measure={measure!r} must be 'share' or 'distance'")
    tables = [
        agreement_on(lm, ids_T, pattern, measure, exclude_first, exclude_self)
        for ids_T in sequences_of(lm, samples)
    ]
    return sum(tables[1:], tables[0]) / len(tables)


def sequences_of(lm: LM, samples: Input | Sequence[str] | Mapping[str, Tensor]) -> list[Tensor]:
    """Return the ids [T] of each sequence, without padding. Raise ValueError if there are none."""
    if isinstance(samples, Mapping):
        rows = zip(samples["x_indices"], samples["mask"], strict=True)
        found = [ids_T[mask_T.bool()] for ids_T, mask_T in rows]
    elif isinstance(samples, Sequence) and len(samples) and isinstance(samples[0], str | Sequence):
        several = [samples] if isinstance(samples, str) else samples
        found = [ids_of(cast(Input, one), lm.tokenizer, lm.device)[0] for one in several]
    else:
        found = [*ids_of(cast(Input, samples), lm.tokenizer, lm.device)]
        if len(found) > 1:
            ends = [
                max((ids_T != lm.tokenizer.pad).nonzero().flatten().tolist(), default=0) for ids_T in found
            ]
            found = [ids_T[: end + 1] for ids_T, end in zip(found, ends, strict=True)]
    if not found:
        raise ValueError("there are no samples: give a text, or ids of at least one sequence")
    return found


def agreement_on(
    lm: LM,
    ids_T: Tensor,
    pattern: Tensor | np.ndarray | None,
    measure: str,
    exclude_first: bool,
    exclude_self: bool,
) -> pd.DataFrame:
    """Return the table of `detect_heads` for one sequence."""
    patterns = attention_patterns(lm, ids_T)
    T = len(patterns.tokens)
    if pattern is None:
        expected = expected_patterns(ids_T.tolist())
    else:
        expected = {"pattern": np.asarray(pattern, dtype=np.float32)}
        if expected["pattern"].shape != (T, T):
            raise ValueError(f"pattern has shape {expected['pattern'].shape}, but the sample needs {(T, T)}")
    counted_TS = np.ones((T, T), dtype=np.float32)
    counted_TS[:, 0] -= exclude_first
    counted_TS[range(T), range(T)] *= not exclude_self
    tables = {}
    for layer, pattern_HTS in patterns.of_layer.items():
        columns = {
            name: agreement(pattern_HTS, expected_TS, counted_TS, measure)
            for name, expected_TS in expected.items()
        }
        tables[layer] = pd.DataFrame(columns).rename_axis("head")
    return pd.concat(tables, names=["layer"])


def agreement(
    pattern_HTS: np.ndarray, expected_TS: np.ndarray, counted_TS: np.ndarray, measure: str
) -> np.ndarray:
    """Return the agreement [H] of patterns with the expected one, where `counted_TS` is 1. See `detect_heads`."""
    counted_HTS = pattern_HTS * counted_TS
    if measure == "share":
        return (counted_HTS * expected_TS).sum(axis=(1, 2)) / counted_HTS.sum(axis=(1, 2))
    distance_HTS = np.abs(pattern_HTS - expected_TS) * counted_TS
    return 1 - distance_HTS.sum(axis=(1, 2)) / len(expected_TS)


def pattern_scores(pattern_HTS: np.ndarray, tokens: Sequence[object]) -> dict[str, np.ndarray]:
    """Return scores [H] of the patterns of some heads on one sequence, by name.

    The first three are the shares of `detect_heads`. "sink" is the mean attention of later tokens to the first one.
    "entropy" is the mean entropy of a query's weights in nats: 0 if all of them are on one key.
    """
    weights_HTS = np.nan_to_num(pattern_HTS, posinf=0, neginf=0).clip(0)
    total_H = np.maximum(weights_HTS.sum(axis=(1, 2)), 1e-9)
    found = {
        name: (weights_HTS * expected_TS).sum(axis=(1, 2)) / total_H
        for name, expected_TS in expected_patterns(tokens).items()
    }
    found["sink"] = weights_HTS[:, 1:, 0].mean(axis=1) if len(tokens) > 1 else weights_HTS[:, 0, 0]
    logs_HTS = np.log(np.where(weights_HTS > 0, weights_HTS, 1))
    found["entropy"] = -(weights_HTS * logs_HTS).sum(axis=2).mean(axis=1)
    return found


def expected_patterns(tokens: Sequence[object]) -> dict[str, np.ndarray]:
    """Return where heads of known kinds attend, 1 or 0 for each query and key: [T, T].

    "previous_token" is the position before, "duplicate_token" every earlier position with the same token, and "induction"
    every position after one of these (Olsson et al. 2022).
    """
    _, numbers = np.unique(np.array(tokens), return_inverse=True)
    duplicate_TS = np.tril(numbers[:, None] == numbers, -1).astype(np.float32)
    induction_TS = np.pad(duplicate_TS, ((0, 0), (1, 0)))[:, :-1]
    previous_TS = np.eye(len(numbers), k=-1, dtype=np.float32)
    return {"previous_token": previous_TS, "duplicate_token": duplicate_TS, "induction": induction_TS}


def loss_by_position(lm: LM, samples: Samples) -> pd.DataFrame:
    """Return the mean loss (nats per token) and the number of scored tokens at each position.

    `samples` may have any type that lm.perplexities takes. Raise ValueError if no token is scored.
    """
    return scored_tokens(lm, samples).groupby("position").agg(loss=("loss", "mean"), count=("loss", "count"))


def loss_by_token(lm: LM, samples: Samples) -> pd.DataFrame:
    """Return the text, mean loss (nats) and count of each token id that is predicted, the most frequent first.

    `samples` may have any type that lm.perplexities takes. Raise ValueError if no token is scored.
    """
    table = scored_tokens(lm, samples).groupby("id").agg(loss=("loss", "mean"), count=("loss", "count"))
    table.insert(0, "token", lm.tokenizer.tokens(table.index.tolist()))
    return table.sort_values("count", ascending=False, kind="stable")


def scored_tokens(lm: LM, samples: Samples) -> pd.DataFrame:
    """Return the position, id and loss (nats) of every scored token. Raise ValueError if no token is scored."""
    tables = []
    with eval_no_grad(lm):
        for batch in batches_of(lm, samples):
            y_BT, losses_BT = lm.get_token_losses(batch)
            scored_BT = losses_BT != NO_LOSS
            losses = losses_BT[scored_BT]
            position = scored_BT.nonzero()[:, 1] + 1  # y begins with the second token
            columns = {"position": position, "id": y_BT[scored_BT], "loss": losses.double()}
            tables.append(pd.DataFrame({name: column.cpu().numpy() for name, column in columns.items()}))
    if not any(map(len, tables)):
        raise ValueError(
            "no token of the samples is scored, so there are no losses: give longer samples or more of them"
        )
    return pd.concat(tables, ignore_index=True)


Measurement: TypeAlias = pd.DataFrame | pd.Series | Tensor | np.ndarray | float


def over_checkpoints(
    function: Callable[[LM], Measurement], checkpoints: Iterable[tuple[int, LM]]
) -> pd.DataFrame:
    """Call `function` on the model of every checkpoint, and return one table of the results by step.

    `checkpoints` yields (step, lm) pairs. A result that is a DataFrame adds all its rows; a Series or a number adds one
    row. A tensor [..., N] adds a row of N values for each of its other indices, which become the index levels "0", "1"
    ... Raise TypeError for any other result, and ValueError if there are no checkpoints.
    """
    tables = [rows_of(step, function(lm)) for step, lm in checkpoints]
    if not tables:
        raise ValueError("over_checkpoints: there are no checkpoints")
    return pd.concat(tables)


def rows_of(step: int, result: Measurement) -> pd.DataFrame:
    """Return one result as rows of the table by step."""
    if isinstance(result, pd.DataFrame):
        return pd.concat({step: result}, names=["step"])
    if isinstance(result, Tensor | np.ndarray) and result.ndim:
        return rows_of(step, as_table(torch.as_tensor(result)))
    try:
        row = result if isinstance(result, pd.Series) else pd.Series([float(result)], ["value"])
    except (TypeError, ValueError):
        raise TypeError(
            f"over_checkpoints: the function must return a number, Series, DataFrame or tensor, "
            f"not {type(result).__name__}"
        ) from None
    return pd.DataFrame([row.to_numpy()], pd.Index([step], name="step"), row.index)


def as_table(values: Tensor) -> pd.DataFrame | pd.Series:
    """Return a tensor [..., N] as a table with N columns and a row for each other index, or a Series if it is 1-D."""
    numbers = values.detach().double().cpu().numpy()
    if numbers.ndim == 1:
        return pd.Series(numbers)
    others = numbers.shape[:-1]
    index = pd.MultiIndex.from_product(map(range, others), names=[str(i) for i in range(len(others))])
    return pd.DataFrame(numbers.reshape(-1, numbers.shape[-1]), index)
