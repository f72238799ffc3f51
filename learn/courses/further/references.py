"""References for `further`, by torch and transformers, under the names of the student's file."""

import tempfile
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from learn.courses.gpt2 import references as gpt2_references
from learn.courses.training import references as training_references
from model.lm import LM


class Logits(nn.Module):
    """transformers' GPT-2, which returns logits alone."""

    def __init__(self, whole: transformers.GPT2LMHeadModel) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, ids: Tensor) -> Tensor:
        return self.whole(ids, use_cache=False).logits


def pair_logprobs(logits_a: Tensor, logits_b: Tensor, strength: float) -> Tensor:
    """Return the normalized product of powers of the two distributions."""
    experts = logits_a.softmax(dim=-1) ** (1 - strength) * logits_b.softmax(dim=-1) ** strength
    return F.normalize(experts, p=1.0, dim=-1).log()


def continue_pair(
    model: Any,
    ids_a: Tensor,
    ids_b: Tensor,
    n_new: int,
    strength: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Generate with transformers' classifier-free guidance, which draws from torch's global random state."""
    with torch.random.fork_rng():
        if generator is not None:
            torch.manual_seed(generator.initial_seed())
        out = model.whole.generate(
            ids_b[None],
            attention_mask=torch.ones_like(ids_b[None]),
            negative_prompt_ids=ids_a[None],
            guidance_scale=strength,
            **({"do_sample": False} if generator is None else {"do_sample": True, "top_k": 0}),
            max_new_tokens=n_new,
            pad_token_id=0,
            eos_token_id=model.whole.config.vocab_size,  # none of the tokens ends it
        )
    return out[0, len(ids_b) :]


def accuracy(model: nn.Module, ids: Tensor, mask: Tensor, labels: Tensor) -> float:
    before = model.training
    model.eval()
    with torch.no_grad():
        logits = model(ids, mask)
    model.train(before)
    return 1 - (logits.argmax(dim=1) - labels).count_nonzero().item() / len(labels)


def finetune(
    model: nn.Module,
    ids: Tensor,
    mask: Tensor,
    labels: Tensor,
    *,
    n_epochs: int = 4,
    batch_size: int = 32,
    lr: float = 2e-3,
    generator: torch.Generator | None = None,
) -> list[float]:
    texts = torch.utils.data.TensorDataset(ids, mask, labels)
    batches = []
    for _ in range(n_epochs):
        order = torch.randperm(len(ids), generator=generator).tolist()
        batches += [*torch.utils.data.DataLoader(texts, batch_size, sampler=order)]

    def loss_of(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        return F.cross_entropy(model(*batch[:2]), batch[2])

    return training_references.train(model, batches, loss_of, lr, n_warmup=len(batches) // 10)


def induction_scores(lm: LM, ids: Tensor) -> Tensor:
    """Compute the scores from queries and keys, with hooks, pair by pair of positions."""
    T, H = ids.shape[1], lm.model_params.n_heads
    found = dict[int, Tensor]()
    hooks = [
        layer.get_submodule("mixer.qkv").register_forward_hook(lambda *args, i=i: found.update({i: args[2]}))
        for i, layer in enumerate(lm.decoder.layers)
    ]
    logits_of(lm, ids, hooks)
    scores = torch.zeros(len(found), H, dtype=torch.float64)
    for layer, out in found.items():
        q, k, _ = out.unflatten(-1, (3, H, -1)).permute(2, 0, 3, 1, 4)
        future = nn.Transformer.generate_square_subsequent_mask(T, dtype=q.dtype)
        pattern = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5 + future).softmax(dim=-1)
        for b, t in copies(ids):
            after = [s for s in range(1, t + 1) if ids[b, s - 1] == ids[b, t]]
            scores[layer] += pattern[b, :, t, after].sum(dim=-1)
    return scores / len(copies(ids))


def copies(ids: Tensor) -> list[tuple[int, int]]:
    """Return (row, position) of all tokens that occurred earlier in their row."""
    rows = ids.tolist()
    return [(b, t) for b, row in enumerate(rows) for t in range(len(row)) if row[t] in row[:t]]


def logits_of(lm: LM, ids: Tensor, hooks: list[Any]) -> Tensor:
    """Return logits in evaluation mode, and remove the hooks."""
    before = lm.training
    lm.eval()
    with torch.no_grad():
        logits = lm(ids)
    lm.train(before)
    for hook in hooks:
        hook.remove()
    return logits


def ablated_loss(lm: LM, ids: Tensor, layer: int, head: int) -> float:
    """Ablate by a hook that zeroes the head's part of the output projection's input."""
    size = lm.model_params.head_width

    def without(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        gathered = args[0].clone()
        gathered[..., head * size : (head + 1) * size] = 0.0
        return (gathered,)

    hook = lm.decoder.layers[layer].get_submodule("mixer.out").register_forward_pre_hook(without)
    logits = logits_of(lm, ids, [hook])
    places = [(b, t) for b, t in copies(ids) if t + 1 < ids.shape[1]]
    losses = [F.cross_entropy(logits[b, t], ids[b, t + 1]) for b, t in places]
    return torch.stack(losses).mean().item()


def find_induction_head(lm: LM, ids: Tensor) -> tuple[int, int] | None:
    scores = induction_scores(lm, ids).tolist()
    places = [(i, j) for i, row in enumerate(scores) for j, score in enumerate(row) if score >= 0.5]
    return max(places, key=lambda place: ablated_loss(lm, ids, *place), default=None)


class ForTrainer(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = gpt2_references.gpt2(self.model, input_ids)
        if labels is None:
            return {"logits": logits}
        scored = labels[:, 1:] != -100
        return {"loss": F.cross_entropy(logits[:, :-1][scored], labels[:, 1:][scored]), "logits": logits}


def train_with_huggingface(
    model: Any, ids: Tensor, *, n_epochs: int = 1, batch_size: int = 8, lr: float = 1e-3, seed: int = 0
) -> list[float]:
    """Train transformers' own GPT-2 with the same weights by Trainer, and copy its weights back into the model."""
    twin = gpt2_references.twin(model)
    labels = ids.clone()
    labels[:, 0] = -100  # the first token is not predicted; with -100 all versions of Trainer count alike
    with tempfile.TemporaryDirectory() as folder:
        trainer = transformers.Trainer(
            twin,
            transformers.TrainingArguments(
                output_dir=folder,
                num_train_epochs=n_epochs,
                per_device_train_batch_size=batch_size,
                learning_rate=lr,
                seed=seed,
                logging_strategy="steps",
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
            ),
            train_dataset=[{"input_ids": a, "labels": b} for a, b in zip(ids, labels, strict=True)],  # type: ignore[arg-type]
        )
        trainer.train()
    with torch.no_grad():
        for name, weight in gpt2_references.gpt2_weights(model).items():
            weight.copy_(twin.get_parameter(name))
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
