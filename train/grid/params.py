"""Params: the three dataclasses that define a run. This file imports nothing heavy."""

from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any, NamedTuple, TypeVar

from common.text import did_you_mean
from data.data_params import DataParams, measuring_fields
from model.model_params import ModelParams
from train.train_params import TrainParams

SECTIONS = {cls.__name__: cls for cls in (DataParams, TrainParams, ModelParams)}
SECTION_OF = {field.name: name for name, cls in SECTIONS.items() for field in fields(cls)}
MEASURING = measuring_fields()  # fields that only add measurements: no axes, and no variants
Section = TypeVar("Section", bound=DataParams | TrainParams | ModelParams)
MEASURED = "measured_"


def measured_column(name: str) -> str:
    """Return the column of the measured value `name` in tables of runs.

    A field of params keeps its own name; a measured value of the same name gets the prefix `measured_`.
    """
    while name in SECTION_OF:
        name = MEASURED + name
    return name


# Names of other projects (our predecessor, nanoGPT, HuggingFace, Lightning) for fields of ours, with what differs.
FOREIGN_NAMES = {
    "pos_encoding": ("positions", ""),
    "norm_first": ("norm_position", "'pre' for True, 'post' for False"),
    "tie_embed_deembed": ("tied_embeddings", ""),
    "tie_word_embeddings": ("tied_embeddings", ""),
    "custom_tokenizer_ntokens": ("tokenizer_vocab_size", ""),
    "vocab_size": ("tokenizer_vocab_size", "only for the custom tokenizer"),
    "crop_tokenizer": ("tokenizer_crop", ""),
    "tokenizer": ("tokenizer_source_name", ""),
    "from_os_pretrained": ("from_pretrained", ""),
    "scheduler_type": ("lr_schedule", "in lower case"),
    "lr_scheduler_type": ("lr_schedule", "in lower case"),
    "scheduler_patience": ("lr_plateau_patience", ""),
    "val_check_epoch_frac": ("val_every", "optimizer steps, or a share of the run, not of an epoch"),
    "val_check_interval": ("val_every", "optimizer steps, or a share of the run, not of an epoch"),
    "eval_interval": ("val_every", ""),
    "eval_steps": ("val_every", ""),
    "max_iters": ("max_steps", ""),
    "num_iterations": ("max_steps", ""),
    "train_steps": ("max_steps", ""),
    "max_train_tokens": ("max_tokens", ""),
    "max_time": ("max_seconds", "a number of seconds"),
    "target_param_data_ratio": ("tokens_per_parameter", ""),
    "warmup_ratio": ("warmup_steps", "a float below 1 is a share of the run"),
    "max_epochs": ("epochs", ""),
    "num_train_epochs": ("epochs", ""),
    "learning_rate": ("lr", ""),
    "lr_warm_steps": ("warmup_steps", ""),
    "warmup_iters": ("warmup_steps", ""),
    "gradient_accumulation_steps": ("accumulate_grad_batches", ""),
    "grad_clip": ("gradient_clip_val", ""),
    "max_grad_norm": ("gradient_clip_val", ""),
    "per_device_train_batch_size": ("batch_size", ""),
    "seed": ("random_seed", ""),
    "n_embd": ("dim", ""),
    "d_model": ("dim", ""),
    "hidden_size": ("dim", ""),
    "embed_dim": ("dim", ""),
    "intermediate_size": ("dim_ff", ""),
    "dim_feedforward": ("dim_ff", ""),
    "dim_ff_factor": ("dim_ff", "a width, not a factor of dim"),
    "n_layer": ("n_layers", ""),
    "num_layers": ("n_layers", ""),
    "num_hidden_layers": ("n_layers", ""),
    "n_head": ("n_heads", ""),
    "nhead": ("n_heads", ""),
    "num_heads": ("n_heads", ""),
    "num_attention_heads": ("n_heads", ""),
    "num_key_value_heads": ("n_kv_heads", ""),
    "block_size": ("max_seq_len", ""),
    "n_positions": ("max_seq_len", ""),
    "max_position_embeddings": ("max_seq_len", ""),
    "hidden_act": ("activation", ""),
    "rms_norm_eps": ("norm_eps", ""),
    "layer_norm_eps": ("norm_eps", ""),
    "rope_theta": ("rotary_base", ""),
}


def field_hint(word: str, allowed: Iterable[str]) -> str:
    """Return a hint for an unknown field: our name for it, the nearest of the allowed fields, or all of them."""
    ours, differs = FOREIGN_NAMES.get(word, ("", ""))
    if ours in (allowed := list(allowed)):
        return f"did you mean {ours!r}" + (f" ({differs})?" if differs else "?")
    return did_you_mean(word, sorted(allowed))


class Params(NamedTuple):
    """All settings of a run: its data, its training and its model."""

    data: DataParams
    train: TrainParams
    model: ModelParams

    def changed(self, **values: object) -> "Params":
        """Return a validated copy with these values for fields of any part. Raise ValueError for unknown or invalid ones."""
        for name in values.keys() - SECTION_OF.keys():
            raise ValueError(f"there is no field {name!r}; {field_hint(name, SECTION_OF)}")
        own: dict[str, dict[str, Any]] = {
            name: {k: v for k, v in values.items() if SECTION_OF[k] == name} for name in SECTIONS
        }
        return Params(
            replace(self.data, **own["DataParams"]),
            replace(self.train, **own["TrainParams"]),
            replace(self.model, **own["ModelParams"]),
        )

    def flat(self) -> dict[str, object]:
        """Return all fields by name. No name occurs in two classes."""
        return {key: value for part in self.by_part().values() for key, value in part.items()}

    def by_part(self) -> dict[str, dict[str, object]]:
        """Return {"data": {field: value}, "train": ..., "model": ...}."""
        parts = self._asdict().items()
        return {name: {k: v for k, v in vars(part).items() if k in SECTION_OF} for name, part in parts}


class Texts:
    """Cache of the repr of params, which identifies equal params. Objects that runs share are converted once."""

    def __init__(self) -> None:
        # By id. An id is not reused while its object is kept.
        self.texts: dict[int, tuple[object, str]] = {}

    def __call__(self, part: object) -> str:
        if id(part) not in self.texts:
            self.texts[id(part)] = part, repr(part)
        return self.texts[id(part)][1]
