"""Initial weights that are not random: those of a pretrained model or of a saved run."""

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from data.hub import hub_answers, name_and_revision
from data.tokenizer import Tokenizer
from model.lm import LM
from model.model_params import ModelParams
from model.problems import model_problems
from model.shapes import parameter_shapes, with_fewer_layers
from model.transformer.embeddings import POSITION_TABLE
from model.transformer.lora import is_lora, merge_lora
from model.transformer.scaling import depth_mult, head_mult, width_mult  # muP
from train.data import tokenizer_spec
from train.grid.params import SECTION_OF
from train.logs import log
from train.saving.run_folder import LATEST, find_run, read_run, run_and_step
from train.saving.weights import load_lm, unshared_state, weights_file

MAX_NAMES = 3  # of weights in a log line


class PretrainedSource(NamedTuple):
    """The source of initial weights."""

    setting: str  # such as from_pretrained='gpt2'
    params: ModelParams  # of the model they belong to
    tokenizer: Tokenizer | None  # their own, if they come with one
    load: Callable[[ModelParams, Tokenizer], LM]  # builds the model with them; its params must fit


def defaults(
    root: Path, *, from_pretrained: str | None = None, from_saved: str | None = None, **others: object
) -> dict[str, object]:
    """Return the ModelParams fields that a grid point takes over from the source of its weights; empty without one."""
    if from_pretrained is not None and from_saved is not None:
        return {}  # ModelParams will refuse it
    source = find_source(root, from_pretrained, from_saved)
    return {} if source is None else model_fields(source.params)


def pretrained_source(model: ModelParams, root: Path) -> PretrainedSource | None:
    """Return the source of a model's initial weights, or None if they are random. Raise ValueError if it is missing."""
    return find_source(root, model.from_pretrained, model.from_saved)


def find_source(root: Path, from_pretrained: str | None, from_saved: str | None) -> PretrainedSource | None:
    source = cached_source(root, from_pretrained, from_saved)
    if isinstance(source, ValueError):
        raise source
    return source


@functools.cache
def cached_source(
    root: Path, from_pretrained: str | None, from_saved: str | None
) -> PretrainedSource | ValueError | None:
    """Return the result of `find_source`, or the ValueError it raises. Errors are cached too: a lookup takes time."""
    try:
        if from_pretrained is not None:
            setting = f"from_pretrained={from_pretrained!r}"
            with prefix_errors(setting):
                return hub_source(setting, *name_and_revision(from_pretrained))
        if from_saved is not None:
            setting = f"from_saved={from_saved!r}"
            with prefix_errors(setting):
                return saved_source(setting, from_saved, root)
    except ValueError as error:
        return error
    return None


@contextmanager
def prefix_errors(setting: str) -> Iterator[None]:
    """Prefix a ValueError inside the block with the setting."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{setting}: {error}") from error


def hub_source(setting: str, name: str, revision: str | None) -> PretrainedSource:
    """Return the source that `from_pretrained` names. Only runs with it import the tables of HuggingFace's models."""
    from model.hf import weights as hf

    params = hf.pretrained_params(name, revision, hub_answers)

    def load(model: ModelParams, tokenizer: Tokenizer) -> LM:
        hf_model = hf.load_hf(name, revision, hub_answers)
        actual = hf.architecture_of(hf_model)
        if model.tied_embeddings and params.tied_embeddings and not actual.tied_embeddings:
            raise ValueError(
                "its config ties the unembedding to the token embedding, but its files have a separate one: "
                "set tied_embeddings=False"
            )
        lm = LM(replace(actual, tokenizer_crop=model.tokenizer_crop), tokenizer)
        hf.copy_weights(hf_model, lm)
        difference = hf.logit_difference(hf_model, lm)
        # A warning only: fine-tuning a model with an edited layer is legitimate.
        if difference is not None:
            log.warning(
                f"{setting}: logits differ from those of transformers by {difference:.2g}. This is expected after "
                "an edit of a layer; without an edit, the weights were translated wrongly"
            )
        return lm

    return PretrainedSource(setting, params, None, load)


def saved_source(setting: str, name: str, root: Path) -> PretrainedSource:
    """Return the source that `from_saved` names: the final weights of a run, or those that it kept at a step."""
    timestamp, step = run_and_step(name)
    folder = find_run(timestamp, str(root))
    if timestamp == LATEST:  # the same config would mean another run tomorrow
        raise ValueError(f"a config needs the timestamp of a run; the latest one is {folder.name!r}")
    params, own_tokenizer, _ = read_run(folder)
    weights = weights_file(folder, step)

    def load(model: ModelParams, tokenizer: Tokenizer) -> LM:
        lm = load_lm(weights, params.model, own_tokenizer)
        return merge_lora(lm) if params.model.lora_rank and not model.lora_rank else lm

    return PretrainedSource(
        setting, replace(params.model, from_pretrained=None, from_saved=None), own_tokenizer, load
    )


def saved_tokenizer(model: ModelParams, root: Path) -> Tokenizer | None:
    """Return the tokenizer saved with the pretrained model or saved run from which `model` starts, or None."""
    source = pretrained_source(model, root)
    return None if source is None else source.tokenizer


def source_problems(model: ModelParams, root: Path) -> Iterator[str]:
    """Yield an error message if the initial weights of `model` are not available, or do not fit it."""
    try:
        source = pretrained_source(model, root)
    except ValueError as error:
        yield str(error)
        return
    if source is None or any(model_problems(model)):
        return
    if forward_factors(model) != forward_factors(source.params):  # muP
        yield (  # muP
            f"{fields_as_text(edited_fields(model, source))} does not fit {source.setting}: the muP factors of the "  # muP
            "forward pass differ from those of these weights; mup_base_dim=0 has the factors of their size"  # muP
        )  # muP
        return  # muP
    if weights_fit(model, source):
        return
    edited = edited_fields(model, source)
    alone = {name: value for name, value in edited.items() if not fits_alone(name, value, source)} or edited
    has = {name: model_fields(source.params)[name] for name in alone}
    yield f"{fields_as_text(alone)} does not fit {source.setting}, whose weights are for {fields_as_text(has)}"


def forward_factors(model: ModelParams) -> tuple[float, ...]:  # muP
    return width_mult(model), depth_mult(model), head_mult(model)  # muP


def model_fields(params: ModelParams) -> dict[str, object]:
    return {name: value for name, value in vars(params).items() if name in SECTION_OF}


def edited_fields(model: ModelParams, source: PretrainedSource) -> dict[str, object]:
    """Return the fields of `model` that differ from those of the model that its weights come from."""
    same = replace(source.params, from_pretrained=model.from_pretrained, from_saved=model.from_saved)
    return {name: value for name, value in model_fields(model).items() if value != model_fields(same)[name]}


def fields_as_text(fields: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in fields.items())


def fits_alone(name: str, value: Any, source: PretrainedSource) -> bool:
    """Return True if the weights would fit a model with this edit alone."""
    try:
        return weights_fit(replace(source.params, **{name: value}), source)
    except ValueError:  # the value needs other fields beside it
        return True


def weights_fit(model: ModelParams, source: PretrainedSource) -> bool:
    """Return True if weights of the same name have the same shape in both.

    If the weights bring their tokenizer, tokens must also be the same.
    """
    if source.tokenizer is not None and tokenizer_spec(model) != tokenizer_spec(source.params):
        return False
    if source.tokenizer is not None and model.hides_tokens and source.tokenizer.mask is None:
        return False  # the weights have no row for a mask token
    ours, theirs = (
        parameter_shapes(with_fewer_layers(params), n_tokens=2) for params in (model, source.params)
    )
    if POSITION_TABLE in theirs:
        n_positions, dim = theirs[POSITION_TABLE]
        theirs[POSITION_TABLE] = torch.Size([min(n_positions, model.max_seq_len), dim])
    return all(shape == theirs.get(name, shape) for name, shape in ours.items())


def first_weights(model: ModelParams, tokenizer: Tokenizer, root: Path) -> dict[str, Tensor] | None:
    """Return the initial weights of `model` by our names, or None if they are random.

    Raise ValueError if they cannot be loaded.
    """
    source = pretrained_source(model, root)
    if source is None:
        return None
    with prefix_errors(source.setting):
        return source.load(model, tokenizer).state_dict()


def weights_problems(model: ModelParams, tokenizer: Tokenizer, root: Path) -> Iterator[str]:
    """Yield an error message if a run would fail to get its initial weights. They are read and discarded."""
    try:
        first_weights(model, tokenizer, root)
    except ValueError as error:
        yield str(error)


def load_initial_weights(first: dict[str, Tensor], lm: LM, root: Path) -> None:
    """Load the initial weights that `lm` has a place for. Log edited fields, and weights that are unused or new."""
    taken = {name: first[name] for name in unshared_state(lm) if name in first}
    if POSITION_TABLE in taken:
        taken[POSITION_TABLE] = taken[POSITION_TABLE][: lm.model_params.max_seq_len]
    lm.load_state_dict(taken, strict=False)
    source = pretrained_source(lm.model_params, root)
    assert source is not None
    used = {tensor.data_ptr() for tensor in taken.values()}  # a tied one has two names
    left_out = [name for name, tensor in first.items() if tensor.data_ptr() not in used]
    new = [name for name in unshared_state(lm) if name not in first and not is_lora(name)]
    said = [f"weights of {source.setting}", fields_as_text(edited_fields(lm.model_params, source))]
    said += [f"left out: {shortened(left_out)}" if left_out else "", f"new: {shortened(new)}" if new else ""]
    log.info("; ".join(filter(None, said)))


def shortened(names: list[str]) -> str:
    more = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")
