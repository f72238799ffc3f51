"""Error rates of the coordinate check: how often it fails a correct muP model, and how often it misses a bug.

Draw random settings (heads, depth, text, widths, learning rate, architecture). Check each as a correct model and with
one planted bug. Print a line for each check, and the number of each verdict:

    python -m benchmarks.coordinate_check [number of settings, 50] [first setting, 0]
"""

import random
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import matplotlib as mpl
from torch import nn

import model.mup.parametrization as parametrization
from data.data_params import DataParams
from explore.scaling.coordinates import coord_check
from explore.scaling.report import ScalingReport
from model.lm import LM
from model.model_params import ModelParams
from train.data import make_data
from train.optimizers import make_optimizer
from train.train_params import TrainParams

BUGS = ("standard", "hidden lr", "readout factor", "root of the head")


def setting(number: int) -> dict[str, Any]:
    """Return random settings for a correct muP model; `number` is the seed."""
    rng = random.Random(number)
    n_heads, grows = rng.choice([1, 2, 4, 8]), rng.random() < 0.5
    smallest = rng.choice([32, 64])
    widths = [smallest * 2**i for i in range(rng.choice([2, 3, 3, 4]))]
    model = ModelParams(
        dim=smallest,
        n_heads=n_heads,
        n_layers=rng.choice([1, 2, 3]),
        max_seq_len=rng.choice([16, 32, 64]),
        activation=rng.choice(["relu", "gelu", "silu"]),
        norm=rng.choice(["layernorm", "rmsnorm"]),
        positions=rng.choice(["learned", "rotary", "none"]) if smallest // n_heads % 2 == 0 else "learned",
        bias=rng.random() < 0.5,
        gated=rng.random() < 0.3,
        init=rng.choice(["small", "unit"]),
        tied_embeddings=rng.random() < 0.3,
        parametrization="mup",
        mup_base_dim=rng.choice([smallest, smallest, 2 * smallest]),
        mup_base_heads=n_heads,
    )
    if grows:
        model = replace(model, mup_base_heads=n_heads * model.mup_base_dim // smallest)
    return {
        "model": model,
        "grows": grows,
        "widths": widths,
        "text": rng.choice(["pydoc", "sotu"]),
        "lr": 2.0 ** -rng.choice([6, 7, 8, 9]),
        "batch_size": rng.choice([4, 8, 16]),
    }


def make(chosen: dict[str, Any], tokenizer: Any, bug: str | None, width: int) -> nn.Module:
    """Return a model of this width with the settings `chosen` and, if it is a bug of the model, with `bug`."""
    params: ModelParams = chosen["model"]
    n_heads = params.n_heads * width // params.dim if chosen["grows"] else params.n_heads
    if bug == "standard":
        params = replace(params, parametrization="standard", mup_base_dim=0, mup_base_heads=0)
    lm = LM(replace(params, dim=width, n_heads=n_heads), tokenizer)
    if bug == "readout factor":
        lm.unembed.mult = 1.0
    if bug == "root of the head":
        for layer in lm.decoder.layers:
            layer.mixer.temperature = 1.0
    return lm


@contextmanager
def planted(bug: str | None) -> Iterator[None]:
    """Give hidden matrices the base learning rate inside the `with` block, if `bug` is "hidden lr"."""
    right = parametrization.lr_factor
    if bug == "hidden lr":
        parametrization.lr_factor = lambda role, rule: 1.0
    try:
        yield
    finally:
        parametrization.lr_factor = right


def checked(number: int, bug: str | None = None) -> ScalingReport:
    """Run the coordinate check on setting `number`, with `bug` planted if given."""
    chosen = setting(number)
    model = chosen["model"]
    data = make_data(DataParams(dataset_name=chosen["text"]), model, Path(gettempdir()) / "whatif-benchmark")
    models = {width: partial(make, chosen, data.tokenizer, bug, width) for width in chosen["widths"]}
    optimizer = partial(make_optimizer, params=TrainParams(lr=chosen["lr"], weight_decay=0.0))
    with planted(bug):
        return coord_check(models, data.train_dataloader(chosen["batch_size"]), optimizer)


def is_seen(bug: str, chosen: dict[str, Any]) -> bool:
    """Return whether a bug has an effect: "root of the head" matters only if heads get wider with the model."""
    return bug != "root of the head" or not chosen["grows"]


def main(n: int = 50, first: int = 0) -> None:
    """Check `n` settings from number `first` on, and print the verdicts and their counts."""
    mpl.use("Agg")
    counts: Counter[str] = Counter()
    for number in range(first, first + n):
        chosen = setting(number)
        bug = BUGS[number % len(BUGS)]
        for kind in (None, bug):
            if kind is None or is_seen(kind, chosen):
                verdict = checked(number, kind).verdict
                told = "cannot tell" if "cannot tell" in verdict else verdict.partition(":")[0]
                counts[f"{kind or 'correct'}: {told}"] += 1
                print(
                    f"{number} {kind or 'correct'} {chosen['widths']}: {verdict}",
                    flush=True,
                )
    print(*(f"{name} {count}" for name, count in sorted(counts.items())), sep="\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
