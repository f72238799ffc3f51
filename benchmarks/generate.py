"""Measure the speed of generation: our model and HuggingFace's GPT-2 with the same weights, both with a cache.

    python -m benchmarks.generate [--rounds 5] [--vocabulary 65]

The two take turns within one process. Each figure is a median over rounds; a ratio compares two consecutive turns.
Prompts have 8 tokens, 100 new ones are generated, in float32, with 6 layers of width 384.
Targets: at least 1.5 times HuggingFace's tokens per second with one row, and twice with 16 rows.

The last line of each vocabulary is the time to the first token of a prompt of 1,000 tokens, which must not be longer
than HuggingFace's. The model has generated before: the first call also tests whether the model may use a cache.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import gpt2

PROMPT, NEW, LONG_PROMPT, MAX_SEQ_LEN = 8, 100, 1_000, 1_024
VOCABULARIES = (65, 50_257)
MIN_RATIOS = {1: 1.5, 16: 2.0}  # by batch size


def gpt2_like(n_tokens: int) -> GPT2LMHeadModel:
    """Return a random GPT-2 without an end token, so that every row generates all its tokens."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=n_tokens,
            n_positions=MAX_SEQ_LEN,
            n_embd=384,
            n_layer=6,
            n_head=6,
            bos_token_id=0,
            eos_token_id=None,
            pad_token_id=0,
        )
    ).eval()


def seconds(generate: Callable[[], object]) -> float:
    start = time.perf_counter()
    generate()
    return time.perf_counter() - start


class GenerationTimes(NamedTuple):
    """Seconds of every round."""

    ours: list[float]
    theirs: list[float]

    def ratios(self) -> str:
        """Return HuggingFace's time divided by ours: the median, the smallest and the largest."""
        ratios = [their / our for our, their in zip(self.ours, self.theirs, strict=True)]
        return f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def generation_times(
    n_tokens: int, batch_size: int, sampled: bool, rounds: int, n_prompt: int = PROMPT, n_new: int = NEW
) -> GenerationTimes:
    torch.manual_seed(0)
    hf = gpt2_like(n_tokens)
    lm = gpt2.from_hf(hf)
    ids_BT = torch.randint(n_tokens, (batch_size, n_prompt))
    prompts, temperature = ids_BT.tolist(), 1.0 if sampled else 0.0

    def ours() -> list[list[int]]:
        return lm.sample(prompts, n_prompt + n_new, as_str=False, temperature=temperature)

    def theirs() -> list[list[int]]:
        mask = torch.ones_like(ids_BT)
        return hf.generate(
            ids_BT, attention_mask=mask, max_new_tokens=n_new, do_sample=sampled, top_k=0, use_cache=True
        ).tolist()

    assert len(ours()[0]) == len(theirs()[0]) == n_prompt + n_new  # also warms both up
    turns = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
    return GenerationTimes(*map(list, zip(*turns, strict=True)))


def measure_rate(n_tokens: int, batch_size: int, sampled: bool, rounds: int) -> None:
    measured = generation_times(n_tokens, batch_size, sampled, rounds)
    our_rate, their_rate = (batch_size * NEW / statistics.median(column) for column in measured)
    print(
        f"{n_tokens:6,} tokens, batch {batch_size:2}, {'sampled' if sampled else 'greedy '}: ours {our_rate:6.0f}, "
        f"HuggingFace {their_rate:6.0f} tokens a second, {measured.ratios()}, at least {MIN_RATIOS[batch_size]}",
        flush=True,
    )


def measure_first_token(n_tokens: int, rounds: int) -> None:
    measured = generation_times(n_tokens, 1, False, rounds, LONG_PROMPT, n_new=1)
    our_ms, their_ms = (1_000 * statistics.median(column) for column in measured)
    print(
        f"{n_tokens:6,} tokens, first token of a prompt of {LONG_PROMPT:,}: ours after {our_ms:.0f} ms, "
        f"HuggingFace after {their_ms:.0f} ms, {measured.ratios()}, at least 1",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vocabulary", type=int, nargs="+", default=VOCABULARIES)
    arguments = parser.parse_args()
    print(f"{torch.get_num_threads()} threads")
    for n_tokens in arguments.vocabulary:
        for batch_size in MIN_RATIOS:
            for sampled in (False, True):
                measure_rate(n_tokens, batch_size, sampled, arguments.rounds)
        measure_first_token(n_tokens, arguments.rounds)
