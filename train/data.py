"""Build the data of a run from its params."""

from pathlib import Path
from typing import TypedDict

from data.data_params import DataParams
from data.dataloader import LMDataModule
from data.tokenizer import Tokenizer, TokenizerSpec
from model.model_params import ModelParams


class DataOptions(TypedDict):
    """Options of a run's data that come from its ModelParams."""

    tokenizer_spec: TokenizerSpec
    max_seq_len: int
    mask: bool


def tokenizer_spec(model: ModelParams) -> TokenizerSpec:
    return TokenizerSpec(model.tokenizer_source_name, model.tokenizer_vocab_size, model.tokenizer_crop)


def data_options(model: ModelParams) -> DataOptions:
    """Return the options of a run's data that come from its ModelParams."""
    return {
        "tokenizer_spec": tokenizer_spec(model),
        "max_seq_len": model.max_seq_len,
        "mask": model.hides_tokens,
    }


def make_data(
    data: DataParams,
    model: ModelParams,
    cache: Path,
    *,
    data_workers: int = 0,
    tokenizer: Tokenizer | None = None,
    spec: TokenizerSpec | None = None,
) -> LMDataModule:
    """Return the data of a run, cached in the folder `cache`.

    It uses its saved `tokenizer` if given, else one made from `spec`, by default that of `model`. Raise ValueError if
    the data cannot be built.
    """
    options = data_options(model)
    options["tokenizer_spec"] = spec or options["tokenizer_spec"]
    return LMDataModule(data, **options, cache=cache, data_workers=data_workers, tokenizer=tokenizer)
