"""Our own BPE: as GPT-2 cuts words, bounded on unbroken text, interruptible."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

import data.tokenizer as tokenizer_module
from data.corpora import read_corpus
from data.tokenizer import MAX_WORD, OWN_SPECIALS, Tokenizer, bpe_tokenizer, keeps_spaces

REPOSITORY = Path(__file__).resolve().parents[2]


def plain_bpe(texts, vocab_size):
    """Byte-level BPE whose words are of any length, as the tokenizers library makes it."""
    rust = RustTokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    rust.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=OWN_SPECIALS,
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    return rust


def test_the_word_length_limit_does_not_change_the_tokenizer_of_ordinary_texts():
    texts = [
        *read_corpus("sotu", 3)["train"],
        *read_corpus("pydoc", 5)["train"],
        "it's  a\n\n\t b?! 12 \n" * 9,
    ]
    ours, plain = bpe_tokenizer(texts, 1000), plain_bpe(texts, 1000)
    assert json.loads(ours.rust.to_str())["model"] == json.loads(plain.to_str())["model"]
    assert ours.encode_batch(texts) == [encoded.ids for encoded in plain.encode_batch(texts)]


UNBROKEN = {
    "DNA": "ACGT",
    "CJK": [chr(0x4E00 + i) for i in range(300)],
    "digits": "0123456789",
    "marks": "!?.-",
    "spaces": " \t\n",
}


@pytest.mark.parametrize("kind", UNBROKEN)
def test_unbroken_text_is_trained_on_in_linear_time(kind, tmp_path):
    text = "".join(random.Random(0).choices(UNBROKEN[kind], k=100_000))
    start = time.process_time()
    tokenizer = bpe_tokenizer([text], 1000)
    assert time.process_time() - start < 4  # with words of any length over 9 seconds for DNA
    tokenizer.save(tmp_path)
    ids = tokenizer(text)
    assert tokenizer.decode(ids) == text
    assert Tokenizer.load(tmp_path)(text) == ids
    assert len(ids) < len(text.encode()) / 2


@pytest.mark.parametrize("letter", ["x", "7", "?", " "])
def test_words_over_the_maximum_length_are_cut(letter):
    tokenizer = bpe_tokenizer(["a text"], 260)
    words = tokenizer.rust.pre_tokenizer.pre_tokenize_str(letter * (2 * MAX_WORD + 3))
    assert [len(word) for word, _ in words] == [MAX_WORD, MAX_WORD, 3]


def test_the_space_of_a_gap_is_in_the_next_token_as_before():
    assert keeps_spaces(bpe_tokenizer(["a text"], 260).rust)
    assert keeps_spaces(plain_bpe(["a text"], 260))
    assert not keeps_spaces(RustTokenizer(models.BPE()))
    tokenizer = bpe_tokenizer(["we the people of"] * 9, 280).with_mask()
    first, last = tokenizer.encode_batch(["we the", " of"])
    assert tokenizer.with_gaps("we the <mask> of")[1:-1] == [*first, tokenizer.mask, *last]


def test_a_fault_in_the_text_arrives():
    def texts():
        yield "a text"
        raise ValueError("row 2 is no text")

    with pytest.raises(ValueError, match="row 2 is no text"):
        bpe_tokenizer(texts(), 260)


def test_only_a_long_training_is_announced(notes, monkeypatch):
    bpe_tokenizer(["a text"], 260)
    assert not notes
    monkeypatch.setattr(tokenizer_module, "DEFAULT_PATIENCE", 0.01)

    def slowly():
        time.sleep(0.1)
        yield "a text"

    bpe_tokenizer(slowly(), 260)
    (line,) = notes
    assert line.startswith("training a BPE tokenizer of 260 tokens")


TRAINS_FOR_LONG = """
import logging, random, sys
import data.tokenizer as tokenizer

logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
tokenizer.DEFAULT_PATIENCE = 1.0
text = "".join(random.Random(0).choices("ACGT", k=1_000_000))
try:
    tokenizer.bpe_tokenizer([text] + [text[i:] for i in range(1, 20)], 100_000)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.slow
@pytest.mark.ci
def test_ctrl_c_interrupts_the_training():
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", TRAINS_FOR_LONG], stdout=subprocess.PIPE, cwd=REPOSITORY, text=True
    )
    try:
        assert process.stdout is not None
        assert "training a BPE tokenizer" in process.stdout.readline()
        time.sleep(1)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert time.monotonic() - start < 3
    finally:
        process.kill()
        process.stdout.close()
