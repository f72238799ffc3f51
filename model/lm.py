"""LM: a decoder language model over a tokenizer's ids.

Shape suffixes:  B batch  T position  D model dim  V vocabulary
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from model.check import model_problems
from model.context import Context
from model.embeddings import Embedding
from model.init import readout
from model.inputs import Input, Tokenizer, ids_of
from model.model_params import ModelParams
from model.perplexity import NOT_SCORED, Perplexities, in_batches, summary, token_losses
from model.sampling import check_sampling, eval_mode, generate
from model.transformer.transformer import Transformer


class XYZ(NamedTuple):
    """A batch and what the model makes of it."""

    x: Tensor  # [B, T] the input ids
    y: Tensor  # [B, T] the ids to predict, NOT_SCORED where no loss counts
    z: Tensor  # [B, T, V] the logits


class LM(nn.Module):
    """Embedding, stack of layers, readout; and what one does with them: losses, samples, perplexities."""

    def __init__(self, model_params: ModelParams, tokenizer: Tokenizer, dropout: float = 0.0) -> None:
        super().__init__()
        for problem in model_problems(model_params):
            raise ValueError(problem)
        self.model_params = model_params
        self.tokenizer = tokenizer
        self.n_tokens = tokenizer.n_tokens
        self.embed = Embedding(model_params, self.n_tokens, dropout)
        self.decoder = Transformer(model_params, dropout)
        self.unembed = readout(model_params, self.n_tokens)
        if model_params.tied_embeddings:
            self.unembed.weight = self.embed.tokens.weight

    def forward(
        self, x: Input, get_embeddings: bool = False, get_attns: bool = False, attn_requests: Any = None
    ) -> Tensor | dict[str, Tensor]:
        """Logits [B, T, V] for a string, a list of ids, a 1-D tensor, or a batch of equal lengths.

        With get_embeddings or get_attns a mapping: "logits"; "embeddings" [B, n_layers, T, D], the output of every layer
        in the stack; "attns" [B, n_layers, n_heads, T, T] (query, then key), of the layers that have attention.
        """
        x = ids_of(x, self.tokenizer, self.device)
        if x.shape[1] > self.model_params.max_seq_len:
            raise ValueError(
                f"input of {x.shape[1]} tokens, but max_seq_len={self.model_params.max_seq_len!r}"
            )
        # x is [B, T] from here on: the place to set attn_requests by what is in it.
        wanted = ["resid_post"] * get_embeddings + ["pattern"] * get_attns
        ctx = Context(ids_BT=x, attn_requests=attn_requests, wanted=wanted)
        z = self.unembed(self.decoder(self.embed(x), ctx))
        if not wanted:
            return z
        result = {"logits": z}
        if get_embeddings:
            result["embeddings"] = self.stacked(ctx, "resid_post")
        if get_attns:
            result["attns"] = self.stacked(ctx, "pattern")
        return result

    def stacked(self, ctx: Context, name: str) -> Tensor:
        """What all layers recorded under `name`, with the layers as second dimension."""
        recorded = ctx.of_all_layers(name)
        if not recorded:
            kind, n = self.model_params.layer_architecture, self.model_params.n_layers
            raise ValueError(f"no layer records {name!r}: layer_architecture={kind!r}, n_layers={n!r}")
        return torch.stack(recorded, dim=1)

    def get_batch_xyz(self, batch: dict, loss_requests: Any = None) -> XYZ:
        """Inputs, targets and logits of a batch of data/dataloader.py, computed on the model's device.

        `loss_requests`, a function of ids [B, T], changes what the model is shown but not what it is to predict.
        """
        x_indices, scored = batch["x_indices"].to(self.device), batch["target_mask"].to(self.device)
        x = x_indices[:, :-1]
        y = x_indices[:, 1:].masked_fill(~scored[:, 1:], NOT_SCORED)
        if loss_requests is not None:
            x = loss_requests(x)
        z = self(x)
        return XYZ(x, y, z)

    def get_losses(
        self, batch: dict, train_params: Any, loss_requests: Any = None, xyz: XYZ | None = None
    ) -> tuple[dict[str, Tensor], int]:
        """Losses by name, which training adds up, and the number of rows. "main": mean cross entropy of scored tokens."""
        _, y, z = xyz or self.get_batch_xyz(batch, loss_requests)
        total = F.cross_entropy(z.flatten(0, 1), y.flatten(), ignore_index=NOT_SCORED, reduction="sum")
        n_scored = batch["n_scored"]
        return {"main": total / max(1, n_scored)}, len(y)

    def sample(
        self,
        pref: str | Sequence[int] = "",
        max_seq_len: int = 100,
        as_str: bool = True,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        nucleus: float | None = None,
        generator: torch.Generator | None = None,
    ) -> str | list[int]:
        """A continuation of `pref`, which is part of it: up to eos, or `max_seq_len` tokens in all.

        temperature divides the logits; 0 takes the most probable token. top_k: only the so many most probable tokens.
        nucleus: only the smallest set of most probable tokens that has this probability together. One of the two.
        """
        check_sampling(temperature, top_k, nucleus)
        prefix = self.tokenizer(pref) if isinstance(pref, str) else list(pref)
        if not prefix:
            raise ValueError(
                "pref=[] gives the model nothing to continue: begin with the tokenizer's bos, as pref='' does"
            )
        max_new_tokens = min(max_seq_len, self.model_params.max_seq_len) - len(prefix)
        if max_new_tokens < 1:
            raise ValueError(
                f"pref of {len(prefix)} tokens leaves nothing to sample: max_seq_len={max_seq_len!r}, "
                f"and the model's own is {self.model_params.max_seq_len!r}"
            )
        [ids] = generate(
            self,
            [prefix],
            max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            nucleus=nucleus,
            generator=generator,
        )
        return self.tokenizer.decode(ids) if as_str else ids

    def perplexities(
        self,
        samples: Sequence[str] | Sequence[Sequence[int]] | DataLoader,
        per_token: bool = False,
        before_exp: bool = False,
        dummy_res: float = -1,
    ) -> Perplexities:
        """Mean, largest and smallest perplexity of a token, the number of tokens, and with per_token all of them.

        The mean is exp(mean cross entropy of all scored tokens); before_exp gives cross entropies instead of their exp.
        per_token_res is [samples, longest sample - 1], dummy_res where no prediction is scored.
        """
        with torch.no_grad(), eval_mode(self):
            batches = samples if isinstance(samples, DataLoader) else self.batches_of(samples)
            xyzs = (self.get_batch_xyz(batch) for batch in batches)
            rows = [row for _, y, z in xyzs for row in token_losses(y, z).cpu()]
        return summary(rows, per_token, before_exp, dummy_res)

    def batches_of(self, samples: str | Sequence[str] | Sequence[Sequence[int]]) -> Iterator[dict]:
        """Strings, or lists of ids, in batches like those of a DataLoader."""
        samples = [samples] if isinstance(samples, str) else samples
        rows = [self.tokenizer(sample) if isinstance(sample, str) else sample for sample in samples]
        return in_batches(rows, self.tokenizer.pad)

    @property
    def device(self) -> torch.device:
        return self.unembed.weight.device


def n_params(model: nn.Module) -> int:
    """Numbers in all parameters, shared ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())
