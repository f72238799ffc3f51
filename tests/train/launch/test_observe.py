"""Fields that have an effect are found by running a run's parts once; every built-in field has one somewhere."""

import ast
import json
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from common.repository import REPOSITORY
from data.batch import mycollate
from data.corpora import corpora
from data.data_params import DataParams
from data.text_rows import Documents
from data.tokenizer import char_tokenizer
from model.context import Layer, layer_kinds
from model.lm import LM
from model.model_params import ModelParams
from model.observe import observed
from model.transformer.residual import profile_omegas, wants_profile
from tests.model.tiny import CharTokenizer, random_ids, tiny_params
from tests.train.little_run import CALL
from train.data import make_data
from train.grid.params import SECTIONS, Params
from train.grid.run import Run, RunSize
from train.launch.observe import (
    OBSERVED_FILES,
    names_read_by_members,
    names_read_elsewhere,
    names_read_in,
    unused_data_fields,
    unused_fields,
)
from train.launch.plan import announce, measure_data
from train.optimizers import freeze, make_optimizer
from train.schedules import Schedule
from train.train_params import LENGTHS, TrainParams

MUP = {"parametrization": "mup", "dim": 32}
POST = {"norm_position": "post", "residual": "admin"}
# A value of each field, and the other fields of a run that it changes.
MODEL = {
    "head_dim": (4, {}),
    "rotary_scaling": ("linear, factor=2", {"positions": "rotary"}),
    "norm_gain": (False, {}),
    "attn_softcap": (1.0, {}),
    "attn_sink": ("learned", {}),
    "attn_gate": ("head", {}),
    "n_predict": (2, {}),
    "predict_weight": (0.5, {"n_predict": 2}),
    "diff_attention": (True, {}),
    "value_residual": (True, {}),
    "value_embeddings": (True, {}),
    "canon": ("ac", {}),
    "n_loops": (2, {}),
    "share": ("norms", {}),
    "stream_lambdas": (True, {}),
    "logit_softcap": (1.0, {}),
    "n_experts": (4, {}),
    "experts_per_token": (1, {"n_experts": 4}),
    "n_shared_experts": (1, {"n_experts": 4}),
    "router_bias": (True, {"n_experts": 4}),
    "balance": (None, {"n_experts": 4}),
    "balance_rate": (0.5, {"n_experts": 4}),
    "out_zero_init": (True, {}),
    "layer_architecture": ("gated-conv", {}),
    "causal": (False, {"objective": "masked"}),
    "objective": ("masked", {}),
    "dim": (32, {}),
    "n_layers": (3, {}),
    "n_heads": (4, {}),
    "n_kv_heads": (1, {}),
    "dim_ff": (24, {}),
    "max_seq_len": (20, {}),
    "positions": ("rotary", {}),
    "rotary_base": (10.0, {"positions": "rotary"}),
    "rotary_frac": (0.5, {"positions": "rotary"}),
    "sliding_window": (2, {}),
    "norm": ("rmsnorm", {}),
    "norm_eps": (0.1, {}),
    "norm_position": ("sandwich", {}),
    "embedding_norm": (True, {}),
    "qk_norm": (True, {}),
    "parallel_blocks": (True, {}),
    "activation": ("relu", {}),
    "gated": (True, {}),
    "bias": (False, {}),
    "bias_qkv": (False, {}),
    "bias_out": (False, {}),
    "bias_ff": (False, {}),
    "bias_norm": (False, {}),
    "tied_embeddings": (False, {}),
    "readout_transform": (True, {}),
    "readout_bias": (True, {}),
    "separate_heads": (True, {}),
    "init": ("unit", {}),
    "residual": ("admin", {"norm_position": "post"}),
    "residual_change": ("O(1)", POST),
    "residual_trainable": (True, POST),
    "residual_profile": (True, POST),
    "parametrization": ("mup", {"mup_base_dim": 8}),
    "mup_base_dim": (16, MUP),
    "mup_base_heads": (1, MUP | {"mup_base_dim": 16}),
    "mup_base_layers": (1, {"parametrization": "completep"}),
    "mup_input_mult": (2.0, {}),
    "mup_output_mult": (2.0, {}),
    "mup_attn_mult": (2.0, {}),
    "readout_zero_init": (True, {"tied_embeddings": False}),
    "query_zero_init": (True, {}),
    "kv_rank": (3, {"layer_architecture": "mla"}),
    "q_rank": (3, {"layer_architecture": "mla"}),
    "conv_width": (2, {"layer_architecture": "gated-conv"}),
    "state_dim": (3, {"layer_architecture": "gla"}),
    "negative_eigenvalues": (True, {"layer_architecture": "deltanet"}),
    "fixed_decay": (True, {"layer_architecture": "gla"}),
    "lora_rank": (2, {}),
}
TRAIN = {
    "z_loss": (0.1, {}),
    "lr": (2e-3, {}),
    "min_lr": (1e-4, {}),
    "lr_schedule": ("linear", {}),
    "warmup_steps": (2, {}),
    "lr_cycle_steps": (4, {"lr_schedule": "cyclic"}),
    "lr_plateau_patience": (1, {"lr_schedule": "plateau"}),
    "wsd_decay_frac": (0.5, {"lr_schedule": "wsd"}),
    "lr_decay_shape": ("1-sqrt", {"lr_schedule": "wsd"}),
    "optimizer": ("sgd", {}),
    "cautious_decay": (True, {}),
    "weight_decay": (0.5, {}),
    "weight_decay_scaling": ("none", MUP | {"mup_base_dim": 16}),
    "betas": ((0.5, 0.6), {}),
    "adam_eps": (1e-2, {}),
    "scale_adam_eps": (False, MUP | {"mup_base_dim": 16, "adam_eps": 1e-2}),
    "momentum": (0.5, {"optimizer": "sgd"}),
    "muon_lr": ("original", {"optimizer": "muon"}),
    "lr_embedding_mult": (2.0, {}),
    "lr_hidden_mult": (2.0, {}),
    "lr_readout_mult": (2.0, {"tied_embeddings": False}),
    "lr_vector_mult": (2.0, {}),
    "param_groups": ({"embed.*": {"lr": 2.0}}, {}),
    "mask_frac": (0.5, {"objective": "masked"}),
    "freeze": (("*norm*",), {}),
}
CUSTOM = {"tokenizer_source_name": "custom"}
COPY = {"dataset_name": "copy"}
TABLE = {"dataset_name": "table"}
DATA = {
    "dataset_name": ("copy", {}),
    "task_args": ({"n_letters": 3}, COPY),
    "n_samples": (150, COPY),
    "val_pct": (30.0, {}),
    "test_pct": (30.0, {}),
    "text_column": ("title", TABLE),
    "subset": ("more", TABLE),
    "train_split": ("extra", TABLE),
    "debug_crop": (10, {}),
    "packed": (False, {}),
    "data_seed": (1, {}),
    "tokenizer_source_name": ("custom", {}),
    "tokenizer_vocab_size": (300, CUSTOM),
    "tokenizer_crop": (True, {"tokenizer_source_name": "pretrained"}),
}
# What they change is no weight, loss or schedule of a single step: other tests hold them.
OF_THE_WHOLE_RUN = {
    *("eval_sets", "eval_every"),  # only add measurements
    *(
        "attention",
        "from_pretrained",
        "from_saved",
    ),  # the same numbers by another kernel; weights from elsewhere
    *(
        "gradient_clip_val",
        "beta2_half_life",  # depends on the rows of the data
        "ema_decay",  # what is validated and saved
        "batch_size",
        "accumulate_grad_batches",
        *LENGTHS,
        "val_every",
        "stop_when",
        "patience_metric",
    ),
    *(
        "patience",
        "dropout",
        "random_seed",
        "hyperparams_log_freq",
        "checkpoint_every",
        "precision",
        "recompute",  # the same numbers in less memory
        "compile",
    ),
    *("threads", "cpus", "gpus", "devices", "strategy", "data_workers"),
}


def run_of(values: dict) -> tuple[ModelParams, TrainParams]:
    of_train = {field.name for field in fields(TrainParams)}
    train = {name: value for name, value in values.items() if name in of_train}
    return tiny_params(**{k: v for k, v in values.items() if k not in train}), TrainParams(**train)


def fingerprint(model: ModelParams, train: TrainParams) -> list:
    """Weights before and after two steps, losses, and the schedule with validations that stand still."""
    torch.manual_seed(0)
    lm = LM(model, CharTokenizer())
    freeze(lm, train)
    if wants_profile(lm, lm.model_params):
        profile_omegas(lm, [random_ids(4, 9)])
    found: list = [(name, w.clone()) for name, w in lm.state_dict().items()]
    optimizer = make_optimizer(lm, train)
    for seed in (1, 2):
        losses, _ = lm.get_losses(mycollate(random_ids(4, 10, seed=seed).tolist()), train)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        found.append(("loss", losses["main"].detach()))
    found += [(name, w.clone()) for name, w in lm.state_dict().items()]
    schedule = Schedule(train, 12)
    for step in range(12):
        found.append(("share", torch.tensor(schedule(step) * train.lr)))
        schedule.add_val_loss(1.0)
    return found


def same(a: list, b: list) -> bool:
    return len(a) == len(b) and all(n == m and torch.equal(x, y) for (n, x), (m, y) in zip(a, b, strict=True))


def test_every_field_is_observed_in_a_test():
    names = {field.name for cls in SECTIONS.values() for field in fields(cls)}
    assert names == MODEL.keys() | TRAIN.keys() | DATA.keys() | OF_THE_WHOLE_RUN


@pytest.mark.parametrize("name", [*MODEL, *TRAIN])
def test_fields_with_an_effect_are_not_reported_as_unused_and_change_the_run(name):
    value, others = (MODEL | TRAIN)[name]
    model, train = run_of(others | {name: value})
    assert not [field for field in unused_fields(model, train) if field.setting.startswith(f"{name}=")]
    assert not same(fingerprint(*run_of(others)), fingerprint(model, train))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"momentum": 0.5}, "momentum=0.5 has no effect: nothing in this run uses it; optimizer='sgd' or optimizer='muon' would"),
        ({"wsd_decay_frac": 0.1}, "wsd_decay_frac=0.1 has no effect: nothing in this run uses it; lr_schedule='wsd' would"),
        ({"lr_plateau_patience": 3}, "lr_plateau_patience=3 has no effect: nothing in this run uses it; lr_schedule='plateau' would"),
        ({"betas": (0.5, 0.6), "optimizer": "sgd"}, "betas=(0.5, 0.6) has no effect: nothing in this run uses it; optimizer='adamw' or optimizer='muon' or optimizer='lion' would"),
        ({"conv_width": 2}, "conv_width=2 has no effect: no layer uses it with layer_architecture='custom-transformer'; layer_architecture='gated-conv' or layer_architecture='mamba2' or layer_architecture='deltanet' or layer_architecture='gated-delta' would"),
        ({"experts_per_token": 1}, "experts_per_token=1 has no effect: nothing in this run uses it"),
        ({"rotary_base": 5.0}, "rotary_base=5.0 has no effect: nothing in this run uses it; positions='rotary' would"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value),
)  # fmt: skip
def test_fields_without_effect_are_reported_with_what_would_use_them(values, said):
    assert [str(field) for field in unused_fields(*run_of(values))] == [said]


@pytest.mark.parametrize("name", ["lr_cycle_steps", "muon_lr", "min_lr", "scale_adam_eps"])
def test_fields_of_train_params_without_effect(name):
    value = {"lr_cycle_steps": 5, "muon_lr": "original", "min_lr": 1e-4, "scale_adam_eps": False}[name]
    others = {"lr_schedule": "constant"}
    [field] = unused_fields(*run_of(others | {name: value}))
    assert field.setting == f"{name}={value!r}"
    assert same(fingerprint(*run_of(others)), fingerprint(*run_of(others | {name: value})))


def test_an_axis_without_effect_is_reported_at_its_default_too():
    [field] = unused_fields(*run_of({}), also={"momentum"})
    assert field.setting == "momentum=0.9"


@pytest.mark.slow
@pytest.mark.ci
def test_the_use_of_fields_in_a_large_model_is_observed_without_its_weights():
    model = ModelParams(dim=8192, n_heads=64, n_layers=100, rotary_base=5.0)
    assert [field.setting for field in unused_fields(model, TrainParams(momentum=0.5))] == [
        "rotary_base=5.0",
        "momentum=0.5",
    ]


def test_copying_and_comparing_params_does_not_count_as_use():
    reads: set[str] = set()
    params = observed(tiny_params(), reads)
    assert params.at(0, 1) == params.at(1, 1)
    assert repr(replace(params, dim=32)) == repr(replace(tiny_params(), dim=32))
    assert hash(params) == hash(tiny_params())
    assert reads == set()
    assert params.positions == "learned"
    assert params.head_width == 8
    assert reads == {"positions", "dim", "n_heads", "head_dim"}


def test_a_layer_of_the_users_is_observed_like_ours(monkeypatch):
    class Mine(Layer):
        def __init__(self, model_params, dropout):
            super().__init__()
            self.width = model_params.conv_width
            self.map = nn.Linear(model_params.dim, model_params.dim)

        def forward(self, x_BTD, ctx):
            return x_BTD + self.map(x_BTD) * self.width

    monkeypatch.setitem(layer_kinds, "mine", Mine)
    model = tiny_params(layer_architecture="mine", conv_width=2, qk_norm=True)
    assert [field.setting for field in unused_fields(model, TrainParams())] == ["n_heads=2", "qk_norm=True"]


def names(source: str) -> set[str]:
    return set(names_read_in(ast.parse(source)))


def test_fields_that_the_trainer_reads_count_as_used_in_any_file():
    assert {"patience", "val_every", "hyperparams_log_freq"} <= names_read_elsewhere()
    assert not {"momentum", "wsd_decay_frac", "muon_lr"} & names_read_elsewhere()
    assert all(list((REPOSITORY / "train").rglob(name)) for name in OBSERVED_FILES)


def test_only_attributes_of_params_count_as_use():
    source = "def f(self, p, q: 'TrainParams'): return p.one, q.two, self.train_params.three"
    assert names(source) == {"one", "two", "three"}
    assert names("def f(t):\n    getattr(t, 'one')") == {"one"}
    assert not names(
        "import wandb\ndef f(self, t: Trainer):\n    return wandb.a, self.b, t.c, t.model.d()"
    ) - {"model"}
    assert names("def f(t: Trainer):\n    t = t.params\n    return t.one") == {"params", "one"}
    assert not names("def f(t):\n    t.one = t.two()")


def test_fields_that_a_property_of_params_reads_count_as_used():
    class Mine:
        def __post_init__(self):
            self.check()

        def check(self):
            return self.one

        @property
        def area(self):
            return self.two

    assert set(names_read_by_members(Mine)) == {"two"}


@pytest.fixture
def texts(monkeypatch, tmp_path_factory):
    """A small text in place of the default one, a table, and a tokenizer that stands for a pretrained one."""
    root = tmp_path_factory.mktemp("texts")
    monkeypatch.setenv("WHATIF_DATA", str(root))
    for name in ("train-00000-of-00001", "extra-00000-of-00001", "more/train"):
        file = root / "table" / f"{name}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"text": f"{name} {i}", "title": f"title {i}"} for i in range(20)]
        file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    monkeypatch.setitem(corpora, "sotu", lambda: [f"{i} letters of text {i * i}" for i in range(20)])
    pretrained = char_tokenizer("".join(map(chr, range(32, 127))))
    monkeypatch.setattr("data.tokenizer.pretrained_tokenizer", lambda name: pretrained)


def data_run(values: dict) -> Params:
    of_model = {field.name for field in fields(ModelParams)}
    model = {name: value for name, value in values.items() if name in of_model}
    data = {"n_samples": 100} | {k: v for k, v in values.items() if k not in model}
    return Params(DataParams(**data), TrainParams(), ModelParams(max_seq_len=64, **model))


def said(params: Params, cache: Path, also: tuple = ()) -> list[str]:
    _, facts = measure_data(params.data, params.model, cache, None)
    return [str(field) for field in unused_data_fields(params, facts.reads, also)]


def batches(params: Params, cache: Path) -> list:
    data = make_data(params.data, params.model, cache)
    found = [*data.train_dataloader(8), *data.val_dataloader(8)]
    return [data.tokenizer.n_tokens, *(batch["x_indices"].tolist() for batch in found)]


@pytest.mark.parametrize("name", DATA)
def test_a_data_field_with_an_effect_is_not_reported_as_unused(name, texts, tmp_path):
    value, others = DATA[name]
    params = data_run(others | {name: value})
    for _ in range(2):  # made, and found in the cache
        assert not [line for line in said(params, tmp_path, (name,)) if line.startswith(f"{name}=")]
    assert batches(data_run(others), tmp_path) != batches(params, tmp_path)


@pytest.mark.parametrize(
    ("values", "lines"),
    [
        ({"n_samples": 50}, ["n_samples=50 has no effect: dataset_name='sotu' does not use it"]),
        ({"tokenizer_vocab_size": 300}, ["tokenizer_vocab_size=300 has no effect: tokenizer_source_name='char' does not use it"]),
        ({"tokenizer_crop": True}, ["tokenizer_crop=True has no effect: tokenizer_source_name='char' does not use it"]),
        (CUSTOM | {"tokenizer_crop": True}, ["tokenizer_crop=True has no effect: tokenizer_source_name='custom' does not use it"]),
        (COPY | {"tokenizer_crop": True}, ["tokenizer_crop=True has no effect: dataset_name='copy' does not use it"]),
        (COPY | {"tokenizer_vocab_size": 300}, ["tokenizer_vocab_size=300 has no effect: dataset_name='copy' does not use it"]),
        (COPY | CUSTOM, ["tokenizer_source_name='custom' has no effect: dataset_name='copy' does not use it"]),
        (COPY | {"packed": True, "data_seed": 3, "debug_crop": 60, "task_args": {"n_letters": 3}}, []),
    ],
    ids=str,
)  # fmt: skip
def test_a_data_field_without_effect_is_reported(values, lines, texts, tmp_path):
    params = data_run({"n_samples": 100_000} | values)
    if params.data.dataset_name == "copy":
        params = params.changed(n_samples=100)
    assert said(params, tmp_path) == lines
    assert said(params, tmp_path) == lines, "the cache forgot what was read"


def test_splits_that_the_corpus_brings_make_no_use_of_shares_and_seed(texts, tmp_path, monkeypatch):
    def own(*_):
        return {split: iter(["one text", "another"]) for split in ("train", "val", "test")}

    monkeypatch.setattr("data.text_rows.read_corpus", own)
    params = data_run({"n_samples": 100_000, "val_pct": 1.0, "test_pct": 1.0, "data_seed": 3})
    for _ in range(2):
        assert [line.split("=")[0] for line in said(params, tmp_path)] == ["val_pct", "test_pct", "data_seed"]


def test_a_field_that_the_user_adds_to_the_data_is_observed(texts, tmp_path, monkeypatch):
    @dataclass(frozen=True)
    class Mine(DataParams):
        lowercase: bool = False
        forgotten: int = 0

    init = Documents.__init__

    def lowered(self, data_params, folder):
        init(self, data_params, folder)
        self.lowercase = data_params.lowercase

    monkeypatch.setattr(Documents, "__init__", lowered)
    params = data_run({})._replace(data=Mine(lowercase=True, forgotten=1))
    for _ in range(2):
        assert said(params, tmp_path) == ["forgotten=1 has no effect: dataset_name='sotu' does not use it"]


def planned(params: Params, cache, config: str = "test", places: Iterable[str] | None = None) -> Run:
    """A run that sets all fields, or those of `places`."""
    _, facts = measure_data(params.data, params.model, cache, None)
    places = dict.fromkeys(params.flat() if places is None else places)
    return Run(params, places, config, size=RunSize(n_steps=10**9), data=facts)


def test_data_that_was_built_without_observation_gets_no_report(texts, tmp_path):
    params = data_run({"n_samples": 50})
    make_data(params.data, params.model, tmp_path).rows("train")
    assert said(params, tmp_path) == []


def test_a_grid_says_which_runs_have_a_data_field_without_effect(texts, tmp_path, notes):
    first = data_run({"n_samples": 100_000})
    runs = [first, first.changed(data_seed=1), first.changed(data_seed=1, n_samples=50)]
    announce([planned(params, tmp_path) for params in runs], CALL)
    assert notes == [
        "runs 1, 2: n_samples=100000 has no effect: dataset_name='sotu' does not use it",
        "run 3: n_samples=50 has no effect: dataset_name='sotu' does not use it",
    ]


@pytest.mark.parametrize(
    ("fields", "options", "expected"),
    [
        ({"checkpoint_every": 5}, {}, ["run 1: checkpoint_every=5 has no effect without --save"]),
        (
            {"patience_metric": "val_accuracy"},
            {},
            ["run 1: patience_metric='val_accuracy' has no effect without patience"],
        ),
        ({"patience_metric": "val_accuracy", "patience": 2}, {}, []),
        ({"checkpoint_every": 5}, {"save": True}, []),
        (
            {"cpus": 2.0, "gpus": 0.5},
            {"save": True},
            [
                "run 1: cpus=2.0 has no effect without --ray or --slurm",
                "run 1: gpus=0.5 has no effect without --ray or --slurm",
            ],
        ),
        ({"cpus": 2.0, "gpus": 0.5}, {"cluster": "local"}, []),
        ({}, {}, []),
    ],
)
def test_a_field_that_needs_an_option_is_reported_without_it(
    texts, tmp_path, notes, fields, options, expected
):
    params = Params(DataParams(dataset_name="copy"), TrainParams(**fields), ModelParams())
    announce([planned(params, tmp_path)], CALL._replace(**options))
    assert notes == expected


def test_fields_that_only_other_variants_set_need_no_note(texts, tmp_path, notes):
    copy = data_run(COPY | {"n_samples": 200}).changed(n_heads=2)
    mixture = {"n_experts": 4, "experts_per_token": 1}
    dense = planned(copy.changed(dim_ff=96), tmp_path, places=["dim_ff"])
    experts = planned(copy.changed(**mixture), tmp_path, places=mixture)
    announce([dense, experts], CALL)
    assert notes == []
    ignored = planned(copy.changed(experts_per_token=1), tmp_path, places=["experts_per_token"])
    at_default = planned(copy, tmp_path, places=["experts_per_token"])
    announce([dense, experts, ignored, at_default], CALL)
    assert notes == [
        f"run {number}: experts_per_token={n} has no effect: nothing in this run uses it"
        for number, n in ((3, 1), (4, 2))
    ]


def test_fields_in_which_two_configs_differ_are_axes_of_neither(texts, tmp_path, notes):
    text, task = data_run({}).changed(n_samples=DataParams.n_samples), data_run(COPY)
    configs = (("a", text), ("b", task), ("b", task.changed(random_seed=1)))
    runs = [planned(params, tmp_path, config) for config, params in configs]
    announce(runs, CALL)
    assert notes == []
    announce([replace(run, config="a") for run in runs], CALL)
    assert notes[0] == "run 1: n_samples=100000 has no effect: dataset_name='sotu' does not use it"
