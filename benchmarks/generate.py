"""Measure the speed of generation: our model and HuggingFace's GPT-2 with the same weights, both with a cache.

    python -m benchmarks.generate [--rounds 5]

The two take turns within one process. Each figure is a median over rounds; a ratio compares two consecutive turns.
Prompts have 8 tokens, 100 new ones are generated, in float32, with 6 layers of width 384.
Target: at least 1.5 times HuggingFace's tokens per second.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import gpt2

PROMPT, NEW, MAX_SEQ_LEN = 8, 100, 256
VOCABULARIES, BATCHES = (65, 50_257), (1, 16)
TARGET = 1.5


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


def measure(n_tokens: int, batch_size: int, sampled: bool, rounds: int) -> None:
    torch.manual_seed(0)
    hf = gpt2_like(n_tokens)
    lm = gpt2.from_hf(hf)
    ids_BT = torch.randint(n_tokens, (batch_size, PROMPT))
    prompts, temperature = ids_BT.tolist(), 1.0 if sampled else 0.0

    def ours() -> list[list[int]]:
        return lm.sample(prompts, PROMPT + NEW, as_str=False, temperature=temperature)

    def theirs() -> list[list[int]]:
        mask = torch.ones_like(ids_BT)
        return hf.generate(
            ids_BT, attention_mask=mask, max_new_tokens=NEW, do_sample=sampled, top_k=0, use_cache=True
        ).tolist()

    assert len(ours()[0]) == len(theirs()[0]) == PROMPT + NEW  # also warms both up
    times = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
    our_rate, their_rate = (
        batch_size * NEW / statistics.median(column) for column in zip(*times, strict=True)
    )
    ratio = statistics.median(their / our for our, their in times)
    print(
        f"{n_tokens:6,} tokens, batch {batch_size:2}, {'sampled' if sampled else 'greedy '}: ours {our_rate:6.0f}, "
        f"HuggingFace {their_rate:6.0f} tokens a second, ratio {ratio:.2f} (at least {TARGET})",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print(f"{torch.get_num_threads()} threads")
    for n_tokens in VOCABULARIES:
        for batch_size in BATCHES:
            for sampled in (False, True):
                measure(n_tokens, batch_size, sampled, arguments.rounds)
