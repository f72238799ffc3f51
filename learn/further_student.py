"""Further exercises: replace each `raise NotImplementedError` and run `python3 -m learn check further`.

learn/further.md says what to read first and how long it takes. Do the four exercises in any order. You may use all of
torch, softmax and cross_entropy included. Where something must be your own, such as the training loop, the docstring
says so.

In the comments  B batch  T position  S position attended to  N number of texts  V vocabulary  C classes.
"""

import tempfile  # noqa: F401  these are for you to use

import torch
import transformers  # noqa: F401
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: F401

from learn.training_student import train  # noqa: F401
from model.generation.sampling import eval_mode  # noqa: F401
from model.lm import LM
from model.recording import at  # noqa: F401


def pair_logprobs(logits_a: Tensor, logits_b: Tensor, strength: float) -> Tensor:
    """One distribution out of two contexts' predictions (Li et al. 2023, section 3; Sanchez et al. 2023, equation 7).

    logits_a, logits_b [B, V] are one model's logits of the next token after two contexts. Returns the log-probabilities
    [B, V] of
        log p = log p_a + strength (log p_b - log p_a), normalized such that p sums to 1 over the vocabulary
    So strength 0 gives a, 1 gives b, 1/2 a compromise, and above 1 moves beyond b, away from a. An example:
    p_a = (0.5, 0.5), p_b = (0.75, 0.25) and strength 2 give p = (0.9, 0.1).
    """
    raise NotImplementedError


def continue_pair(
    model: nn.Module,
    ids_a: Tensor,
    ids_b: Tensor,
    n_new: int,
    strength: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One continuation of two contexts at once, token by token.

    model(ids [1, T]) gives logits [1, T, V]; those of the last position are for the next token. ids_a [Ta] and ids_b
    [Tb] are the contexts, of any two lengths. Each new token is taken from pair_logprobs and appended to both.
    Without a generator it is the most probable one. With a generator it is drawn by
    `torch.multinomial(probabilities, 1, generator=generator)`, once for each token, so that your draws can be compared.
    Returns only the new tokens, a tensor [n_new]. Do not change the contexts.
    """
    raise NotImplementedError


def accuracy(model: nn.Module, ids: Tensor, mask: Tensor, labels: Tensor) -> float:
    """Share of texts that are classified rightly, from 0 to 1.

    model(ids [N, T], mask [N, T]) gives logits [N, C]: a row for each text, whose largest logit is its class. mask is 1
    where there is a token, 0 where there is padding. labels [N] are the right classes. Run the model in evaluation
    mode (dropout off) and without gradients, and restore its mode afterwards.
    Hint:  `with torch.no_grad(), eval_mode(model):` does all of that.
    """
    raise NotImplementedError


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
    """Train a classifier on labeled texts, by your own `train`; returns its losses (Devlin et al. 2019, 3.2 and A.3).

    The model and its arguments are as in `accuracy`. Every parameter is trained, not just those of the head.
    Every epoch goes through all texts in a new order, torch.randperm(N, generator=generator), batch_size of
    them at a time. The last batch of an epoch may be smaller. The loss of a batch is the mean cross-entropy in nats.
    The learning rate warms up for a tenth of all steps (rounded down) and then falls to 0. Leave the other arguments of
    `train` at their defaults.
    Hint:  a batch may be anything that `loss_of` understands: here the indices of its texts.
    """
    raise NotImplementedError


def induction_scores(lm: LM, ids: Tensor) -> Tensor:
    """Induction score of each head, [n_layers, n_heads] (Olsson et al. 2022, "Key concepts").

    An induction head continues "... A B ... A" with B. At a position t whose token occurred earlier in its row, it
    attends to the position right after that occurrence. So position s belongs to t if 1 <= s <= t and
    ids[s - 1] == ids[t]; there may be several, or none. Add up the attention from t to all s that belong to t. The score
    of a head is the mean of these sums over all t (of all rows) that have such an s.
    `lm` is a model of this project's harness, ids [B, T] a batch. Run the model in evaluation mode, and restore its mode
    afterwards.
    Hints:  `with lm.record("pattern") as seen: lm(ids)` keeps what every head attends to; `seen.of_all_layers("pattern")`
            is a list with a tensor [B, n_heads, T, S] for each layer. Or lm(ids, get_attns=True).
            `ids[:, :, None] == ids[:, None, :]` tells which tokens are the same.
    """
    raise NotImplementedError


def ablated_loss(lm: LM, ids: Tensor, layer: int, head: int) -> float:
    """Loss of the tokens that could be copied, when one head writes nothing.

    Returns a float: the mean cross-entropy, in nats, of the token at t + 1, over all positions t whose token occurred
    earlier in its row. The last position of a row predicts nothing and is left out. Layers and heads count from 0. Run
    the model in evaluation mode, and leave it as it was.
    Hint:  `with lm.patch({"layers.0.z": at(0, heads=3)}):` sets the output of head 3 of layer 0 to 0.
    """
    raise NotImplementedError


def find_induction_head(lm: LM, ids: Tensor) -> tuple[int, int] | None:
    """The induction head that copying needs most: (layer, head), or None if there is no induction head.

    Of the heads whose induction score is at least 0.5, it is the one with the largest `ablated_loss`. (A score alone is
    not enough: a head may attend there and write nothing. A large ablated loss is not enough either: an induction head
    may depend on that head.)
    """
    raise NotImplementedError


class ForTrainer(nn.Module):
    """A language model as HuggingFace's Trainer wants it.

    model(ids [B, T]) gives logits [B, T, V], as your GPT-2 does.
    Attribute:  model
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        raise NotImplementedError

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """{"loss": mean cross-entropy, "logits": [B, T, V]}, without labels {"logits": ...} alone.

        labels [B, T] are the ids themselves: compare position t with the label at t + 1. Labels of -100 are not predicted
        and do not count in the mean.
        Hint:  do not take further arguments by `**`: Trainer would leave the averaging over batches to you.
        """
        raise NotImplementedError


def train_with_huggingface(
    model: nn.Module,
    ids: Tensor,
    *,
    n_epochs: int = 1,
    batch_size: int = 8,
    lr: float = 1e-3,
    seed: int = 0,
) -> list[float]:
    """Train a model on texts [N, T] by transformers.Trainer, and return the loss of every step.

    Wrap the model in ForTrainer. The data set is a list of {"input_ids": ids of a text, "labels": the same ids}.
    In transformers.TrainingArguments set epochs, batch size, learning rate and seed from the arguments above. Log every
    step, run on the CPU, save nothing and report to nothing. Leave everything else at its default: the optimizer, the
    linear learning rate schedule, clipping. Pass a temporary folder as output folder.
    Hints:  after trainer.train() the losses are in trainer.state.log_history, in entries that have a "loss".
            disable_tqdm=True and trainer.remove_callback(transformers.PrinterCallback) keep it quiet.
    """
    raise NotImplementedError
