"""Initial weights that are not random: those of a pretrained model or of a saved run."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from data.hub import hub_answers, name_and_revision
from data.tokenizer import Tokenizer
from model.hf.weights import architecture_of, copy_weights, load_hf, logit_difference, pretrained_fields
from model.lm import LM
from model.model_params import ModelParams
from model.problems import model_problems
from model.shapes import parameter_shapes, shortened
from model.transformer.lora import is_lora, merge_lora
from model.transformer.scaling import depth_mult, head_mult, width_mult  # muP
from train.data import tokenizer_spec
from train.grid.params import SECTION_OF
from train.logs import log
from train.saving.run_folder import find_run, read_run
from train.saving.weights import load_lm, weights, weights_file

POSITIONS = "embed.positions.table.weight"  # loses its last rows to a smaller max_seq_len
SHOWN = 3  # names of weights in a sentence


class Origin(NamedTuple):
    """The source of initial weights."""

    setting: str  # as in from_pretrained='gpt2'
    params: ModelParams  # what they are for
    tokenizer: Tokenizer | None  # what they know text by, if they bring it along
    load: Callable[[ModelParams, Tokenizer], LM]  # for a model and a tokenizer that they fit


def defaults(
    root: Path, *, from_pretrained: str | None = None, from_saved: str | None = None, **others: Any
) -> dict[str, Any]:
    """Return the ModelParams fields that a grid point takes over from the source of its weights; empty without one."""
    if from_pretrained is not None and from_saved is not None:
        return {}  # ModelParams will refuse it
    origin = find(root, from_pretrained, from_saved)
    return {} if origin is None else fields_of(origin.params)


def origin_of(model: ModelParams, root: Path) -> Origin | None:
    """Return the source of a model's initial weights, or None if they are random. Raise ValueError if it is missing."""
    return find(root, model.from_pretrained, model.from_saved)


def find(root: Path, from_pretrained: str | None, from_saved: str | None) -> Origin | None:
    origin = look_for(root, from_pretrained, from_saved)
    if isinstance(origin, ValueError):
        raise origin
    return origin


@functools.cache
def look_for(root: Path, from_pretrained: str | None, from_saved: str | None) -> Origin | ValueError | None:
    """Return the result of `find`, or the ValueError it raises. Errors are cached too: finding out takes time."""
    try:
        if from_pretrained is not None:
            setting = f"from_pretrained={from_pretrained!r}"
            with about(setting):
                return pretrained(setting, *name_and_revision(from_pretrained))
        if from_saved is not None:
            setting = f"from_saved={from_saved!r}"
            with about(setting):
                return saved(setting, from_saved, root)
    except ValueError as error:
        return error
    return None


@contextmanager
def about(setting: str) -> Iterator[None]:
    """Prefix a ValueError inside the block with the setting."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{setting}: {error}") from error


def pretrained(setting: str, name: str, revision: str | None) -> Origin:
    params = ModelParams(**pretrained_fields(name, revision, hub_answers))

    def load(model: ModelParams, tokenizer: Tokenizer) -> LM:
        hf_model = load_hf(name, revision, hub_answers)
        actual = ModelParams(**architecture_of(hf_model))
        if model.tied_embeddings and params.tied_embeddings and not actual.tied_embeddings:
            raise ValueError(
                "its config ties the readout to the token embedding, but its files have a readout of its own: "
                "set tied_embeddings=False"
            )
        lm = LM(replace(actual, tokenizer_crop=model.tokenizer_crop), tokenizer)
        copy_weights(hf_model, lm)
        difference = logit_difference(hf_model, lm)
        # A warning only: fine-tuning a model with an edited layer is legitimate.
        if difference is not None:
            log.warning(
                f"{setting}: logits differ from those of transformers by {difference:.2g}, as they do after an edit of a "
                "layer; without an edit, these weights are read wrongly"
            )
        return lm

    return Origin(setting, params, None, load)


def saved(setting: str, timestamp: str, root: Path) -> Origin:
    folder = find_run(timestamp, str(root))
    params, own_tokenizer, _ = read_run(folder)

    def load(model: ModelParams, tokenizer: Tokenizer) -> LM:
        lm = load_lm(weights_file(folder), params.model, own_tokenizer)
        return merge_lora(lm) if params.model.lora_rank and not model.lora_rank else lm

    return Origin(setting, replace(params.model, from_pretrained=None, from_saved=None), own_tokenizer, load)


def saved_tokenizer(model: ModelParams, root: Path) -> Tokenizer | None:
    """Return the tokenizer that comes with a model's initial weights, or None."""
    origin = origin_of(model, root)
    return None if origin is None else origin.tokenizer


def origin_problems(model: ModelParams, root: Path) -> Iterator[str]:
    """Yield an error message if the initial weights of `model` are not available, or do not fit it."""
    try:
        origin = origin_of(model, root)
    except ValueError as error:
        yield str(error)
        return
    if origin is None or any(model_problems(model)):
        return
    if forward_factors(model) != forward_factors(origin.params):  # muP
        yield (  # muP
            f"{as_text(edits(model, origin))} does not fit {origin.setting}: it multiplies what these weights "  # muP
            "compute by other factors; mup_base_dim=0 has those of the weights' own size"  # muP
        )  # muP
        return  # muP
    if fits(model, origin):
        return
    edited = edits(model, origin)
    alone = {name: value for name, value in edited.items() if not fits_alone(name, value, origin)} or edited
    has = {name: fields_of(origin.params)[name] for name in alone}
    yield f"{as_text(alone)} does not fit {origin.setting}, whose weights are for {as_text(has)}"


def forward_factors(model: ModelParams) -> tuple[float, ...]:  # muP
    return width_mult(model), depth_mult(model), head_mult(model)  # muP


def fields_of(params: ModelParams) -> dict[str, Any]:
    return {name: value for name, value in vars(params).items() if name in SECTION_OF}


def edits(model: ModelParams, origin: Origin) -> dict[str, Any]:
    """Return the fields of `model` that differ from the model its weights come from."""
    same = replace(origin.params, from_pretrained=model.from_pretrained, from_saved=model.from_saved)
    return {name: value for name, value in fields_of(model).items() if value != fields_of(same)[name]}


def as_text(fields: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in fields.items())


def fits_alone(name: str, value: Any, origin: Origin) -> bool:
    try:
        return fits(replace(origin.params, **{name: value}), origin)
    except ValueError:  # it takes other fields to make sense
        return True


def fits(model: ModelParams, origin: Origin) -> bool:
    """Return True if weights of the same name have the same shape in both.

    If the weights bring their tokenizer, tokens must also be the same.
    """
    if origin.tokenizer is not None and tokenizer_spec(model) != tokenizer_spec(origin.params):
        return False
    if origin.tokenizer is not None and model.objective == "masked" and origin.tokenizer.mask is None:
        return False  # a mask token would be one more than there are weights for
    ours, theirs = (parameter_shapes(shortened(params), n_tokens=2) for params in (model, origin.params))
    if POSITIONS in theirs:
        n_positions, dim = theirs[POSITIONS]
        theirs[POSITIONS] = torch.Size([min(n_positions, model.max_seq_len), dim])
    return all(shape == theirs.get(name, shape) for name, shape in ours.items())


def first_weights(model: ModelParams, tokenizer: Tokenizer, root: Path) -> dict[str, Tensor] | None:
    """Return the initial weights of `model` by our names, or None if they are random.

    Raise ValueError if they cannot be loaded.
    """
    origin = origin_of(model, root)
    if origin is None:
        return None
    with about(origin.setting):
        return origin.load(model, tokenizer).state_dict()


def weights_problems(model: ModelParams, tokenizer: Tokenizer, root: Path) -> Iterator[str]:
    """Yield an error message if a run would fail to get its initial weights. They are read and discarded."""
    try:
        first_weights(model, tokenizer, root)
    except ValueError as error:
        yield str(error)


def begin_with(first: dict[str, Tensor], lm: LM, root: Path) -> None:
    """Load the initial weights that `lm` has a place for. Log edited fields, and weights that are unused or new."""
    taken = {name: first[name] for name in weights(lm) if name in first}
    if POSITIONS in taken:
        taken[POSITIONS] = taken[POSITIONS][: lm.model_params.max_seq_len]
    lm.load_state_dict(taken, strict=False)
    origin = origin_of(lm.model_params, root)
    assert origin is not None
    used = {tensor.data_ptr() for tensor in taken.values()}  # a tied one has two names
    left_out = [name for name, tensor in first.items() if tensor.data_ptr() not in used]
    new = [name for name in weights(lm) if name not in first and not is_lora(name)]
    said = [f"weights of {origin.setting}", as_text(edits(lm.model_params, origin))]
    said += [f"left out: {some(left_out)}" if left_out else "", f"new: {some(new)}" if new else ""]
    log.info("; ".join(filter(None, said)))


def some(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
