"""Find out which fields of a params object have an effect, by noting which ones code reads.

    reads = set()
    params = observed(params, reads)  # equal to the original, to be used in its place

Reads by checks, comparisons and repr do not count.
"""

import copy
import sys
from collections.abc import Collection, Iterator
from dataclasses import fields, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from common.repository import REPOSITORY
from model.inputs import stand_in_tokenizer
from model.lm import LM
from model.model_params import ModelParams
from model.transformer.residual import wants_profile

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MAX_NUMBERS = 2**20  # in the layers of a model built on the CPU; larger ones are built on the meta device
MAX_LAYERS = 2  # of the observed model, unless more layer kinds take turns
N_TOKENS = 8  # in the vocabulary of the observed model
ROW_LENGTH = 4  # tokens of its rows
# Reads in these places only check, compare, copy or save a field: they do not show that it has an effect.
NO_USE_IN_MODULES = {"dataclasses", "model.problems", "train.launch.problems", "data.problems"}
NO_USE_IN_FUNCTIONS = {"__post_init__", "__eq__", "__repr__", "__hash__", "changed_fields"}

P = TypeVar("P")


def observed(params: P, reads: set[str], outside: dict[str, str] | None = None) -> P:
    """Return a copy of a dataclass object that adds to `reads` the name of every field that code makes use of.

    Reads that are not of the params of one layer are also added to `outside`: {field: "file:line" of the first}.
    """
    kind: Any = type(params)
    names = {field.name for field in fields(kind)}

    def __getattribute__(self: object, name: str) -> object:
        if name in names and name not in reads and is_use(sys._getframe(1)):
            reads.add(name)
        of_all_layers = name in names and vars(self).get("layer_index") is None
        if outside is not None and of_all_layers and is_use(frame := sys._getframe(1)):
            outside.setdefault(name, place_of(frame))
        return object.__getattribute__(self, name)

    twin = copy.copy(params)
    subclass = type(kind.__name__, (kind,), {"__getattribute__": __getattribute__})
    object.__setattr__(twin, "__class__", subclass)
    return twin


def place_of(frame: FrameType) -> str:
    """Return file and line of the first frame outside ModelParams, whose properties read fields for others."""
    while frame.f_globals.get("__name__") == ModelParams.__module__ and frame.f_back is not None:
        frame = frame.f_back
    path = Path(frame.f_code.co_filename)
    inside = path.is_relative_to(REPOSITORY)
    return f"{path.relative_to(REPOSITORY) if inside else path}:{frame.f_lineno}"


def is_use(frame: FrameType | None) -> bool:
    """Return False if a read comes from a check, from __post_init__, or from equality, repr, replace and the like."""
    while frame is not None:
        if frame.f_code.co_name in NO_USE_IN_FUNCTIONS:
            return False
        if frame.f_globals.get("__name__") in NO_USE_IN_MODULES:
            return False
        frame = frame.f_back
    return True


def unread(
    params: "DataclassInstance", reads: Collection[str], also: Collection[str] = ()
) -> dict[str, object]:
    """Return the fields and values that nothing has read, if they differ from their default or are in `also`."""
    defaults, found = type(params)(), dict[str, object]()
    for field in fields(params):
        value = getattr(params, field.name)
        is_set = value != getattr(defaults, field.name) or field.name in also
        if is_set and field.name not in reads:
            found[field.name] = value
    return found


def run_observed(
    model_params: ModelParams,
    reads: set[str],
    train_params: object = None,
    outside: dict[str, str] | None = None,
) -> LM | None:
    """Build a model of few layers and compute its losses once; a large one is built on the meta device.

    `train_params` are passed to its losses; `outside` is that of `observed`. Return None if the model cannot run, so
    that its reads are unknown.
    """
    n_layers = min(model_params.n_layers, max(MAX_LAYERS, len(model_params.each_layer())))
    p = replace(model_params, n_layers=n_layers)
    n_numbers = p.dim * p.max_seq_len
    n_numbers += sum(p.dim * (4 * p.dim + 3 * p.at(i).ff_width) for i in range(n_layers))
    params = observed(p, reads, outside)
    tokenizer = stand_in_tokenizer(N_TOKENS)
    length = min(ROW_LENGTH, params.max_seq_len)
    ids_BT = torch.zeros(2, length + (not params.hides_tokens), dtype=torch.int64)
    real_BT = torch.ones_like(ids_BT, dtype=torch.bool)
    batch = {"x_indices": ids_BT, "mask": real_BT, "target_mask": real_BT}
    n_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # on a busy machine, synchronizing threads takes longer than the work
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            with torch.device("cpu" if n_numbers <= MAX_NUMBERS else "meta"):
                lm = LM(params, tokenizer, dropout=0.1)
            lm.train().get_losses(batch, train_params)
            wants_profile(lm, params)
    except Exception:  # an edit may read numbers, which meta tensors lack
        return None
    finally:
        torch.set_num_threads(n_threads)
    return lm


def turns_read_outside(model_params: ModelParams, train_params: object = None) -> Iterator[str]:
    """Yield an error message for each field that differs by layer, but that code outside the layers reads."""
    if model_params.turns:
        outside: dict[str, str] = {}
        run_observed(model_params, set(), train_params, outside)
        for name, values in model_params.turns.items():
            if name in outside:
                yield (
                    f"{name}={values!r} differs by layer, but code outside the layers reads it ({outside[name]}); "
                    "use one value"
                )


def ignored_fields(model_params: ModelParams, also: Collection[str] = ()) -> list[str]:
    """Return `field=value` for every field that is set, or is in `also`, and that the model never reads."""
    reads: set[str] = set()
    if run_observed(model_params, reads) is None:
        return []
    return [f"{name}={value!r}" for name, value in unread(model_params, reads, also).items()]
