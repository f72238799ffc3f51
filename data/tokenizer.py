"""Tokenizers of three kinds behind one small interface: a token a character, our own BPE, and pretrained ones from the hub."""

import functools
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from data.cache import digest
from data.hub import hub_answers

OWN_SPECIALS = ["<pad>", "<bos>", "<eos>", "<unk>"]  # ids 0 to 3 of the tokenizers we make
MASK = "<mask>"  # where a masked model is trained; behind all other ids
LARGEST_FILE = 200_000_000  # bytes of a tokenizer we are ready to read


class TokenizerSpec(NamedTuple):
    """What to make a tokenizer of: "char", "custom" (our own BPE), or the name of a pretrained one."""

    source: str
    vocab_size: int = 4096  # of "custom", special tokens included
    crop: bool = False  # keep only the tokens that the training text uses


class Specials(NamedTuple):
    """Ids of the special tokens; some may coincide (bos = eos = pad in GPT-2)."""

    pad: int
    bos: int
    eos: int
    unk: int


class Tokenizer:
    """Text to ids and back. `rust` does the work; with `kept`, id i stands for its id kept[i].

    `mask` is the id of the mask token, if it is asked for: one that rust knows, or one behind all others.
    """

    def __init__(
        self,
        rust: RustTokenizer,
        specials: Specials,
        kept: Sequence[int] | None = None,
        mask: int | None = None,
    ) -> None:
        rust.encode_special_tokens = True  # "<|endoftext|>" in a text is text, not the end of it
        rust.no_padding()
        rust.no_truncation()
        self.rust = rust
        self.specials = specials
        self.pad, self.bos, self.eos, self.unk = specials
        self.kept = None if kept is None else np.array(kept, np.int64)
        self.n_rust = max(rust.get_vocab(with_added_tokens=True).values()) + 1
        self.n_tokens = self.n_rust
        if self.kept is not None:
            self.n_tokens = max(
                len(self.kept), self.unk + 1
            )  # unk may be a token of its own, unknown to rust
            self.new_ids = np.full(self.n_rust, self.unk)
            self.new_ids[self.kept] = np.arange(len(self.kept))
        self.mask = mask
        if mask is not None:
            self.n_tokens = max(self.n_tokens, mask + 1)

    def __call__(self, text: str | list[str]) -> list:
        """Ids beginning with bos; a list of them for a list of texts."""
        if isinstance(text, str):
            return [self.bos, *self.encode_batch([text])[0]]
        return [[self.bos, *ids] for ids in self.encode_batch(text)]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text, without special tokens."""
        encoded = [e.ids for e in self.rust.encode_batch_fast(texts, add_special_tokens=False)]
        return (
            encoded if self.kept is None else [self.new_ids[ids].tolist() if ids else [] for ids in encoded]
        )

    def with_gaps(self, text: str) -> list[int]:
        """Ids of a text in which the mask token's text stands where a token is missing: from bos to eos, as rows have it."""
        if self.mask is None:
            raise ValueError(
                "this tokenizer has no mask token: that of a model of objective='masked' has one"
            )
        parts = text.split(self.token(self.mask))
        if isinstance(
            self.rust.pre_tokenizer, pre_tokenizers.ByteLevel
        ):  # a word's token has the space before it
            parts = [*(part.rstrip(" ") for part in parts[:-1]), parts[-1]]
        first, *others = self.encode_batch(parts)
        return [self.bos, *first, *(i for ids in others for i in (self.mask, *ids)), self.eos]

    def with_mask(self) -> "Tokenizer":
        """The same with a mask token: its own, if it has one, else a new one with the last id."""
        if self.mask is not None:
            return self
        return Tokenizer(self.rust, self.specials, self.kept_list(), mask=self.n_tokens)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; special tokens are left out."""
        plain = [i for i in map(int, ids) if i not in self.specials and i != self.mask]
        plain = plain if self.kept is None else [int(self.kept[i]) for i in plain]
        return self.rust.decode(plain, skip_special_tokens=False)

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """What each id looks like, on one line."""
        return [self.token(int(i)) for i in ids]

    def token(self, i: int) -> str:
        if self.kept is not None and i >= len(self.kept):
            return MASK if i == self.mask else "<unk>"
        if self.kept is None and i == self.n_rust:
            return MASK
        i = i if self.kept is None else int(self.kept[i])
        text = self.rust.decode([i], skip_special_tokens=False)
        if not text or "�" in text:  # half a character
            text = self.rust.id_to_token(i) or f"<{i}>"
        return text.replace("\n", "\\n")

    def ids_of(self, tokens: Iterable[str]) -> list[int]:
        """Ids of tokens given one by one, as synthetic tasks do."""
        return [self.unk if (i := self.rust.token_to_id(token)) is None else i for token in tokens]

    def cropped(self, used: Iterable[int]) -> "Tokenizer":
        """Only the special tokens and those of `used`, numbered anew in the same order."""
        kept = sorted({*used, *self.specials})
        pad, bos, eos, unk = (kept.index(special) for special in self.specials)
        if unk in (pad, bos, eos):  # a token left out must not look like the end or like padding
            unk = len(kept)
        return Tokenizer(self.rust, Specials(pad, bos, eos, unk), kept)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Equal for tokenizers that make the same of a text, in which there is no mask token."""
        return digest(self.rust.to_str(), self.specials, self.kept_list())

    def kept_list(self) -> list[int] | None:
        return None if self.kept is None else self.kept.tolist()

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json (the tokenizers library's own format) and tokenizer_ids.json."""
        folder = Path(folder)
        (folder / "tokenizer.json").write_text(self.rust.to_str(), encoding="utf-8")
        ids: dict[str, Any] = {"specials": self.specials._asdict(), "kept": self.kept_list()}
        if self.mask is not None:
            ids["mask"] = self.mask
        (folder / "tokenizer_ids.json").write_text(json.dumps(ids), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads what `save` wrote, as data only; anything else is a ValueError."""
        try:
            return cls(*read_saved(Path(folder)))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a panic of the Rust library is no Exception
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"{folder} holds no tokenizer that can be read: {reason}") from None


def read_saved(folder: Path) -> tuple[RustTokenizer, Specials, list[int] | None, int | None]:
    """The four arguments of a Tokenizer from its folder; raises anything when they are not sound."""
    texts = []
    for name in ("tokenizer.json", "tokenizer_ids.json"):
        if (folder / name).stat().st_size > LARGEST_FILE:
            raise ValueError(f"{name} is over {LARGEST_FILE:,} bytes")
        texts.append((folder / name).read_text(encoding="utf-8"))
    rust = RustTokenizer.from_str(texts[0])
    ids = json.loads(texts[1])
    specials, kept, mask = Specials(**ids["specials"]), ids["kept"], ids.get("mask")
    known = range(max(rust.get_vocab(with_added_tokens=True).values()) + 1)
    if kept is not None and not (
        kept == sorted(set(kept)) and all(type(i) is int and i in known for i in kept)
    ):
        raise ValueError("kept is not a list of ascending ids")
    limit = len(known) if kept is None else len(kept) + 1
    if not all(type(i) is int and 0 <= i < limit for i in specials):
        raise ValueError("a special id is out of range")
    if not (mask is None or (type(mask) is int and 0 <= mask <= limit)):
        raise ValueError("the id of the mask token is out of range")
    return rust, specials, kept, mask


def check_spec(spec: TokenizerSpec) -> None:
    """ValueError if there can be no such tokenizer."""
    if spec.source == "custom":
        if spec.vocab_size < (least := len(OWN_SPECIALS) + 256):
            raise ValueError(
                f"tokenizer_vocab_size={spec.vocab_size} must be at least {least} with tokenizer_source_name='custom': "
                "256 bytes and the special tokens"
            )
    elif spec.source != "char":
        pretrained_tokenizer(spec.source)


def make_tokenizer(spec: TokenizerSpec, texts: Callable[[], Iterable[str]]) -> Tokenizer:
    """The tokenizer that `spec` asks for; `texts` gives the training text whenever it is called."""
    check_spec(spec)
    if spec.source == "char":
        characters: set[str] = set()
        for text in texts():
            characters.update(text)
        return char_tokenizer(characters)
    if spec.source == "custom":
        return bpe_tokenizer(texts(), spec.vocab_size)
    tokenizer = pretrained_tokenizer(spec.source)
    if spec.crop:
        used: set[int] = set()
        for text in texts():
            used.update(*tokenizer.encode_batch([text]))
        tokenizer = tokenizer.cropped(used)
    return tokenizer


def char_tokenizer(characters: Iterable[str]) -> Tokenizer:
    """A token for each of these characters."""
    vocab = own_vocab(characters)
    # BPE without merges is the library's fastest way to take a text apart, and never finds a "<bos>" in it.
    rust = RustTokenizer(models.BPE(vocab=vocab, merges=[], unk_token=OWN_SPECIALS[3], fuse_unk=False))
    rust.decoder = decoders.Fuse()
    return Tokenizer(rust, own_specials())


def word_tokenizer(words: Iterable[str]) -> Tokenizer:
    """A token for each of these words, which stand between spaces in a text."""
    rust = RustTokenizer(models.WordLevel(vocab=own_vocab(words), unk_token=OWN_SPECIALS[3]))
    rust.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Tokenizer(rust, own_specials())


def own_specials() -> Specials:
    return Specials(pad=0, bos=1, eos=2, unk=3)


def own_vocab(tokens: Iterable[str]) -> dict[str, int]:
    return {token: i for i, token in enumerate([*OWN_SPECIALS, *sorted(tokens)])}


def bpe_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE trained on `texts`, so that every text has ids."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    rust = RustTokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=OWN_SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    rust.train_from_iterator(texts, trainer)
    return Tokenizer(rust, own_specials())


@functools.cache
def pretrained_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a pretrained model: from the local cache or a folder, else from the hub.

    ValueError in one sentence if there is none or its files are damaged.
    """
    try:
        return from_transformers(load_pretrained(name))
    except (KeyboardInterrupt, ValueError):
        raise
    except BaseException as error:  # a panic of the Rust library is no Exception
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"tokenizer_source_name={name!r} cannot be loaded: {reason[0]:.300}") from None


def load_pretrained(name: str) -> Any:
    """Return the tokenizer that transformers finds under `name`; ValueError if there is none."""
    from transformers import AutoTokenizer

    try:
        pretrained = AutoTokenizer.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError):
        if not hub_answers():
            raise ValueError(
                f"tokenizer_source_name={name!r} is not on this machine and the hub cannot be reached: "
                "use 'char' or 'custom', a folder that holds a tokenizer, or try again with a network"
            ) from None
        try:
            pretrained = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"tokenizer_source_name={name!r} is neither 'char' nor 'custom' nor a tokenizer of the hub: {reason}"
            ) from None
    return pretrained


def from_transformers(pretrained) -> Tokenizer:
    """Ours around a fast tokenizer of the transformers library."""
    if not pretrained.is_fast:
        raise ValueError(f"tokenizer_source_name={pretrained.name_or_path!r} has no fast version")

    def first(*ids: int | None) -> int:
        return next(i for i in (*ids, 0) if i is not None)

    p = pretrained
    eos = first(p.eos_token_id, p.sep_token_id, p.bos_token_id, p.pad_token_id)
    bos = first(p.bos_token_id, p.cls_token_id, eos)
    specials = Specials(pad=first(p.pad_token_id, eos), bos=bos, eos=eos, unk=first(p.unk_token_id, eos))
    return Tokenizer(RustTokenizer.from_str(p.backend_tokenizer.to_str()), specials, mask=p.mask_token_id)
