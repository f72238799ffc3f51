"""Tokenizers behind one small interface: registered ones, made from the training text, and pretrained ones.

A registered function makes a tokenizer, and its name is a value of `tokenizer_source_name`. Any other value is the
path of a folder, or the name of a repository on the Hugging Face hub, with a pretrained tokenizer.
"""

import functools
import inspect
import json
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as RustTokenizer

from common.registry import Registry
from common.text import did_you_mean, first_line
from data.cache import digest, function_digest
from data.hub import download_snapshot, hub_answers, local_snapshot, name_and_revision

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OWN_SPECIALS = ["<pad>", "<bos>", "<eos>", "<unk>"]  # ids 0 to 3 of the tokenizers made here
MASK = "<mask>"  # the mask token of masked models, with the last id
MAX_FILE = 200_000_000  # bytes; a larger tokenizer file is refused
UNASSIGNED = "\U000f0000"  # a private-use character, which no vocabulary has
NAMED = ("bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
PRETRAINED_FILES = (  # the files of a pretrained tokenizer; only the first is required
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "config.json",
    "generation_config.json",
    "chat_template.jinja",
)
GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
MAX_WORD = 256  # characters of a word in 'custom': BPE training takes quadratic time in the word length
DEFAULT_PATIENCE = 2.0  # seconds of training a tokenizer before a log line reports it
log = logging.getLogger("whatif.data")
ChatTemplate = str | dict[str, str]  # a Jinja template, or several by name


class TokenizerSpec(NamedTuple):
    """The choice of a tokenizer: a registered name such as "char", or a pretrained tokenizer's name or folder."""

    source: str
    vocab_size: int = 4096  # of "custom", special tokens included
    crop: bool = False  # keep only the tokens that the training text uses


class Specials(NamedTuple):
    """Ids of the special tokens, None for a missing one. Some may be equal (bos = eos = pad in GPT-2)."""

    pad: int | None
    bos: int | None
    eos: int | None
    unk: int | None


class Tokenizer:
    """Convert text to ids and back with `rust`, a tokenizer of the `tokenizers` library.

    With `kept`, a cropped vocabulary, id i stands for id kept[i] of `rust`. `bos` begins every text, unless it is
    None. `stops` are the ids that end a sample: eos, and the additional end tokens of a chat model. `mask` is the id
    of the mask token, or None: an id of `rust`, or the last id. Only `gpt2.to_hf` uses `chat_template`.
    """

    def __init__(
        self,
        rust: RustTokenizer,
        specials: Specials,
        kept: Sequence[int] | None = None,
        mask: int | None = None,
        *,
        stops: Iterable[int] = (),
        chat_template: ChatTemplate | None = None,
    ) -> None:
        # "<|endoftext|>" in a text is plain text, not the special token.
        rust.encode_special_tokens = True
        rust.no_padding()
        rust.no_truncation()
        self.rust = rust
        self.specials = specials
        _, self.bos, self.eos, self.unk = specials
        # Masks hide padding, so any id will do.
        self.pad = 0 if specials.pad is None else specials.pad
        self.kept = None if kept is None else np.array(kept, np.int64)
        self.n_rust = max(rust.get_vocab(with_added_tokens=True).values()) + 1
        self.n_tokens = self.n_rust
        if self.kept is not None:
            assert self.unk is not None, "a cropped tokenizer needs an unk id"
            # unk may be an additional id that rust does not have.
            self.n_tokens = max(len(self.kept), self.unk + 1)
            self.new_ids = np.full(self.n_rust, self.unk)
            self.new_ids[self.kept] = np.arange(len(self.kept))
        self.mask = mask
        if mask is not None:
            self.n_tokens = max(self.n_tokens, mask + 1)
        self.stops = tuple(dict.fromkeys(i for i in (self.eos, *stops) if i is not None))
        self.chat_template = chat_template

    def __call__(self, text: str | list[str], *, parse_special: bool = False) -> list:
        """Return the ids of a text, bos first if there is one. For a list of texts, return a list of such lists.

        Without `parse_special`, "<|im_end|>" in a text is plain text. With it, the text of a special token becomes
        its id, and a text that begins with bos gets no second bos.
        """
        rows = self.encode_batch([text] if isinstance(text, str) else text, parse_special)
        rows = [ids if parse_special and ids[:1] == [self.bos] else [*self.begin, *ids] for ids in rows]
        return rows[0] if isinstance(text, str) else rows

    @property
    def begin(self) -> list[int]:
        """The ids before every text: bos, or nothing."""
        return [] if self.bos is None else [self.bos]

    @property
    def start(self) -> list[int]:
        """The first ids of a sample without a prompt: bos or, without bos, eos, which separates training documents."""
        return self.begin or self.end

    @property
    def end(self) -> list[int]:
        """The ids after every training text: eos, or nothing."""
        return [] if self.eos is None else [self.eos]

    def encode_batch(self, texts: list[str], parse_special: bool = False) -> list[list[int]]:
        """Return the ids of each text without bos and eos. See `__call__` for `parse_special`."""
        self.rust.encode_special_tokens = not parse_special
        try:
            encoded = [e.ids for e in self.rust.encode_batch_fast(texts, add_special_tokens=False)]
        finally:
            self.rust.encode_special_tokens = True
        return (
            encoded if self.kept is None else [self.new_ids[ids].tolist() if ids else [] for ids in encoded]
        )

    def unknown_bytes(self, text: str, ids: Sequence[int]) -> int:
        """Return the number of UTF-8 bytes of a text that `ids` do not encode: behind unknown tokens, or dropped."""
        if self.unk not in ids and not self.drops_characters:
            return 0
        known, vanishes = np.zeros(len(text), bool), np.array([not char.isspace() for char in text], bool)
        for i, (start, end) in zip(
            ids, self.rust.encode(text, add_special_tokens=False).offsets, strict=True
        ):
            known[start:end] |= i != self.unk
            # A space in an unknown token is lost, too.
            vanishes[start:end] = True
        return sum(len(text[at].encode()) for at in np.flatnonzero(~known & vanishes))

    def first_bytes(self, text: str) -> int:
        """Return the number of UTF-8 bytes of the first token of a text.

        Without bos, no position predicts that token.
        """
        start = text[:1000]
        offsets = self.rust.encode(start, add_special_tokens=False).offsets
        return len(start[: offsets[0][1]].encode()) if offsets else 0

    @functools.cached_property
    def drops_characters(self) -> bool:
        """True if characters outside the vocabulary are dropped: BPE with neither bytes nor an unknown token."""
        return isinstance(self.rust.model, models.BPE) and not self.rust.encode(UNASSIGNED).ids

    def with_gaps(self, text: str) -> list[int]:
        """Return the ids of a text with mask tokens in it, such as "a <mask> c": from bos to eos, as in training rows.

        Raise ValueError for a tokenizer without a mask token.
        """
        if self.mask is None:
            raise ValueError(
                "this tokenizer has no mask token; use that of a model with objective='masked', or with_mask()"
            )
        parts = text.split(self.token(self.mask))
        if keeps_spaces(self.rust):  # a word's token has the space before it
            parts = [*(part.rstrip(" ") for part in parts[:-1]), parts[-1]]
        first, *others = self.encode_batch(parts)
        return [*self.begin, *first, *(i for ids in others for i in (self.mask, *ids)), *self.end]

    def with_mask(self) -> "Tokenizer":
        """Return this tokenizer if it has a mask token, else a copy with a new one as the last id."""
        if self.mask is not None:
            return self
        return Tokenizer(
            self.rust,
            self.specials,
            self.kept_list(),
            self.n_tokens,
            stops=self.stops,
            chat_template=self.chat_template,
        )

    def with_own_specials(self) -> "Tokenizer":
        """Return this tokenizer if it has eos, else a copy with OWN_SPECIALS added as the last ids.

        The copy keeps a pad or unk token that this tokenizer has. Raise ValueError for a cropped tokenizer without eos.
        """
        if self.eos is not None:
            return self
        if self.kept is not None:
            raise ValueError("this tokenizer has no eos; call with_own_specials before cropped")
        rust = RustTokenizer.from_str(with_unknown_token(self.rust.to_str()))
        rust.add_special_tokens(OWN_SPECIALS)
        pad, bos, eos, unk = map(rust.token_to_id, OWN_SPECIALS)
        known = self.specials
        pad, unk = (own if i is None else i for own, i in ((pad, known.pad), (unk, known.unk)))
        return Tokenizer(
            rust,
            Specials(pad, bos, eos, unk),
            mask=self.mask,
            stops=self.stops,
            chat_template=self.chat_template,
        )

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of the ids without special tokens, and without stop tokens that are marked as special."""
        left_out = {*self.specials, self.mask, *(set(self.stops) & set(self.special_ids.values()))}
        plain = [i for i in map(int, ids) if i not in left_out]
        plain = plain if self.kept is None else [int(self.kept[i]) for i in plain]
        return self.rust.decode(plain, skip_special_tokens=False)

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """Return the text of each id on one line."""
        return [self.token(int(i)) for i in ids]

    def token(self, i: int) -> str:
        """Return the text of id `i` on one line; a token of incomplete UTF-8 shows as in the vocabulary."""
        if self.kept is not None and i >= len(self.kept):
            return MASK if i == self.mask else "<unk>"
        if self.kept is None and i == self.n_rust:
            return MASK
        i = i if self.kept is None else int(self.kept[i])
        text = self.rust.decode([i], skip_special_tokens=False)
        if not text or "�" in text:  # half a character
            text = self.rust.id_to_token(i) or f"<{i}>"
        return text.replace("\n", "\\n")

    @functools.cached_property
    def special_ids(self) -> Mapping[str, int]:
        """The id of each special token by its text, such as {"<|im_end|>": 151645}."""
        added = {
            i: token.content for i, token in self.rust.get_added_tokens_decoder().items() if token.special
        }
        if self.kept is not None:
            added = {new: added[old] for new, old in enumerate(self.kept_list() or []) if old in added}
        own = {i: self.token(i) for i in (*self.specials, self.mask) if i is not None}
        return {text: i for i, text in (own | added).items()}

    def ids_of(self, tokens: Iterable[str]) -> list[int]:
        """Return the ids of the tokens of a synthetic task, unk for unknown ones."""
        assert self.unk is not None, "the tokenizers of tasks have an unknown token"
        return [self.unk if (i := self.rust.token_to_id(token)) is None else i for token in tokens]

    def cropped(self, used: Iterable[int]) -> "Tokenizer":
        """Return a copy with only the special tokens and the ids `used`, renumbered in the same order."""
        kept = sorted({*used, *(i for i in self.specials if i is not None)})
        new = {old: i for i, old in enumerate(kept)}
        pad, bos, eos, unk = (None if i is None else new[i] for i in self.specials)
        # A removed token must not become the end of a text or padding.
        if unk in (None, pad, bos, eos):
            unk = len(kept)
        stops = [new[i] for i in self.stops if i in new]
        return Tokenizer(
            self.rust, Specials(pad, bos, eos, unk), kept, stops=stops, chat_template=self.chat_template
        )

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest that is equal for tokenizers that give every text the same ids; the mask token is ignored."""
        return digest(self.rust.to_str(), self.specials, self.kept_list())

    def kept_list(self) -> list[int] | None:
        return None if self.kept is None else self.kept.tolist()

    def save(self, folder: Path) -> None:
        """Write tokenizer.json (the format of the `tokenizers` library) and tokenizer_ids.json to `folder`."""
        folder = Path(folder)
        (folder / "tokenizer.json").write_text(self.rust.to_str(), encoding="utf-8")
        (folder / "tokenizer_ids.json").write_text(json.dumps(self.settings()), encoding="utf-8")

    def settings(self) -> dict[str, object]:
        """Return the content of tokenizer_ids.json: everything that tokenizer.json lacks."""
        others = {"mask": self.mask, "stops": self.stops, "chat_template": self.chat_template}
        given = {name: value for name, value in others.items() if value is not None}
        return {"specials": self.specials._asdict(), "kept": self.kept_list(), **given}

    @property
    def identity(self) -> str:
        """A digest that is equal for tokenizers that `save` writes as equal files."""
        return digest(self.rust.to_str(), self.settings())

    @staticmethod
    def load(folder: Path) -> "Tokenizer":
        """Load a tokenizer that `save` wrote; no code in the files runs. Raise ValueError for invalid files."""
        with readable(folder):
            return read_saved(Path(folder))


@contextmanager
def readable(source: object, passing: type[BaseException] = KeyboardInterrupt) -> Iterator[None]:
    """Turn every error inside the `with` block into a ValueError of one sentence that names `source`.

    Ctrl-C and errors of the type `passing` pass unchanged.
    """
    try:
        yield
    except (KeyboardInterrupt, passing):
        raise
    # A panic of the Rust library is a BaseException, not an Exception.
    except BaseException as error:
        reason = first_line(error)
        raise ValueError(f"{source} holds no readable tokenizer: {reason:.300}") from None


def read_small_file(path: Path) -> str:
    """Return the text of a UTF-8 file. Raise ValueError if it is larger than MAX_FILE bytes."""
    if path.stat().st_size > MAX_FILE:
        raise ValueError(f"{path.name} is larger than {MAX_FILE:,} bytes")
    return path.read_text(encoding="utf-8")


def read_saved(folder: Path) -> Tokenizer:
    """Load a tokenizer from a folder that `save` wrote. Invalid files may raise any exception."""
    rust = RustTokenizer.from_str(read_small_file(folder / "tokenizer.json"))
    ids = json.loads(read_small_file(folder / "tokenizer_ids.json"))
    specials, kept, mask = Specials(**ids["specials"]), ids["kept"], ids.get("mask")
    stops, chat_template = ids.get("stops", ()), ids.get("chat_template")
    known = range(max(rust.get_vocab(with_added_tokens=True).values()) + 1)
    if kept is not None and not (
        kept == sorted(set(kept)) and all(type(i) is int and i in known for i in kept)
    ):
        raise ValueError("kept is not a list of ascending ids")
    limit = len(known) if kept is None else len(kept) + 1
    if not all(type(i) is int and 0 <= i < limit for i in (*stops, *(i for i in specials if i is not None))):
        raise ValueError("a special id is out of range")
    if kept is not None and specials.unk is None:
        raise ValueError("kept is given, but specials has no unk id for the removed tokens")
    if not (mask is None or (type(mask) is int and 0 <= mask <= limit)):
        raise ValueError("the id of the mask token is out of range")
    return Tokenizer(rust, specials, kept, mask, stops=stops, chat_template=checked_template(chat_template))


def checked_template(template: object) -> ChatTemplate | None:
    """Return `template`, None if it is empty. Raise ValueError unless it is a text or a dict of texts by name."""
    texts = template.values() if isinstance(template, dict) else [template or ""]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("the chat template must be a text, or a dict of texts by name")
    return template or None  # type: ignore[return-value]


ReadTexts = Callable[[], Iterable[str]]  # each call returns the documents of the training text
MakeTokenizer = Callable[[ReadTexts, TokenizerSpec], Tokenizer]
CheckSpec = Callable[[TokenizerSpec], None]  # raises ValueError for an invalid spec


class Recipe(NamedTuple):
    """A registered tokenizer: the function that makes it, and an optional check of its spec."""

    make: MakeTokenizer
    check: CheckSpec | None


recipes: Registry[Recipe] = Registry("tokenizer")


@overload
def register_tokenizer(make: MakeTokenizer) -> MakeTokenizer: ...
@overload
def register_tokenizer(
    make: None = None, *, check: CheckSpec | None = None
) -> Callable[[MakeTokenizer], MakeTokenizer]: ...
def register_tokenizer(
    make: MakeTokenizer | None = None, *, check: CheckSpec | None = None
) -> MakeTokenizer | Callable[[MakeTokenizer], MakeTokenizer]:
    """Register the decorated function: its name becomes a value of `tokenizer_source_name`.

    The function takes the training text and the spec, and returns a Tokenizer:

        @register_tokenizer
        def words(texts: ReadTexts, spec: TokenizerSpec) -> Tokenizer:
            return word_tokenizer({word for text in texts() for word in text.split()})

    With `@register_tokenizer(check=...)`, `check(spec)` raises ValueError for a spec that the function does not support.
    """

    def register(make: MakeTokenizer) -> MakeTokenizer:
        return recipes.add(make, Recipe(make, check))

    return register(make) if make else register


def check_spec(spec: TokenizerSpec) -> None:
    """Raise ValueError if `spec` is invalid or names no tokenizer."""
    recipe = recipes.get(spec.source)
    if recipe is None:
        pretrained_tokenizer(spec.source)
    elif recipe.check is not None:
        recipe.check(spec)


def make_tokenizer(spec: TokenizerSpec, texts: ReadTexts) -> Tokenizer:
    """Return the tokenizer of `spec`, with eos. `texts()` returns the training documents.

    Raise ValueError if `spec` is invalid or names no tokenizer.
    """
    check_spec(spec)
    if spec.source in recipes:
        return recipes[spec.source].make(texts, spec).with_own_specials()
    tokenizer = pretrained_tokenizer(spec.source).with_own_specials()
    if spec.crop:
        used: set[int] = set()
        for text in texts():
            used.update(*tokenizer.encode_batch([text]))
        tokenizer = tokenizer.cropped(used)
    return tokenizer


def spec_identity(spec: TokenizerSpec) -> str:
    """Return a digest of the tokenizer of `spec` without the training text: of its files, or of its function."""
    if spec.source not in recipes:
        return pretrained_tokenizer(spec.source).identity
    return function_digest(recipes[spec.source].make)


@register_tokenizer
def char(texts: ReadTexts, spec: TokenizerSpec) -> Tokenizer:
    """A token for each character of the training text."""
    characters: set[str] = set()
    for text in texts():
        characters.update(text)
    return char_tokenizer(characters)


def check_room_for_bytes(spec: TokenizerSpec) -> None:
    """Raise ValueError if the vocabulary is too small for the 256 bytes and the special tokens."""
    if spec.vocab_size < (least := len(OWN_SPECIALS) + 256):
        raise ValueError(
            f"tokenizer_vocab_size={spec.vocab_size} must be at least {least} with tokenizer_source_name={spec.source!r}: "
            "256 bytes and the special tokens"
        )


@register_tokenizer(check=check_room_for_bytes)
def custom(texts: ReadTexts, spec: TokenizerSpec) -> Tokenizer:
    """Byte-level BPE of `tokenizer_vocab_size` tokens."""
    return bpe_tokenizer(texts(), spec.vocab_size)


def char_tokenizer(characters: Iterable[str]) -> Tokenizer:
    """Return a tokenizer with a token for each of these characters."""
    vocab = own_vocab(characters)
    # BPE without merges is the fastest way to split a text, and never finds a "<bos>" in it.
    rust = RustTokenizer(models.BPE(vocab=vocab, merges=[], unk_token=OWN_SPECIALS[3], fuse_unk=False))
    rust.decoder = decoders.Fuse()
    return Tokenizer(rust, own_specials())


def word_tokenizer(words: Iterable[str]) -> Tokenizer:
    """Return a tokenizer with a token for each of these words; spaces separate the words of a text."""
    rust = RustTokenizer(models.WordLevel(vocab=own_vocab(words), unk_token=OWN_SPECIALS[3]))
    rust.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Tokenizer(rust, own_specials())


def own_specials() -> Specials:
    return Specials(pad=0, bos=1, eos=2, unk=3)


def own_vocab(tokens: Iterable[str]) -> dict[str, int]:
    return {token: i for i, token in enumerate([*OWN_SPECIALS, *sorted(tokens)])}


def bpe_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Return a byte-level BPE tokenizer trained on `texts`. It encodes every text. Ctrl-C interrupts the training.

    Words are split as in GPT-2, and after MAX_WORD characters, which matters for text without spaces such as DNA.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    rust = RustTokenizer(models.BPE())
    words = Regex(GPT2_WORDS.replace("+", f"{{1,{MAX_WORD}}}"))
    rust.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    rust.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=OWN_SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    run_interruptibly(
        functools.partial(rust.train_from_iterator, texts, trainer),
        f"training a BPE tokenizer of {vocab_size} tokens on the training text; this may take minutes",
    )
    return Tokenizer(rust, own_specials())


def run_interruptibly(work: Callable[[], object], message: str) -> None:
    """Run `work` in a thread, since Ctrl-C cannot interrupt native code; raise the exception that it raises.

    Log `message` after DEFAULT_PATIENCE seconds. After Ctrl-C the thread continues until it is done or the process
    ends.
    """
    raised: list[BaseException] = []

    def target() -> None:
        try:
            work()
        # A panic of the Rust library is a BaseException, not an Exception.
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    thread.join(DEFAULT_PATIENCE)
    if thread.is_alive():
        log.info(message)
    while thread.is_alive():
        thread.join(0.1)
    if raised:
        raise raised[0]


def keeps_spaces(rust: RustTokenizer) -> bool:
    """Return whether the first token of a word includes the space before it, as in GPT-2."""
    first = rust.pre_tokenizer
    parts: Any = first if isinstance(first, pre_tokenizers.Sequence) else [first]
    return any(isinstance(part, pre_tokenizers.ByteLevel) for part in parts)


def with_unknown_token(tokenizer_json: str) -> str:
    """Return the text of tokenizer.json, with an unknown token added if its model would fail at unknown words."""
    content = json.loads(tokenizer_json)
    model = content["model"]
    if model["type"] in ("WordLevel", "WordPiece") and model["unk_token"] not in model["vocab"]:
        model["unk_token"] = OWN_SPECIALS[3]
        model["vocab"].setdefault(OWN_SPECIALS[3], 1 + max(model["vocab"].values(), default=-1))
    return json.dumps(content)


def pretrained_tokenizer(name: str, revision: str | None = None) -> Tokenizer:
    """Load the tokenizer of a pretrained model from a folder, the local cache, or the hub.

    `name` may be "repository@revision"; a revision is a branch, tag or commit. The ids are those of tokenizer.json,
    even for the classes whose tokenizer.json transformers changes. Without this file, transformers makes the
    tokenizer. Raise ValueError with one sentence if there is no readable tokenizer.
    """
    if revision is None:
        name, revision = name_and_revision(name)
    folder = local_snapshot(name, revision, PRETRAINED_FILES)
    # An earlier download for another purpose may lack the files that name the special tokens.
    complete = Path(name).is_dir() or (folder is not None and (folder / PRETRAINED_FILES[1]).is_file())
    online = not complete and hub_answers()
    if online:
        folder = download_snapshot(name, revision, PRETRAINED_FILES) or folder
    setting = f"tokenizer_source_name={name if revision is None else f'{name}@{revision}'!r}"
    if folder is None:
        with readable(setting, passing=ValueError):
            return from_transformers(auto_tokenizer(name, revision, online, setting))
    files = [path for path in map(folder.joinpath, PRETRAINED_FILES) if path.is_file()]
    stamps = tuple((path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in files)
    with readable(setting):
        return read_pretrained(folder.absolute(), stamps)


@functools.lru_cache(maxsize=16)
def read_pretrained(folder: Path, stamps: tuple[tuple[str, int, int], ...]) -> Tokenizer:
    """Load the tokenizer in a model's folder. `stamps` (name, mtime, size) key the memory cache."""
    texts = {name: read_small_file(folder / name) for name, *_ in stamps}
    rust = RustTokenizer.from_str(texts["tokenizer.json"])
    files = {name: json.loads(text) for name, text in texts.items() if name.endswith(".json")}
    ids = named_ids(rust, files)
    return Tokenizer(
        rust,
        specials_of(rust, ids),
        mask=ids.get("mask_token"),
        stops=stops_of(files, rust),
        chat_template=chat_template(texts, files),
    )


def named_ids(rust: RustTokenizer, files: Mapping[str, dict[str, object]]) -> dict[str, int]:
    """Return the ids of the special tokens that a model's files name, such as {"eos_token": 2}.

    The order is that of transformers: tokenizer_config.json, special_tokens_map.json, the tokenizer's class. If none of
    them names any, use those ids in config.json that tokenizer.json marks as special.
    """
    config, model = files.get("tokenizer_config.json", {}), files.get("config.json", {})
    named = dict(config)
    if "added_tokens_decoder" not in config:
        named |= files.get("special_tokens_map.json", {})
    kind = config.get("tokenizer_class") or model.get("tokenizer_class")
    named = class_specials(kind, model.get("model_type")) | named
    texts = {key: text.get("content") if isinstance(text := named.get(key), dict) else text for key in NAMED}
    found = {key: rust.token_to_id(text) for key, text in texts.items() if isinstance(text, str)}
    ids = {key: i for key, i in found.items() if i is not None}
    if ids:
        return ids
    special = {i for i, token in rust.get_added_tokens_decoder().items() if token.special}
    given = {key: as_list(model.get(f"{key}_id")) for key in NAMED}
    return {key: ids[0] for key, ids in given.items() if ids and ids[0] in special}


def class_specials(name: object, model_type: object) -> dict[str, str]:
    """Return the default special tokens of a tokenizer class of transformers, given by its name or a model type."""
    import transformers
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    kind = getattr(transformers, str(name or TOKENIZER_MAPPING_NAMES.get(str(model_type))), None)
    found: dict[str, str] = {}
    for base in reversed(inspect.getmro(kind)) if inspect.isclass(kind) else []:
        parameters = inspect.signature(base).parameters
        defaults = {key: parameters[key].default for key in NAMED if key in parameters}
        found |= {key: text for key, text in defaults.items() if isinstance(text, str)}
    return found


def specials_of(rust: RustTokenizer, ids: Mapping[str, int]) -> Specials:
    """Return the special ids as Specials. [CLS] and [SEP] of BERT are bos and eos; without eos, bos is also eos."""

    def first(*found: int | None) -> int | None:
        return next((i for i in found if i is not None), None)

    bos = first(ids.get("bos_token"), ids.get("cls_token"))
    eos = first(ids.get("eos_token"), ids.get("sep_token"), bos)
    pad = first(ids.get("pad_token"), eos)
    return Specials(pad, bos, eos, unk=first(unknown_id(rust), ids.get("unk_token")))


def unknown_id(rust: RustTokenizer) -> int | None:
    """Return the id that the tokenizer's model gives to unknown text, or None."""
    if isinstance(rust.model, models.Unigram):
        return json.loads(rust.to_str())["model"]["unk_id"]
    text = rust.model.unk_token
    return None if text is None else rust.token_to_id(text)


def stops_of(files: Mapping[str, dict[str, object]], rust: RustTokenizer) -> list[int]:
    """Return the ids that end a generation: `eos_token_id` in config.json and generation_config.json."""
    given = (files.get(name, {}).get("eos_token_id") for name in ("config.json", "generation_config.json"))
    return [i for ids in given for i in as_list(ids) if rust.id_to_token(i) is not None]


def as_list(ids: object) -> list[int]:
    """Return the valid ids in a config value, which may be None, an id or a list of ids."""
    return [i for i in (ids if isinstance(ids, list) else [ids]) if type(i) is int and 0 <= i < 2**32]


def chat_template(texts: Mapping[str, str], files: Mapping[str, dict[str, object]]) -> ChatTemplate | None:
    """Return the chat template in chat_template.jinja, else in tokenizer_config.json, else None."""
    template: object = texts.get("chat_template.jinja") or files.get("tokenizer_config.json", {}).get(
        "chat_template"
    )
    if isinstance(template, list):  # several, each with a name
        template = {one["name"]: one["template"] for one in template}
    return checked_template(template)


def auto_tokenizer(name: str, revision: str | None, online: bool, setting: str) -> "PreTrainedTokenizerBase":
    """Load a tokenizer with AutoTokenizer, for repositories without tokenizer.json.

    Raise ValueError whose message begins with `setting` and contains a hint.
    """
    from transformers import AutoTokenizer

    load = functools.partial(AutoTokenizer.from_pretrained, name, revision=revision or "main")
    try:
        return load(local_files_only=True)
    except (OSError, ValueError) as error:
        reason = first_line(error)
    hint = did_you_mean(name, sorted(recipes), list_all=True)
    if Path(name).is_dir():
        raise ValueError(
            f"{setting} is a folder without a tokenizer that can be read ({reason.rstrip(':')}): save the model's tokenizer "
            "there, by tokenizer.save_pretrained(folder)"
        )
    if not online:
        raise ValueError(
            f"{setting} is not on this machine and the hub cannot be reached: {hint}, a folder that holds a tokenizer, "
            "or a name on the hub, with a network"
        )
    try:
        return load()
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise ValueError(
            f"{setting} is neither registered nor a tokenizer of the hub: {reason}; {hint}"
        ) from None


def from_transformers(pretrained: "PreTrainedTokenizerBase") -> Tokenizer:
    """Wrap a fast tokenizer of transformers in a Tokenizer.

    If it was loaded from a tokenizer.json and not changed since, the ids are those of the file. Raise ValueError for a
    tokenizer without a fast version.
    """
    if not pretrained.is_fast:
        raise ValueError(
            f"tokenizer_source_name={pretrained.name_or_path!r} has no fast version; use a tokenizer that has one"
        )
    rust = original_of(pretrained) or RustTokenizer.from_str(pretrained.backend_tokenizer.to_str())
    texts = {key: getattr(pretrained, key) for key in NAMED}
    found = {key: rust.token_to_id(text) for key, text in texts.items() if text is not None}
    ids = {key: i for key, i in found.items() if i is not None}
    return Tokenizer(
        rust,
        specials_of(rust, ids),
        mask=ids.get("mask_token"),
        chat_template=checked_template(pretrained.chat_template),
    )


def original_of(pretrained: "PreTrainedTokenizerBase") -> RustTokenizer | None:
    """Load the tokenizer.json from which `pretrained` was loaded; None without one, or if `pretrained` has changed."""
    name = pretrained.name_or_path  # empty if it was made from a vocabulary
    folder = local_snapshot(*name_and_revision(name), PRETRAINED_FILES) if name else None
    if folder is None:
        return None
    try:
        rust = RustTokenizer.from_str(read_small_file(folder / "tokenizer.json"))
        loaded = type(pretrained).from_pretrained(str(folder), local_files_only=True)
    except Exception:  # the folder has changed since
        return None
    same = without_padding(loaded.backend_tokenizer) == without_padding(pretrained.backend_tokenizer)
    return rust if same else None


def without_padding(rust: RustTokenizer) -> dict[str, object]:
    """Return tokenizer.json as a dict without padding and truncation, which Tokenizer switches off."""
    return json.loads(rust.to_str()) | {"padding": None, "truncation": None}
