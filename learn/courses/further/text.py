"""Text to fine-tune on: sentences whose label depends on both the words and their order (who hunts whom)."""

import random
from typing import NamedTuple

import torch
from torch import Tensor

ANIMALS = ["mouse", "cat", "dog"]  # each hunts those before it
ADJECTIVES = ["old", "young", "small", "black", "white", "lazy"]
ADVERBS = ["today", "yesterday", "often", "again"]
VERBS = ["chased", "caught", "found"]
PAD, CLS, SEP = 0, 1, 2
WORDS = ["[PAD]", "[CLS]", "[SEP]", "the", "was", "by", *ANIMALS, *ADJECTIVES, *ADVERBS, *VERBS]
LONGEST = 12  # tokens of a sentence, [CLS] and [SEP] among them


class Labeled(NamedTuple):
    """Sentences as ids, padded to one length, each with a label: plausible or not."""

    ids: Tensor  # [N, T]
    mask: Tensor  # [N, T], 1 where there is a token, 0 where there is padding
    labels: Tensor  # [N], 1 where the larger animal hunts the smaller

    def part(self, rows: slice) -> "Labeled":
        return Labeled(self.ids[rows], self.mask[rows], self.labels[rows])


def sentence(rng: random.Random) -> tuple[tuple[str, ...], int]:
    """Draw a sentence and its label: "the old cat was chased by the dog", 1.

    Neither the words alone nor the order of the animals determine the label. It is 1 in half of all sentences.
    """
    first, second = rng.sample(ANIMALS, 2)
    passive = rng.random() < 0.5
    verb = rng.choice(VERBS)
    words = [*animal(rng, first), *(["was", verb, "by"] if passive else [verb]), *animal(rng, second)]
    if rng.random() < 0.5:
        words.insert(rng.choice([0, len(words)]), rng.choice(ADVERBS))
    hunter, prey = (second, first) if passive else (first, second)
    return tuple(words), int(ANIMALS.index(hunter) > ANIMALS.index(prey))


def animal(rng: random.Random, name: str) -> list[str]:
    adjective = [rng.choice(ADJECTIVES)] if rng.random() < 0.5 else []
    return ["the", *adjective, name]


def sentences(n: int, seed: int = 0) -> Labeled:
    """Return `n` sentences, all different."""
    rng = random.Random(seed)
    found: dict[tuple[str, ...], int] = {}
    while len(found) < n:
        words, label = sentence(rng)
        found[words] = label
    rows = [[CLS, *(WORDS.index(word) for word in words), SEP] for words in found]
    ids = torch.tensor([row + [PAD] * (LONGEST - len(row)) for row in rows])
    return Labeled(ids, (ids != PAD).long(), torch.tensor(list(found.values())))
