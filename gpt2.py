"""Conversion between LM and HuggingFace: load GPT-2, Pythia, Llama, Qwen2, Mistral, BERT and others; export and push an LM."""

from __future__ import annotations

import tempfile
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from common.text import first_line
from data.hub import hub_answers
from data.tokenizer import Tokenizer, from_transformers, pretrained_tokenizer
from model.hf import weights as huggingface
from model.hf.weights import as_hf, load_hf
from model.lm import LM

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

    from model.inputs import Tokenizer as AnyTokenizer

__all__ = ["from_hf", "get_gpt2", "get_pretrained", "push_to_hub", "to_hf"]

PROBE_TEXT = "It's 1234, NAÏVE cafe\u0301s;  don't\n\n\tΣ½ ﬁ 漢字 x2??? 🙂 END"  # text that tokenizers treat differently
SIZES = {"small": "gpt2", "medium": "gpt2-medium", "large": "gpt2-large", "xl": "gpt2-xl"}


def from_hf(
    hf_model: PreTrainedModel,
    tokenizer: AnyTokenizer | PreTrainedTokenizerBase | None = None,
    *,
    check_logits: bool = True,
) -> LM:
    """Return an LM with the weights of a transformers model; see `model.hf.weights.from_hf`.

    `tokenizer` is a Tokenizer, or a tokenizer of transformers, such as AutoTokenizer.from_pretrained(name).
    """
    from transformers import PreTrainedTokenizerBase

    if isinstance(tokenizer, PreTrainedTokenizerBase):
        tokenizer = from_transformers(tokenizer)
    return huggingface.from_hf(hf_model, tokenizer, check_logits=check_logits)


def get_gpt2(size: str = "small", *, check_logits: bool = True) -> LM:
    """Load GPT-2 and its tokenizer: "small" (124M), "medium" (355M), "large" (774M) or "xl" (1.6B).

    Raise ValueError for another size, and for the reasons of `get_pretrained`.
    """
    if size not in SIZES:
        raise ValueError(f"GPT-2 has no size={size!r}; there are: {', '.join(SIZES)}")
    return get_pretrained(SIZES[size], check_logits=check_logits)


def get_pretrained(name: str, revision: str | None = None, *, check_logits: bool = True) -> LM:
    """Load a pretrained model and its tokenizer, in float32, from the HuggingFace hub or from a folder.

    `revision` is a branch, tag or commit, such as "step1000" of "EleutherAI/pythia-70m". Raise ValueError with one
    sentence if the model cannot be loaded, or if the layers of this project cannot represent it. Pass
    check_logits=False if you have edited these layers.
    """
    hf_model = load_hf(name, revision, hub_answers)
    if revision is not None:
        hf_model.config.name_or_path = f"{name}@{revision}"
    return from_hf(hf_model, pretrained_tokenizer(name, revision), check_logits=check_logits)


def to_hf(lm: LM, folder: str | Path, out: str | None = None) -> None:
    """Write a folder that AutoModelForCausalLM.from_pretrained loads with equal logits, the tokenizer's files, and a card.

    The card, README.md, says how the model was trained if it is that of a saved run. `out` is the output root of the run
    (`--out`). A card that is there already stays as it is.

    config.json and generation_config.json name the end tokens; the tokenizer's files include the chat template. Warn if
    AutoTokenizer changes the tokenizer in tokenizer.json, as it does for some kinds of models.

    Write a model with the architecture of BERT or RoBERTa as a BERT, for AutoModelForMaskedLM. Omit a cropped
    tokenizer, which transformers cannot represent. Raise ValueError for an LM that no model class of transformers can
    represent.
    """
    if Path(folder).is_file():
        raise ValueError(f"folder={str(folder)!r} is a file; give the path of a folder")
    as_hf(lm).save_pretrained(folder)
    if isinstance(lm.tokenizer, Tokenizer) and lm.tokenizer.kept is None:
        to_transformers(lm.tokenizer).save_pretrained(folder)
        warn_if_rebuilt(lm.tokenizer, folder)
    from explore.model_card import write_card  # here, as it imports pandas

    write_card(lm, folder, out)


def push_to_hub(lm: LM, name: str, *, private: bool = True, out: str | None = None) -> str:
    """Write `lm` as by `to_hf`, and upload it to the repository `name` of the Hugging Face hub, "owner/model". Return its address.

    A new repository is private, unless `private` is False. A repository that exists gets a new commit, and keeps its card.
    Log in first, by `hf auth login` or the environment variable HF_TOKEN. Raise ValueError in the cases of `to_hf`, and if
    the hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    if not hub_answers():
        raise ValueError(
            f"cannot push to {name!r}: the hub at {api.endpoint} cannot be reached, or HF_HUB_OFFLINE is set"
        )
    with tempfile.TemporaryDirectory() as folder:
        to_hf(lm, folder, out)
        try:
            repository = api.create_repo(name, private=private, exist_ok=True)
            if api.file_exists(repository.repo_id, "README.md"):
                Path(folder, "README.md").unlink()
            message = f"{lm.name or 'A model'}, written by whatif"
            api.upload_folder(repo_id=repository.repo_id, folder_path=folder, commit_message=message)
        except Exception as error:  # HTTP errors of the client, a missing token, an invalid name
            raise ValueError(
                f"cannot push to {name!r}: {first_line(error)}; the name must be owner/model, and `hf auth login` logs in"
            ) from error
    return str(repository)


LM.push_to_hub = push_to_hub  # type: ignore[attr-defined]  # a method, without HuggingFace in the file of LM


def to_transformers(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Return a tokenizer of transformers with the same ids, special tokens and chat template."""
    from transformers import PreTrainedTokenizerFast

    given = {name: i for name, i in tokenizer.specials._asdict().items() if i is not None}
    named = {f"{name}_token": tokenizer.rust.id_to_token(i) for name, i in given.items()}
    if tokenizer.mask is not None:
        # transformers gives a new token the next id, which is the id of the mask token here, too.
        named["mask_token"] = tokenizer.token(tokenizer.mask)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.rust, chat_template=tokenizer.chat_template, **named
    )


def warn_if_rebuilt(tokenizer: Tokenizer, folder: str | Path) -> None:
    """Warn if AutoTokenizer, loaded from `folder`, gives other ids than `tokenizer`."""
    from transformers import AutoTokenizer

    expected, theirs = None, None
    with suppress(Exception):  # a vocabulary of words without an unknown token
        expected = tokenizer.encode_batch([PROBE_TEXT])[0]
    with suppress(Exception):
        loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        theirs = loaded(PROBE_TEXT, add_special_tokens=False)["input_ids"]
    if theirs != expected:
        warnings.warn(
            "AutoTokenizer of transformers changes this tokenizer.json for models of this kind: load it with "
            f"PreTrainedTokenizerFast.from_pretrained({str(folder)!r})",
            stacklevel=3,
        )
