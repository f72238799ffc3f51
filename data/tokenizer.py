"""Tokenizers behind one small interface: registered ones, which are made from the training text, and pretrained ones.

A decorated function makes a tokenizer, and its name is a value of `tokenizer_source_name`. All other values name a folder
or a repository of the Hugging Face hub that holds a pretrained tokenizer.
"""

import difflib
import functools
import inspect
import json
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as RustTokenizer

from data.cache import digest, function_digest
from data.hub import download_snapshot, hub_answers, local_snapshot, name_and_revision

OWN_SPECIALS = ["<pad>", "<bos>", "<eos>", "<unk>"]  # ids 0 to 3 of the tokenizers we make
MASK = "<mask>"  # where a masked model is trained; behind all other ids
LARGEST_FILE = 200_000_000  # bytes of a tokenizer we are ready to read
UNASSIGNED = "\U000f0000"  # a private-use character, which no vocabulary has
NAMED = ("bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
PRETRAINED_FILES = (  # of a model's folder; only the first must be there
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "config.json",
    "generation_config.json",
    "chat_template.jinja",
)
GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
MAX_WORD = 256  # characters of a word in our own BPE: training takes quadratic time in the length of words
DEFAULT_PATIENCE = 2.0  # seconds of training a tokenizer before a log line says so
log = logging.getLogger("whatif.data")
ChatTemplate = str | dict[str, str]  # a Jinja template, or several by name


class TokenizerSpec(NamedTuple):
    """What to make a tokenizer of: the name of a registered one, such as "char", or of a pretrained one."""

    source: str
    vocab_size: int = 4096  # of "custom", special tokens included
    crop: bool = False  # keep only the tokens that the training text uses


class Specials(NamedTuple):
    """Ids of the special tokens, None where there is none; some may coincide (bos = eos = pad in GPT-2)."""

    pad: int | None
    bos: int | None
    eos: int | None
    unk: int | None


class Tokenizer:
    """Text to ids and back. `rust` does the work; with `kept`, id i stands for its id kept[i].

    `bos` begins every text, unless it is None. `stops` are the ids that end a sample: eos, and the further end tokens of
    a chat model. `mask` is the id of the mask token, if it is asked for: one that rust knows, or one behind all others.
    `chat_template` is kept for `gpt2.to_hf`.
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
        rust.encode_special_tokens = True  # "<|endoftext|>" in a text is text, not the end of it
        rust.no_padding()
        rust.no_truncation()
        self.rust = rust
        self.specials = specials
        _, self.bos, self.eos, self.unk = specials
        self.pad = 0 if specials.pad is None else specials.pad  # fills up rows, and is never looked at
        self.kept = None if kept is None else np.array(kept, np.int64)
        self.n_rust = max(rust.get_vocab(with_added_tokens=True).values()) + 1
        self.n_tokens = self.n_rust
        if self.kept is not None:
            assert self.unk is not None, "tokens that are left out need an id"
            self.n_tokens = max(
                len(self.kept), self.unk + 1
            )  # unk may be a token of its own, unknown to rust
            self.new_ids = np.full(self.n_rust, self.unk)
            self.new_ids[self.kept] = np.arange(len(self.kept))
        self.mask = mask
        if mask is not None:
            self.n_tokens = max(self.n_tokens, mask + 1)
        self.stops = tuple(dict.fromkeys(i for i in (self.eos, *stops) if i is not None))
        self.chat_template = chat_template

    def __call__(self, text: str | list[str], *, parse_special: bool = False) -> list:
        """Return the ids of a text, beginning with bos if there is one; a list of them for a list of texts.

        "<|im_end|>" in a text is text like any other. With `parse_special` the text of a special token becomes its id,
        and a text that begins with bos gets no second one.
        """
        rows = self.encode_batch([text] if isinstance(text, str) else text, parse_special)
        rows = [ids if parse_special and ids[:1] == [self.bos] else [*self.begin, *ids] for ids in rows]
        return rows[0] if isinstance(text, str) else rows

    @property
    def begin(self) -> list[int]:
        """The ids in front of every text: bos, or nothing."""
        return [] if self.bos is None else [self.bos]

    @property
    def start(self) -> list[int]:
        """The ids that a sample without a prompt begins with: bos, or else eos, which parts documents in training rows."""
        return self.begin or self.end

    @property
    def end(self) -> list[int]:
        """The ids behind every text that is trained on: eos, or nothing."""
        return [] if self.eos is None else [self.eos]

    def encode_batch(self, texts: list[str], parse_special: bool = False) -> list[list[int]]:
        """Ids of each text, without special tokens in front or behind; for `parse_special` see `__call__`."""
        self.rust.encode_special_tokens = not parse_special
        try:
            encoded = [e.ids for e in self.rust.encode_batch_fast(texts, add_special_tokens=False)]
        finally:
            self.rust.encode_special_tokens = True
        return (
            encoded if self.kept is None else [self.new_ids[ids].tolist() if ids else [] for ids in encoded]
        )

    def unknown_bytes(self, text: str, ids: Sequence[int]) -> int:
        """Return how many UTF-8 bytes of a text stand behind unknown tokens, or vanish from its `ids`."""
        if self.unk not in ids and not self.drops_characters:
            return 0
        known, vanishes = np.zeros(len(text), bool), np.array([not char.isspace() for char in text], bool)
        for i, (start, end) in zip(
            ids, self.rust.encode(text, add_special_tokens=False).offsets, strict=True
        ):
            known[start:end] |= i != self.unk
            vanishes[start:end] = True  # behind an unknown token even a space is not known
        return sum(len(text[at].encode()) for at in np.flatnonzero(~known & vanishes))

    def first_bytes(self, text: str) -> int:
        """Return how many UTF-8 bytes stand behind the first token of a text, which nothing predicts without bos."""
        start = text[:1000]
        offsets = self.rust.encode(start, add_special_tokens=False).offsets
        return len(start[: offsets[0][1]].encode()) if offsets else 0

    @functools.cached_property
    def drops_characters(self) -> bool:
        """Whether characters without a token leave none: BPE with neither bytes nor an unknown token."""
        return isinstance(self.rust.model, models.BPE) and not self.rust.encode(UNASSIGNED).ids

    def with_gaps(self, text: str) -> list[int]:
        """Ids of a text in which the mask token's text stands where a token is missing: from bos to eos, as rows have it."""
        if self.mask is None:
            raise ValueError(
                "this tokenizer has no mask token: that of a model of objective='masked' has one"
            )
        parts = text.split(self.token(self.mask))
        if keeps_spaces(self.rust):  # a word's token has the space before it
            parts = [*(part.rstrip(" ") for part in parts[:-1]), parts[-1]]
        first, *others = self.encode_batch(parts)
        return [*self.begin, *first, *(i for ids in others for i in (self.mask, *ids)), *self.end]

    def with_mask(self) -> "Tokenizer":
        """The same with a mask token: its own, if it has one, else a new one with the last id."""
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
        """Return a tokenizer in which texts have an end: where there is no eos, special tokens of ours behind all others."""
        if self.eos is not None:
            return self
        if self.kept is not None:
            raise ValueError("this tokenizer has no eos, so call with_own_specials before it is cropped")
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
        """The text of the ids; special tokens are left out, and so are stop tokens with a special meaning."""
        left_out = {*self.specials, self.mask, *(set(self.stops) & set(self.special_ids.values()))}
        plain = [i for i in map(int, ids) if i not in left_out]
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
        """Ids of tokens given one by one, as synthetic tasks do."""
        assert self.unk is not None, "the tokenizers of tasks have an unknown token"
        return [self.unk if (i := self.rust.token_to_id(token)) is None else i for token in tokens]

    def cropped(self, used: Iterable[int]) -> "Tokenizer":
        """Only the special tokens and those of `used`, numbered anew in the same order."""
        kept = sorted({*used, *(i for i in self.specials if i is not None)})
        new = {old: i for i, old in enumerate(kept)}
        pad, bos, eos, unk = (None if i is None else new[i] for i in self.specials)
        if unk in (None, pad, bos, eos):  # a token left out must not look like the end or like padding
            unk = len(kept)
        stops = [new[i] for i in self.stops if i in new]
        return Tokenizer(
            self.rust, Specials(pad, bos, eos, unk), kept, stops=stops, chat_template=self.chat_template
        )

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
        (folder / "tokenizer_ids.json").write_text(json.dumps(self.settings()), encoding="utf-8")

    def settings(self) -> dict[str, Any]:
        """Return all that makes a tokenizer beside tokenizer.json."""
        others = {"mask": self.mask, "stops": self.stops, "chat_template": self.chat_template}
        given = {name: value for name, value in others.items() if value is not None}
        return {"specials": self.specials._asdict(), "kept": self.kept_list(), **given}

    @property
    def identity(self) -> str:
        """Equal for tokenizers that are saved as the same files."""
        return digest(self.rust.to_str(), self.settings())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads what `save` wrote, as data only; anything else is a ValueError."""
        with readable(folder):
            return cls(**read_saved(Path(folder)))


@contextmanager
def readable(source: object, passing: type[BaseException] = KeyboardInterrupt) -> Iterator[None]:
    """Turn what goes wrong with the files of a tokenizer inside into a ValueError of one sentence that names `source`.

    Ctrl-C and errors of the type `passing` are left as they are.
    """
    try:
        yield
    except (KeyboardInterrupt, passing):
        raise
    except BaseException as error:  # a panic of the Rust library is no Exception
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{source} holds no tokenizer that can be read: {reason:.300}") from None


def read_text(path: Path) -> str:
    """Return the text of a file of bounded size."""
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"{path.name} is over {LARGEST_FILE:,} bytes")
    return path.read_text(encoding="utf-8")


def read_saved(folder: Path) -> dict[str, Any]:
    """Return the arguments of a Tokenizer from its folder; raises anything when they are not sound."""
    rust = RustTokenizer.from_str(read_text(folder / "tokenizer.json"))
    ids = json.loads(read_text(folder / "tokenizer_ids.json"))
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
        raise ValueError("there is no id for the tokens that are not kept")
    if not (mask is None or (type(mask) is int and 0 <= mask <= limit)):
        raise ValueError("the id of the mask token is out of range")
    return {
        "rust": rust,
        "specials": specials,
        "kept": kept,
        "mask": mask,
        "stops": stops,
        "chat_template": checked_template(chat_template),
    }


def checked_template(template: object) -> ChatTemplate | None:
    """Return a chat template as it is; ValueError for anything but a text or texts by name."""
    texts = template.values() if isinstance(template, dict) else [template or ""]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("the chat template is neither a text nor texts by name")
    return template or None  # type: ignore[return-value]


ReadTexts = Callable[[], Iterable[str]]  # gives the documents of the training text whenever it is called


class Recipe(NamedTuple):
    """A registered tokenizer: how to make it, and what its function's settings must fulfil."""

    make: Callable[[ReadTexts, TokenizerSpec], Tokenizer]
    check: Callable[[TokenizerSpec], None] | None  # raises ValueError for settings that it cannot do


recipes: dict[str, Recipe] = {}


def registered(
    make: Callable[[ReadTexts, TokenizerSpec], Tokenizer] | None = None,
    *,
    check: Callable[[TokenizerSpec], None] | None = None,
) -> Any:
    """Make the decorated function's name a value of `tokenizer_source_name`.

    The function gets the training text and the spec, and returns a Tokenizer:

        @registered
        def words(texts: ReadTexts, spec: TokenizerSpec) -> Tokenizer:
            return word_tokenizer({word for text in texts() for word in text.split()})

    `check` raises ValueError for a spec that the function cannot do: `@registered(check=...)`.
    """

    def register(make: Callable[[ReadTexts, TokenizerSpec], Tokenizer]) -> Any:
        recipes[make.__name__] = Recipe(make, check)
        return make

    return register(make) if make else register


def check_spec(spec: TokenizerSpec) -> None:
    """ValueError if there can be no such tokenizer."""
    recipe = recipes.get(spec.source)
    if recipe is None:
        pretrained_tokenizer(spec.source)
    elif recipe.check is not None:
        recipe.check(spec)


def make_tokenizer(spec: TokenizerSpec, texts: ReadTexts) -> Tokenizer:
    """Return the tokenizer that `spec` asks for, in which texts have an end; `texts` gives the training text."""
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
    """Return a text that changes with the tokenizer of `spec` as far as it does not hang on the training text."""
    if spec.source not in recipes:
        return pretrained_tokenizer(spec.source).identity
    return function_digest(recipes[spec.source].make)


@registered
def char(texts: ReadTexts, spec: TokenizerSpec) -> Tokenizer:
    """A token for each character of the training text."""
    characters: set[str] = set()
    for text in texts():
        characters.update(text)
    return char_tokenizer(characters)


def check_room_for_bytes(spec: TokenizerSpec) -> None:
    """ValueError for a vocabulary that has no room for all bytes."""
    if spec.vocab_size < (least := len(OWN_SPECIALS) + 256):
        raise ValueError(
            f"tokenizer_vocab_size={spec.vocab_size} must be at least {least} with tokenizer_source_name={spec.source!r}: "
            "256 bytes and the special tokens"
        )


@registered(check=check_room_for_bytes)
def custom(texts: ReadTexts, spec: TokenizerSpec) -> Tokenizer:
    """Byte-level BPE of `tokenizer_vocab_size` tokens."""
    return bpe_tokenizer(texts(), spec.vocab_size)


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
    """Byte-level BPE trained on `texts`, so that every text has ids. Ctrl-C interrupts the training.

    Words are those of GPT-2, but at most MAX_WORD characters long: unbroken text such as DNA is cut.
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
    """Run `work` in a thread, since Ctrl-C cannot interrupt native code. Log `message` if it takes longer.

    An exception of `work` is raised here. After Ctrl-C the thread goes on until it is done or the process ends.
    """
    raised: list[BaseException] = []

    def target() -> None:
        try:
            work()
        except BaseException as error:  # a panic of the Rust library is no Exception
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
    """Return whether a word's first token has the space before it, as in GPT-2."""
    first = rust.pre_tokenizer
    parts: Any = first if isinstance(first, pre_tokenizers.Sequence) else [first]
    return any(isinstance(part, pre_tokenizers.ByteLevel) for part in parts)


def with_unknown_token(tokenizer_json: str) -> str:
    """Return tokenizer.json with an unknown token if its model fails at words that it does not know."""
    content = json.loads(tokenizer_json)
    model = content["model"]
    if model["type"] in ("WordLevel", "WordPiece") and model["unk_token"] not in model["vocab"]:
        model["unk_token"] = OWN_SPECIALS[3]
        model["vocab"].setdefault(OWN_SPECIALS[3], 1 + max(model["vocab"].values(), default=-1))
    return json.dumps(content)


def pretrained_tokenizer(name: str, revision: str | None = None) -> Tokenizer:
    """Return the tokenizer of a pretrained model: from a folder or the local cache, else from the hub.

    `name` may be "repository@revision"; a revision is a branch, tag or commit. The ids are those of tokenizer.json
    itself: for some classes transformers replaces parts of it. Only where there is no such file does transformers make
    the tokenizer. ValueError in one sentence if there is none.
    """
    if revision is None:
        name, revision = name_and_revision(name)
    folder = local_snapshot(name, revision, PRETRAINED_FILES)
    # Of a repository some files may have been downloaded for other purposes, but not those that name special tokens.
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
    """Return the tokenizer in a model's folder; `stamps` tell whether its files are what they were."""
    texts = {name: read_text(folder / name) for name, *_ in stamps}
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


def named_ids(rust: RustTokenizer, files: Mapping[str, dict[str, Any]]) -> dict[str, int]:
    """Return the ids of the special tokens that a model's files name, such as {"eos_token": 2}.

    As in transformers, tokenizer_config.json comes first, then special_tokens_map.json, then the tokenizer's class. If
    none of them names any, the ids in config.json count that tokenizer.json marks as special.
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
    """Return the special tokens that a tokenizer class of transformers has where no file names them."""
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
    """Return the special ids by our names: BERT's [CLS] and [SEP] are bos and eos, and a lone bos is eos, too."""

    def first(*found: int | None) -> int | None:
        return next((i for i in found if i is not None), None)

    bos = first(ids.get("bos_token"), ids.get("cls_token"))
    eos = first(ids.get("eos_token"), ids.get("sep_token"), bos)
    pad = first(ids.get("pad_token"), eos)
    return Specials(pad, bos, eos, unk=first(unknown_id(rust), ids.get("unk_token")))


def unknown_id(rust: RustTokenizer) -> int | None:
    """Return the id that the model itself gives to what it does not know."""
    if isinstance(rust.model, models.Unigram):
        return json.loads(rust.to_str())["model"]["unk_id"]
    text = rust.model.unk_token
    return None if text is None else rust.token_to_id(text)


def stops_of(files: Mapping[str, dict[str, Any]], rust: RustTokenizer) -> list[int]:
    """Return the ids that end what the model generates, by config.json and generation_config.json."""
    given = (files.get(name, {}).get("eos_token_id") for name in ("config.json", "generation_config.json"))
    return [i for ids in given for i in as_list(ids) if rust.id_to_token(i) is not None]


def as_list(ids: object) -> list[int]:
    """Return the ids that a config gives, which are none, one or a list."""
    return [i for i in (ids if isinstance(ids, list) else [ids]) if type(i) is int and 0 <= i < 2**32]


def chat_template(texts: Mapping[str, str], files: Mapping[str, dict[str, Any]]) -> ChatTemplate | None:
    """Return the chat template of a model's folder: that of a file of its own, or that of tokenizer_config.json."""
    template = texts.get("chat_template.jinja") or files.get("tokenizer_config.json", {}).get("chat_template")
    if isinstance(template, list):  # several, each with a name
        template = {one["name"]: one["template"] for one in template}
    return checked_template(template)


def auto_tokenizer(name: str, revision: str | None, online: bool, setting: str) -> Any:
    """Return the tokenizer that transformers makes where there is no tokenizer.json."""
    from transformers import AutoTokenizer

    load = functools.partial(AutoTokenizer.from_pretrained, name, revision=revision or "main")
    try:
        return load(local_files_only=True)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
    close = difflib.get_close_matches(name, recipes, n=1)
    hint = (f"did you mean {close[0]!r}? " if close else "") + f"There are: {', '.join(sorted(recipes))}"
    if Path(name).is_dir():
        raise ValueError(f"{setting} is a folder without a tokenizer: {reason}")
    if not online:
        raise ValueError(
            f"{setting} is not on this machine and the hub cannot be reached: {hint}, a folder that holds a tokenizer, "
            "or a name on the hub, with a network"
        )
    try:
        return load()
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{setting} is neither registered nor a tokenizer of the hub: {reason}; {hint}"
        ) from None


def from_transformers(pretrained: Any) -> Tokenizer:
    """Return ours around a fast tokenizer of the transformers library.

    If it was loaded from a tokenizer.json and is as transformers made it, the ids are those of the file.
    """
    if not pretrained.is_fast:
        raise ValueError(f"tokenizer_source_name={pretrained.name_or_path!r} has no fast version")
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


def original_of(pretrained: Any) -> RustTokenizer | None:
    """Return what tokenizer.json holds if `pretrained` was loaded from it, and nobody has changed it since."""
    name = pretrained.name_or_path  # empty if it was made from a vocabulary
    folder = local_snapshot(*name_and_revision(name), PRETRAINED_FILES) if name else None
    if folder is None:
        return None
    try:
        rust = RustTokenizer.from_str(read_text(folder / "tokenizer.json"))
        loaded = type(pretrained).from_pretrained(str(folder), local_files_only=True)
    except Exception:  # the folder is no more what it was
        return None
    same = without_padding(loaded.backend_tokenizer) == without_padding(pretrained.backend_tokenizer)
    return rust if same else None


def without_padding(rust: RustTokenizer) -> dict[str, Any]:
    """Return what a tokenizer makes ids by: all but padding and truncation."""
    return json.loads(rust.to_str()) | {"padding": None, "truncation": None}
