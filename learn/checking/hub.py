"""Checks on pretrained weights of the Hugging Face hub, from the cache or downloaded."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.hub import hub_answers
from learn.checking.course import Case, Check, NotTried, Wrong, clock_stopped
from learn.checking.explain import difference
from learn.checking.parity import call

FILES = ("config.json", "model.safetensors")
SECONDS = 3.0  # timeout for an answer of the hub, once in a process


def pretrained_folder(name: str) -> Path:
    """Return the folder of a model, given by its path or its name on the hub. Raise NotTried if it is unavailable."""
    if (Path(name) / FILES[0]).is_file():
        return Path(name)
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return download(name, local_files_only=True)
    except LocalEntryNotFoundError:
        if not reachable():
            raise NotTried("pretrained weights: the hub is not reachable") from None
    try:
        return download(name, etag_timeout=SECONDS)
    except (OSError, HfHubHTTPError) as error:
        raise NotTried(f"pretrained weights: {name} cannot be downloaded ({type(error).__name__})") from None


def download(name: str, **options: Any) -> Path:
    from huggingface_hub import hf_hub_download

    [folder] = {Path(hf_hub_download(name, file, **options)).parent for file in FILES}
    return folder


@cache
def reachable() -> bool:
    """Return True if the hub answers within `SECONDS`.

    A thread is needed, because the DNS lookup may take longer than the timeout.
    """
    answers = list[bool]()
    asking = threading.Thread(target=lambda: answers.append(hub_answers(SECONDS)), daemon=True)
    asking.start()
    asking.join(SECONDS)
    return answers == [True]


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers in the `with` block: no progress bars, no warnings about missing or extra weights."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def real_weights(
    name: str,
    theirs: Callable[[Path], Any],
    mine: Callable[..., Any],
    weights: Callable[[Any], dict[str, Tensor]],
    inputs: Callable[[int], dict[str, Tensor]],
) -> Check:
    """Return a check that the student's model computes the logits of a pretrained model, with its weights.

    `theirs(folder)` loads the pretrained model. `mine(file, *sizes)` makes the student's model. `weights(made)` returns
    views of the student's weights under HuggingFace's names. `inputs(n_tokens)` returns keyword arguments for the
    pretrained model. The student's model gets their values in the same order.
    """

    def check(case: Case) -> None:
        with clock_stopped():
            folder = pretrained_folder(name)
            with quiet(), torch.random.fork_rng():
                pretrained = theirs(folder).double().eval()
                made = mine(case.mine, *config_sizes(pretrained.config)).double()
            fill(weights(made), pretrained.state_dict())
            named = inputs(pretrained.config.vocab_size)
            args = tuple(named.values())
            with torch.no_grad():
                out, right = call(case, made, args), case.part.counts(pretrained(**named).logits, *args)
        if found := difference(out, right, case.part.axes):
            raise Wrong(f"right on small random weights, but with the pretrained weights of {name}: {found}.")

    return check


def config_sizes(config: Any) -> tuple[int, ...]:
    """Return the numbers of tokens, positions, features, layers and heads in a HuggingFace config."""
    return (
        config.vocab_size,
        config.max_position_embeddings,
        config.hidden_size,
        config.num_hidden_layers,
        config.num_attention_heads,
    )


def fill(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Copy weights by name into `mine`."""
    with torch.no_grad():
        for name, weight in mine.items():
            assert weight.shape == theirs[name].shape, name
            weight.copy_(theirs[name])
