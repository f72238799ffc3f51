"""LM: a language model over token ids, a decoder or, with causal=False and objective="masked", an encoder like BERT.

Shape suffixes:  B batch  T position  D model dim  V vocabulary
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from model.context import AddedLosses, Cache, Context, Uncacheable
from model.cross_entropy import cross_entropy_sum
from model.generation.beam import Beam, EarlyStopping, Search, beam_search
from model.generation.decoding import CacheCheck
from model.generation.sampling import (
    Prompt,
    Stop,
    TokenSampler,
    eval_mode,
    is_prompt,
    prompt_ids,
    stop_ids,
)
from model.inputs import Input, Tokenizer, ids_of, left_padding, real_tokens, too_long
from model.masking import diffusion_sum, fill_masks, losses_in_turn, masked_batch, unmasked_batch
from model.model_params import ModelParams
from model.perplexity import (
    NOT_SCORED,
    Perplexities,
    TokenLosses,
    in_batches,
    pad_ids,
    summarize,
    token_losses,
)
from model.problems import model_problems
from model.recording import Edit, Patch, Recording, Taps, tapping, without_recordings
from model.transformer.attention_parts import Softcap
from model.transformer.embeddings import Embedding
from model.transformer.experts import Experts
from model.transformer.linear import readout
from model.transformer.mlm_head import readout_transform
from model.transformer.transformer import Transformer
from model.unmasking import continue_rows

LossRequests = Callable[[Tensor], Tensor]  # ids [B, T] -> the ids that the model gets instead


class XYZ(NamedTuple):
    """Inputs and targets of a batch, and the model's logits."""

    x: Tensor  # [B, T] the input ids
    y: Tensor  # [B, T] the ids to predict, NOT_SCORED where no loss counts
    z: Tensor  # [B, T, V] the logits


class LM(nn.Module):
    """Embedding, stack of layers and unembedding, with methods for losses, samples and perplexities.

    `dropout` is a probability from 0 to 1. Raise ValueError for an architecture that the layers do not support.
    """

    def __init__(self, model_params: ModelParams, tokenizer: Tokenizer, dropout: float = 0.0) -> None:
        super().__init__()
        for problem in model_problems(model_params):
            raise ValueError(problem)
        self.model_params = model_params
        self.name = ""  # the run or pretrained model that the weights come from, for titles
        self.tokenizer = tokenizer
        self.n_tokens = tokenizer.n_tokens
        self.taps = Taps()  # active observers and patches of activations
        self.added_losses = AddedLosses()
        self.cache_check = CacheCheck()  # tells whether generation may use a cache
        self.n_scored: Tensor | None = None  # number of tokens in the means of the latest get_losses
        self.embed = Embedding(model_params, self.n_tokens, dropout)
        self.decoder = Transformer(model_params, dropout, self.n_tokens)
        self.transform = readout_transform(model_params)
        self.unembed = readout(model_params, self.n_tokens)
        cap = model_params.logit_softcap
        self.softcap = nn.Identity() if cap is None else Softcap(cap)
        self.has_experts = any(isinstance(module, Experts) for module in self.modules())
        if model_params.tied_embeddings:
            self.unembed.weight = self.embed.tokens.weight

    def forward(
        self,
        x: Input,
        get_embeddings: bool = False,
        get_attns: bool = False,
        attn_requests: object = None,
        cache: Cache | None = None,
        mask: Tensor | None = None,
        *,
        counted: Tensor | None = None,
    ) -> Tensor | dict[str, Tensor]:
        """Return logits [B, T, V] for a string, a list of ids, a 1-D tensor, or a batch of equal lengths.

        With get_embeddings or get_attns the result is a mapping:
        - "logits" [B, T, V].
        - "embeddings" [B, n_layers, T, D], the output of every layer in the stack.
        - "attns" [B, n_layers, n_heads, T, T] (query, then key), of the layers that have attention.
        With n_loops, there are n_layers * n_loops of both.

        With a cache, `x` still holds all tokens so far; only the tokens after the cached ones are computed.
        `mask` [B, T] is True at real tokens; no position attends to the others. Padding on the left does not count in
        positions, so the real tokens get the same logits as without it.
        `counted` [B, T] is True where added losses and loads of experts count a token, by default where `mask` is.
        Raise ValueError for ids outside the vocabulary or more than max_seq_len tokens.
        """
        x = ids_of(x, self.tokenizer, self.device)
        if x.shape[1] > self.model_params.max_seq_len:
            raise too_long(x.shape[1], self.model_params.max_seq_len)
        # From here on x holds ids [B, T]. Set attn_requests here if it depends on them.
        if cache is not None and attn_requests is not None:
            raise Uncacheable("attn_requests is set")
        if cache is not None and not self.model_params.causal:
            raise Uncacheable("with causal=False earlier tokens depend on later ones")
        record = Recording(["*.resid_post"] * get_embeddings + ["*.pattern"] * get_attns)
        taps = [*self.taps, record] if record.patterns else self.taps
        real_BT = real_tokens(mask, x)
        ctx = Context(x, attn_requests, taps, cache, real_BT, left_padding(real_BT, self.model_params.causal))
        ctx.counted_BT = real_BT if counted is None else counted
        new_BT = x[:, ctx.start :]
        stream = self.decoder(ctx.tap("embed", self.embed(new_BT, ctx.start, ctx.padding_B)), ctx)
        if cache is not None and cache.n_logits is not None:
            stream = stream[:, stream.shape[1] - cache.n_logits :]
        z = ctx.tap("logits", self.softcap(self.unembed(self.transform(stream))))
        if cache is not None:
            cache.seen = x.shape[1]
        self.add_losses_of_further_tokens(ctx, self.added_losses.targets)
        if self.added_losses.wanted and (ctx.losses or ctx.expert_loads):
            self.added_losses.update(ctx.losses)
            self.added_losses.expert_loads.update(ctx.expert_loads)
        if not record.patterns:
            return z
        result = {"logits": z}
        if get_embeddings:
            result["embeddings"] = self.stacked(record, "resid_post")
        if get_attns:
            result["attns"] = self.stacked(record, "pattern")
        return result

    def stacked(self, record: Recording, name: str) -> Tensor:
        """Return the activations that all layers recorded under `name`, stacked along dimension 1."""
        recorded = record.of_all_layers(name)
        if not recorded:
            kind, n = self.model_params.layer_architecture, self.model_params.n_layers
            raise ValueError(f"no layer records {name!r}: layer_architecture={kind!r}, n_layers={n!r}")
        if len(shapes := {x.shape for x in recorded}) > 1:
            raise ValueError(
                f"{name!r} differs in shape between layers, {sorted(map(tuple, shapes))}: record it by lm.record({name!r})"
            )
        return torch.stack(recorded, dim=1)

    def record(self, *patterns: str) -> AbstractContextManager[Recording]:
        """Record activations: `with lm.record("pattern", "layers.0.*") as seen:` keeps those of the last forward pass.

        Without patterns all are recorded. A pattern is a name, with * for anything.
        A pattern without a dot matches in every layer. Inside a patch the patched values are recorded.
        A recording around `sample` or `beam_search` holds the activations of all tokens of the results. Generation itself
        is not recorded: the finished rows, padded on the right, pass through the model once more.
        Raise ValueError at the end for a pattern that matched nothing.
        """
        return tapping(self, self.taps, Recording(patterns or ["*"]))

    def patch(self, edits: Mapping[str, Edit]) -> AbstractContextManager[Patch]:
        """Replace activations: `with lm.patch({"layers.0.z": edit}):` puts the result of `edit` in their place.

        An edit is a function of the activation, a tensor (such as a Recording has), a number, or "mean" over the batch.
        `at` of model/recording.py restricts an edit to some heads or positions. Names are patterns, as in `record`.
        """
        return tapping(self, self.taps, Patch(edits))

    def activation_names(self) -> list[str]:
        """Return the names of all activations, in order of computation. Runs the model on one token."""
        taps, self.taps = self.taps, Taps()  # this run is not recorded or patched by others
        try:
            with torch.no_grad(), eval_mode(self), self.record() as seen:
                self([0])
        finally:
            self.taps = taps
        return list(seen)

    def get_batch_xyz(
        self, batch: Mapping[str, Tensor], loss_requests: LossRequests | None = None, train_params: Any = None
    ) -> XYZ:
        """Return inputs, targets and logits of a batch of data/dataloader.py, computed on the model's device.

        `loss_requests`, a function of ids [B, T], changes the inputs but not the targets. `train_params` are the
        TrainParams, or None for their defaults. With another objective than "next-token", training hides different tokens
        each time, and evaluation hides the same tokens of a row every time.
        """
        if self.model_params.hides_tokens:
            x, y = masked_batch(batch, self, train_params)
        else:
            x_indices, scored = batch["x_indices"].to(self.device), batch["target_mask"].to(self.device)
            x = batch.get("shown", x_indices).to(self.device)[:, :-1]
            y = x_indices[:, 1:].masked_fill(~scored[:, 1:], NOT_SCORED)
        if loss_requests is not None:
            x = loss_requests(x)
        self.added_losses.clear()
        self.added_losses.expert_loads.clear()
        self.added_losses.wanted = True
        self.added_losses.targets = y if self.model_params.n_predict > 1 else None
        masks = {}
        if self.has_experts or not self.model_params.causal:
            # With "next-token" the last token of a row predicts nothing, whether the batch has longer rows or not.
            first = 0 if self.model_params.hides_tokens else 1
            name = "counted" if self.model_params.causal else "mask"
            masks[name] = batch["mask"][:, first : first + x.shape[1]].to(x.device)
        try:
            z = self(x, **masks)
        finally:
            self.added_losses.wanted, self.added_losses.targets = False, None
        return XYZ(x, y, z)

    def get_losses(
        self,
        batch: Mapping[str, Tensor],
        train_params: Any,
        loss_requests: LossRequests | None = None,
        xyz: XYZ | None = None,
    ) -> tuple[dict[str, Tensor], int]:
        """Return the losses by name, as scalars, and the number of rows. Training minimizes the sum of the losses.

        "main" is the mean cross entropy of the scored tokens in nats. With objective="diffusion" it is the mean of the
        bound over all tokens that may be hidden (see model/masking.py). The others are the weighted losses that layers add
        with `ctx.add_loss`, "token2" ... of `n_predict`, and "z" if `train_params.z_loss` is set. `xyz` is the result of
        `get_batch_xyz`, if it was called just before. This method sets `self.n_scored` to the number of scored tokens, by
        which training weighs the batches of an optimizer step.
        """
        _, y, z = xyz or self.get_batch_xyz(batch, loss_requests, train_params)
        if self.model_params.objective == "diffusion":
            scored = unmasked_batch(batch, self).scored
            total, self.n_scored = diffusion_sum(scored, y, z), scored.sum()
        else:
            total = cross_entropy_sum(z.flatten(0, 1), y.flatten())
            self.n_scored = (y != NOT_SCORED).sum()
        losses = {"main": total / self.n_scored.clamp(min=1), **self.added_losses}
        if train_params is not None and train_params.z_loss:
            losses["z"] = train_params.z_loss * self.squared_log_z(y, z)
        return losses, len(y)

    def add_losses_of_further_tokens(self, ctx: Context, y: Tensor | None) -> None:
        """Add the losses "token2", "token3" ... up to `n_predict` (Gloeckle et al. 2024, arXiv:2404.19737).

        Each is the mean cross entropy of the scored tokens that many places ahead, times `predict_weight`. They share the
        unembedding with "main". Without targets `y` nothing is computed.
        """
        if y is None:
            return
        for i, stream in enumerate(self.decoder.further_streams(ctx), start=1):
            z = self.softcap(self.unembed(self.transform(stream)))
            y_ahead = nn.functional.pad(y[:, i:], (0, min(i, y.shape[1])), value=NOT_SCORED)
            total = cross_entropy_sum(z.flatten(0, 1), y_ahead.flatten())
            mean = total / (y_ahead != NOT_SCORED).sum().clamp(min=1)
            ctx.add_loss(f"token{i + 1}", mean, self.model_params.predict_weight)

    def squared_log_z(self, y: Tensor, z: Tensor) -> Tensor:
        """Return the mean of log(sum(exp(logits)))^2 over scored tokens (PaLM: Chowdhery et al. 2022, section 5)."""
        squares_BT, scored_BT = z.logsumexp(dim=-1).square(), y != NOT_SCORED
        return (squares_BT * scored_BT).sum() / scored_BT.sum().clamp(min=1)

    def sample(
        self,
        pref: Prompt | Sequence[Prompt] = "",
        max_seq_len: int = 100,
        as_str: bool = True,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        nucleus: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        stop: Stop = (),
        parse_special: bool = False,
        n_samples: int = 1,
        generator: torch.Generator | None = None,
        attn_requests: object = None,
        use_cache: bool = True,
        return_logprobs: bool = False,
        n_steps: int | None = None,
    ) -> Any:
        """Return `pref` with a sampled continuation, up to a stop token or `max_seq_len` tokens in all.

        A list of prompts gives a list of samples. With n_samples > 1 there is a list of samples for each prompt.
        return_logprobs gives pairs (sample, log-probabilities of its new tokens under the model's plain softmax).

        - temperature: divides the logits; 0 takes the most probable token.
        - top_k: keep only the top_k most probable tokens, and ties.
        - nucleus: keep only the smallest set of most probable tokens with this total probability. Not with top_k.
        - min_p: keep only tokens with at least this share of the highest probability.
        - repetition_penalty: above 1 makes tokens that already occur less likely.
        - stop: ids, or texts of one token each, special ones included, that end a sample like `tokenizer.stops`.
        - parse_special: "<|im_end|>" in a prompt is that special token, not its text.
        - use_cache: False recomputes all tokens at each step. Edits that look at later tokens need this.
        - n_steps: of objective="diffusion", which begins with mask tokens up to `max_seq_len`: the number of forward passes
          in which they are replaced. None: one for each token. Temperature 0 replaces the most certain ones first.

        Raise ValueError for a setting out of range, or for a prompt that leaves no room for a new token.
        """
        sampler = TokenSampler(temperature, top_k, nucleus, min_p, repetition_penalty, generator)
        if n_samples < 1:
            raise ValueError(f"n_samples={n_samples!r} must be at least 1")
        stops = stop_ids(stop, self.tokenizer)
        prompts: list[Any] = [pref] if is_prompt(pref) else [*pref]
        rows = [
            ids
            for prompt in prompts
            for ids in [prompt_ids(prompt, self, max_seq_len, parse_special)] * n_samples
        ]
        with without_recordings(self.taps) as is_recorded:
            continued = continue_rows(
                self,
                rows,
                [min(max_seq_len, self.model_params.max_seq_len)] * len(rows),
                sampler,
                stop=stops,
                attn_requests=attn_requests,
                use_cache=use_cache,
                return_logprobs=return_logprobs,
                n_steps=n_steps,
            )
        if is_recorded:
            self.record_rows([ids for ids, _ in continued], attn_requests)
        decode = self.tokenizer.decode if as_str else list
        samples: list[Any] = [
            (decode(ids), logprobs) if return_logprobs else decode(ids) for ids, logprobs in continued
        ]
        if n_samples > 1:
            samples = [samples[i : i + n_samples] for i in range(0, len(samples), n_samples)]
        return samples[0] if is_prompt(pref) else samples

    def beam_search(
        self,
        pref: Prompt = "",
        max_seq_len: int = 100,
        as_str: bool = True,
        *,
        n_beams: int = 4,
        n_best: int = 1,
        length_penalty: float = 1.0,
        early_stopping: EarlyStopping = False,
        stop: Stop = (),
        parse_special: bool = False,
        attn_requests: object = None,
        use_cache: bool = True,
    ) -> list[Beam]:
        """Return the `n_best` best continuations of a prompt that are found, and their scores, best first.

        At each step the `n_beams` most probable unfinished continuations go on. The score is the sum of
        log-probabilities divided by (number of new tokens)^length_penalty. A penalty above 0 favors long texts.
        `early_stopping` says when to end:
        - True: there are n_beams finished continuations.
        - False: also, the best unfinished one scores no better at its current length.
        - "never": also, the best unfinished one cannot score better at any length.

        Results equal those of HuggingFace's `generate`. `stop` and `parse_special` are as in `sample`.
        """
        search = Search(n_beams, n_best, length_penalty, early_stopping)
        with without_recordings(self.taps) as is_recorded:
            beams = beam_search(
                self,
                prompt_ids(pref, self, max_seq_len, parse_special),
                min(max_seq_len, self.model_params.max_seq_len),
                search,
                stop=stop_ids(stop, self.tokenizer),
                attn_requests=attn_requests,
                use_cache=use_cache,
            )
        if is_recorded:
            self.record_rows([ids for ids, _ in beams], attn_requests)
        return [Beam(self.tokenizer.decode(ids) if as_str else ids, score) for ids, score in beams]

    @torch.no_grad()
    def record_rows(self, rows: Sequence[Sequence[int]], attn_requests: object) -> None:
        """Run finished rows through the model once, for recordings around a call that generates them.

        Shorter rows are padded on the right. An activation of a causal model does not depend on what follows.
        """
        ids_BT = pad_ids(rows, self.tokenizer.pad).to(self.device)
        lengths_B1 = torch.tensor([[len(row)] for row in rows])
        mask_BT = torch.arange(ids_BT.shape[1]) < lengths_B1
        mask = None if mask_BT.all() else mask_BT.to(self.device)
        with eval_mode(self):
            self(ids_BT, attn_requests=attn_requests, mask=mask)

    def fill(self, text: str | Sequence[int], as_str: bool = True, return_probs: bool = False) -> Any:
        """Return a text with each mask token replaced by the most probable token: "we the <mask> of".

        Only for the objectives "masked" and "diffusion". Ids are used unchanged. Each of several gaps is filled as if the
        others were open.
        return_probs gives a pair (text, probabilities of the tokens filled in).
        Raise ValueError if there is no mask token to fill.
        """
        if not self.model_params.hides_tokens:
            raise ValueError(
                "lm.fill needs objective='masked'; with objective='next-token', use lm.sample to continue a text"
            )
        ids = self.tokenizer.with_gaps(text) if isinstance(text, str) else list(text)
        with torch.no_grad(), eval_mode(self):
            ids, probs = fill_masks(ids, self)
        result = self.tokenizer.decode(ids) if as_str else ids
        return (result, probs) if return_probs else result

    def perplexities(
        self,
        samples: Sequence[str] | Sequence[Sequence[int]] | DataLoader,
        per_token: bool = False,
        before_exp: bool = False,
        dummy_res: float = -1,
    ) -> Perplexities:
        """Return the mean, largest and smallest perplexity of a token, the number of scored tokens, and per_token_res.

        `samples` are texts, lists of ids, or a DataLoader with batches of data/dataloader.py.
        The mean is exp(mean cross entropy of all scored tokens). before_exp gives cross entropies in nats instead.
        Without bos the first token of a text is not scored: nothing predicts it. With per_token, per_token_res holds
        the perplexities [samples, longest sample - 1], with dummy_res where no token is scored. Raise ValueError if no
        token is scored.

        With the objectives "masked" and "diffusion" these are pseudo-perplexities (Salazar et al. 2020): each token is
        masked in turn, which takes one row per token. A string becomes bos, its tokens and eos; eos is not scored.
        """
        with torch.no_grad(), eval_mode(self):
            batches = samples if isinstance(samples, DataLoader) else self.batches_of(samples)
            rows = [row for batch in batches for row in self.get_token_losses(batch).losses.cpu()]
        return summarize(rows, per_token, before_exp, dummy_res)

    def get_token_losses(self, batch: Mapping[str, Tensor]) -> TokenLosses:
        """Return the cross entropy of each token of a batch.

        Objectives other than "next-token" mask each token alone, in turn.
        """
        if self.model_params.hides_tokens:
            rows = unmasked_batch(batch, self)
            return TokenLosses(rows.ids[:, 1:], losses_in_turn(rows, self)[:, 1:])
        _, y, z = self.get_batch_xyz(batch)
        return TokenLosses(y, token_losses(y, z))

    def batches_of(
        self, samples: str | Sequence[str] | Sequence[Sequence[int]]
    ) -> Iterator[dict[str, Tensor]]:
        """Yield strings, or lists of ids, in batches like those of a DataLoader."""
        samples = [samples] if isinstance(samples, str) else samples
        masked = self.model_params.hides_tokens
        return in_batches(samples, self.tokenizer, self.model_params.max_seq_len if masked else None)

    @property
    def device(self) -> torch.device:
        return self.unembed.weight.device


def n_params(model: nn.Module) -> int:
    """Return the number of parameters, shared ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())
