"""Numbers for every head, position and token, and all of them over the checkpoints of a run.

Shape suffixes:  B batch  T position  S position attended to  H head
"""

from collections.abc import Callable, Iterable
from typing import TypeAlias

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from explore.analysis import Samples, batches_of, looking
from model.lm import LM
from model.perplexity import NO_LOSS

LENGTH = 50  # of the random sequence that heads are shown twice, at most


def head_scores(lm: LM, n_samples: int = 16, length: int | None = None, seed: int = 0) -> pd.DataFrame:
    """A row for each layer and head: shares of its attention, from 0 to 1, on random tokens that are repeated once.

    previous_token: to the position before. duplicate_token: to the same token's first occurrence. induction: to the token
    that came after it (Olsson et al. 2022). All are means over the tokens of the repetition, `length` in each sample; None:
    as many as fit, all different, 50 at most.
    """
    ids_BT, length = repeated(lm, n_samples, length, seed)
    with looking(lm), lm.record("layers.*.pattern") as seen:
        lm(ids_BT)
    back = {"previous_token": 1, "duplicate_token": length, "induction": length - 1}
    tables = {}
    for name, pattern_BHTS in seen.items():
        columns = {score: stripe(pattern_BHTS, n, length).tolist() for score, n in back.items()}
        tables[int(name.split(".")[1])] = pd.DataFrame(columns).rename_axis("head")
    return pd.concat(tables, names=["layer"])


def repeated(lm: LM, n_samples: int, length: int | None, seed: int) -> tuple[Tensor, int]:
    """Bos, if the tokenizer has it, and `length` random tokens, twice; none occurs twice in the first half."""
    tokenizer = lm.tokenizer
    tokens = [i for i in range(lm.n_tokens) if i not in (tokenizer.bos, tokenizer.eos, tokenizer.pad)]
    start = [tokenizer.bos] if tokenizer.bos in range(lm.n_tokens) else []
    longest = min((lm.model_params.max_seq_len - len(start)) // 2, len(tokens))
    length = min(LENGTH, longest) if length is None else length
    if not 2 <= length <= longest:
        raise ValueError(
            f"length={length} tokens are to be shown twice: max_seq_len={lm.model_params.max_seq_len} and {len(tokens)} "
            f"different tokens allow 2 to {longest}"
        )
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(tokens), generator=generator)[:length] for _ in range(n_samples)]
    half_BT = torch.tensor(tokens)[torch.stack(orders)]
    start_BT = torch.tensor(start, dtype=torch.int64).expand(n_samples, -1)
    return torch.cat([start_BT, half_BT, half_BT], dim=1).to(lm.device), length


def stripe(pattern_BHTS: Tensor, back: int, n: int) -> Tensor:
    """[H]: the mean attention of the last n queries to the key so many positions back."""
    return pattern_BHTS.diagonal(-back, dim1=-2, dim2=-1)[..., -n:].mean(dim=(0, 2))


def loss_by_position(lm: LM, samples: Samples) -> pd.DataFrame:
    """The mean loss of the tokens at each position of `samples` (those of lm.perplexities), and how many are scored there."""
    return scored_tokens(lm, samples).groupby("position").agg(loss=("loss", "mean"), count=("loss", "count"))


def loss_by_token(lm: LM, samples: Samples) -> pd.DataFrame:
    """The mean loss where each token was to be predicted, how often that was, and its text; the most frequent first."""
    table = scored_tokens(lm, samples).groupby("id").agg(loss=("loss", "mean"), count=("loss", "count"))
    table.insert(0, "token", lm.tokenizer.tokens(table.index.tolist()))
    return table.sort_values("count", ascending=False, kind="stable")


def scored_tokens(lm: LM, samples: Samples) -> pd.DataFrame:
    """A row for each scored token: its position in its sample, its id, its loss."""
    tables = []
    with looking(lm):
        for batch in batches_of(lm, samples):
            y_BT, losses_BT = lm.get_token_losses(batch)
            scored_BT = losses_BT != NO_LOSS
            losses = losses_BT[scored_BT]
            position = scored_BT.nonzero()[:, 1] + 1  # y begins with the second token
            columns = {"position": position, "id": y_BT[scored_BT], "loss": losses.double()}
            tables.append(pd.DataFrame({name: column.cpu().numpy() for name, column in columns.items()}))
    if not any(map(len, tables)):
        raise ValueError(
            "losses of samples in which no token is scored: give longer samples, or more of them"
        )
    return pd.concat(tables, ignore_index=True)


Result: TypeAlias = pd.DataFrame | pd.Series | Tensor | np.ndarray | float


def over_checkpoints(function: Callable[[LM], Result], checkpoints: Iterable[tuple[int, LM]]) -> pd.DataFrame:
    """Call `function` on every (step, lm) and return the results in one table by step.

    A table adds all its rows, a Series or a number one row. A tensor of shape [..., N] adds a row of N values for each of
    its other indices, which are levels "0", "1" ... of the index. TypeError for anything else.
    """
    tables = [rows_of(step, function(lm)) for step, lm in checkpoints]
    if not tables:
        raise ValueError("there are no checkpoints to go over")
    return pd.concat(tables)


def rows_of(step: int, result: Result) -> pd.DataFrame:
    if isinstance(result, pd.DataFrame):
        return pd.concat({step: result}, names=["step"])
    if isinstance(result, Tensor | np.ndarray) and result.ndim:
        return rows_of(step, table_of(torch.as_tensor(result)))
    try:
        row = result if isinstance(result, pd.Series) else pd.Series([float(result)], ["value"])
    except (TypeError, ValueError):
        raise TypeError(
            f"over_checkpoints needs a function that returns a number, Series, DataFrame or tensor, "
            f"not {type(result).__name__}"
        ) from None
    return pd.DataFrame([row.to_numpy()], pd.Index([step], name="step"), row.index)


def table_of(values: Tensor) -> pd.DataFrame | pd.Series:
    """Return a tensor [..., N] as a table with N columns, a row for each of its other indices; a Series if it is 1-D."""
    numbers = values.detach().double().cpu().numpy()
    if numbers.ndim == 1:
        return pd.Series(numbers)
    others = numbers.shape[:-1]
    index = pd.MultiIndex.from_product(map(range, others), names=[str(i) for i in range(len(others))])
    return pd.DataFrame(numbers.reshape(-1, numbers.shape[-1]), index)
