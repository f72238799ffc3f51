"""Real weights: models of the Hugging Face hub, where it can be reached or where they were downloaded earlier."""

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
SECONDS = 3.0  # to wait for an answer, once in a process


def pretrained(name: str) -> Path:
    """The folder of a model: by its name on the hub, or its own path. NotTried where it cannot be had."""
    if (Path(name) / FILES[0]).is_file():
        return Path(name)
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return download(name, local_files_only=True)
    except LocalEntryNotFoundError:
        if not reachable():
            raise NotTried("on real weights: the hub is not reachable") from None
    try:
        return download(name, etag_timeout=SECONDS)
    except (OSError, HfHubHTTPError) as error:
        raise NotTried(f"on real weights: {name} cannot be downloaded ({type(error).__name__})") from None


def download(name: str, **options: Any) -> Path:
    from huggingface_hub import hf_hub_download

    [folder] = {Path(hf_hub_download(name, file, **options)).parent for file in FILES}
    return folder


@cache
def reachable() -> bool:
    """Whether the hub answers in time; its name may take longer to look up than any timeout says."""
    answers = list[bool]()
    asking = threading.Thread(target=lambda: answers.append(hub_answers(SECONDS)), daemon=True)
    asking.start()
    asking.join(SECONDS)
    return answers == [True]


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, transformers tells neither its progress nor which weights a file has too many or too few."""
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
    """The logits of a pretrained model on its own weights.

    `theirs` makes it from a folder, `mine` the student's from a file and five sizes; `weights` has views of the student's
    weights under their names; `inputs` are arguments of theirs, for so many tokens: those of the student's, in order.
    """

    def check(case: Case) -> None:
        with clock_stopped():
            folder = pretrained(name)
            with quiet(), torch.random.fork_rng():
                whole = theirs(folder).double().eval()
                made = mine(case.mine, *sizes(whole.config)).double()
            fill(weights(made), whole.state_dict())
            named = inputs(whole.config.vocab_size)
            args = tuple(named.values())
            with torch.no_grad():
                out, right = call(case, made, args), case.part.counts(whole(**named).logits, *args)
        if found := difference(out, right, case.part.axes):
            raise Wrong(f"right on small random weights, but on the real ones of {name} {found}.")

    return check


def sizes(config: Any) -> tuple[int, ...]:
    """Of a model by HuggingFace: tokens, positions, width, layers, heads."""
    return (
        config.vocab_size,
        config.max_position_embeddings,
        config.hidden_size,
        config.num_hidden_layers,
        config.num_attention_heads,
    )


def fill(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Copies weights by their names."""
    with torch.no_grad():
        for name, weight in mine.items():
            assert weight.shape == theirs[name].shape, name
            weight.copy_(theirs[name])
