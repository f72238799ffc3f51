"""compile=True: the same run in one graph, with the code that the user edits, or uncompiled with a warning."""

import math
import shutil

import pytest
import torch
from torch import Tensor

from model.context import Context, Layer, layer_kinds
from model.lm import LM
from model.model_params import ModelParams
from tests.model.tiny import CharTokenizer, batch_of, random_ids, tiny_params
from tests.test_readme import EDITS, PRELUDE, apply_to_copy, forked, in_copy
from tests.train.test_trainer import equal, train, weights
from train import compiled
from train.compiled import CompiledForward, compilations_in_words, count_compilations

# The same graphs, but run by torch's own operations: compiling C++ would take a minute.
TRACED = {"backend": "aot_eager"}


@pytest.fixture(autouse=True)
def nothing_compiled_yet():
    compiled.forget_graphs()


@pytest.fixture
def traced(monkeypatch):
    monkeypatch.setattr(compiled, "COMPILE_OPTIONS", TRACED)


def losses(run) -> list[float]:
    return [stat.v for stat in run.stats.train_stats["stat/train_loss:main"]]


@pytest.mark.slow
@pytest.mark.ci
def test_a_compiled_run_is_the_same_in_one_graph(tmp_path, traced, notes):
    """Rows of several lengths, a last batch of fewer rows, dropout, accumulation and validations make no second graph."""
    options = {"batch_size": 7, "accumulate_grad_batches": 3, "dropout": 0.2, "epochs": 2, "val_every": 5}
    plain = train(tmp_path, **options)
    before = count_compilations()
    run = train(tmp_path, **options, compile=True)
    new = count_compilations() - before
    assert new["stats", "unique_graphs"] == 1
    assert not [name for kind, name in new if kind == "graph_break"]
    assert len([note for note in notes if "compiled" in note]) == 1
    torch.testing.assert_close(losses(run), losses(plain), rtol=1e-5, atol=1e-6)
    assert math.isclose(run.result["val_loss:main"], plain.result["val_loss:main"], rel_tol=1e-5)
    assert weights(run).keys() == weights(plain).keys(), "no name gets a prefix"
    assert run.model._compiled_call_impl is None


def compare(params: ModelParams) -> tuple[int, int]:
    """Compare losses and gradients with those of the uncompiled model. Return the numbers of graphs and of graph breaks."""
    torch.manual_seed(0)
    lm = LM(params, CharTokenizer(30)).train()
    torch._dynamo.reset()
    before, forward = count_compilations(), CompiledForward(lm)
    for B, T in ((9, 9), (3, 9), (4, 7), (1, 9), (5, 16)):
        batch, found = batch_of(random_ids(B, T + 1)), []
        batch["mask"][0, T:] = batch["target_mask"][0, T:] = False
        for called in (None, forward):
            lm._compiled_call_impl = called
            torch.manual_seed(0)
            of_batch, _ = lm.get_losses(batch, None)
            torch.as_tensor(sum(of_batch.values())).backward()
            gradients = {name: p.grad for name, p in lm.named_parameters() if p.grad is not None}
            found.append(({name: loss.detach() for name, loss in of_batch.items()}, gradients))
            lm.zero_grad()
        torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)
    new = count_compilations() - before
    return new["stats", "unique_graphs"], sum(kind == "graph_break" for kind, _ in new)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"objective": "masked", "causal": False},
        {"layer_architecture": ("gated-conv", "custom-transformer")},
        {"layer_architecture": "torch-transformer"},
        {"parametrization": "completep", "mup_base_layers": 1},
        {"lora_rank": 2},
        {"norm_position": "post", "residual": "admin"},
        {"positions": "rotary", "n_kv_heads": 1, "gated": True, "norm": "rmsnorm"},
        {"positions": "alibi", "attention": "fused"},
        {"separate_heads": True, "sliding_window": 3},
        {"n_experts": 4, "balance": "bias", "n_shared_experts": 1},
        {"n_experts": 4, "experts_per_token": 1, "gated": True},
    ],
    ids=str,
)
def test_architectures_are_one_graph(fields, traced):
    assert compare(tiny_params(**fields)) == (1, 0)


class Sharing(Layer):
    """A layer that uses all of the context: taps, values of an earlier layer, an added loss, and its number."""

    def __init__(self, model_params: ModelParams, dropout: float) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(model_params.dim, model_params.dim)

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        h_BTD = ctx.tap("h", self.linear(x_BTD))
        first_BTD = ctx.shared.setdefault("h", h_BTD)
        ctx.add_loss("size", h_BTD.square().mean(), weight=0.1)
        assert ctx.layer is not None
        return x_BTD + (h_BTD + first_BTD).tanh() * (ctx.layer + 1)


@pytest.mark.slow
@pytest.mark.ci
def test_everything_a_context_offers_stays_in_one_graph(traced, monkeypatch):
    monkeypatch.setitem(layer_kinds.entries, "sharing", Sharing)
    assert compare(tiny_params(n_layers=3, layer_architecture="sharing")) == (1, 0)


# Each edit, with a value of its field at which losses must differ from those of the plain code.
EDITED = {
    "1": "inject_relu=True",
    "2": "square_ff=True",
    "3": "attn_scalar=3.0",
    "4": None,
    "6": "corruption_frac=0.5",
}
LIVE = """
from train import compiled
compiled.COMPILE_OPTIONS = {traced}

def curve(*options):
    *_, stats, params = train("dim=32", "n_layers=2", "dropout=0.1", "batch_size=30", *options)
    return torch.tensor([stat.v for stat in stats["stat/train_loss:main"]])

edited = [{field!r}] if {field!r} else []
plain, live = curve(*edited), curve("compile=True", *edited)
assert len(plain) == 22 and torch.allclose(plain, live, rtol=1e-4), (plain, live)
if edited:
    assert not torch.allclose(live, curve("compile=True"), rtol=1e-4), "the edit has an effect"
assert compiled.graphs_so_far() > 0
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", EDITED)
def test_an_edit_is_live_in_a_compiled_run(number, tmp_path):
    copy = apply_to_copy(EDITS[number], tmp_path)
    code = PRELUDE + LIVE.format(field=EDITED[number], traced=TRACED)
    assert forked(lambda: in_copy(code, copy, tmp_path / "out")) == 0


@pytest.mark.slow
def test_batches_of_one_row_are_compiled_if_all_are(tmp_path, traced, notes):
    before = count_compilations()
    train(tmp_path, compile=True, batch_size=1, early_stop_nsamples=20)
    assert (count_compilations() - before)["stats", "unique_graphs"] == 1
    [note] = [note for note in notes if "compile" in note]
    assert note.startswith("compiled 1 graph")


def test_a_model_in_which_nothing_can_be_compiled_is_not_called_compiled(tmp_path, monkeypatch, notes):
    monkeypatch.setattr(compiled.torch, "compile", lambda forward, **_: forward)
    train(tmp_path, compile=True, early_stop_nsamples=16)
    [warning] = [note for note in notes if "compile" in note]
    assert warning.startswith(
        "compile=True: torch found nothing that it can compile; training runs uncompiled"
    )


@pytest.mark.slow
def test_a_model_that_keeps_changing_is_trained_uncompiled_with_a_warning(
    tmp_path, traced, notes, monkeypatch
):
    """As edit 5 does, which freezes other layers in each step."""

    def freeze_some(self, *_):
        for i, parameter in enumerate(self.model.decoder.layers.parameters()):
            parameter.requires_grad_(bool(self.global_step >> (i % 8) & 1))

    monkeypatch.setattr("train.trainer.LMTrainer.on_before_zero_grad", freeze_some)
    plain, run = (train(tmp_path, compile=on, early_stop_nsamples=160) for on in (False, True))
    torch.testing.assert_close(losses(run), losses(plain), rtol=1e-5, atol=1e-6)
    [warning] = [note for note in notes if "compile=True" in note]
    assert "the code changed in 6 steps and was compiled each time; training runs uncompiled" in warning
    assert len([note for note in notes if "compiled again in step" in note]) == 6


def test_a_failing_compiler_gives_the_uncompiled_run_and_one_warning(tmp_path, monkeypatch, notes):
    def fail(*_, **__):
        raise RuntimeError("CppCompileError: g++: no such file\nCommand: ...")

    monkeypatch.setattr(compiled.torch, "compile", fail)
    options = {"early_stop_nsamples": 24, "dropout": 0.2}
    plain, run = (train(tmp_path, compile=on, **options) for on in (False, True))
    assert equal(weights(plain), weights(run))
    [warning] = [note for note in notes if "compile" in note]
    assert warning == (
        "compile=True: CppCompileError: g++: no such file; training runs uncompiled: the results are the same, but steps take longer"
    )


def test_recurrent_layers_train_uncompiled_with_a_warning(tmp_path, notes):
    model = ModelParams(dim=16, n_layers=1, max_seq_len=24, layer_architecture="torch-gru")
    train(tmp_path, model=model, compile=True, early_stop_nsamples=16)
    [warning] = [note for note in notes if "compile" in note]
    assert warning.startswith(
        "compile=True: torch cannot compile recurrent modules such as nn.GRU; training runs"
    )


def test_only_training_steps_run_the_compiled_forward_pass(tmp_path, monkeypatch):
    """Validation and generation run the plain code, and so does what looks at activations."""
    calls = []

    def forward_of(lm, *_):
        def call(x, *args, **kwargs):
            calls.append((lm.training, torch.is_grad_enabled(), len(lm.taps)))
            return lm._call_impl(x, *args, **kwargs)

        return call

    monkeypatch.setattr("train.callbacks.compile_forward", forward_of)
    options = {"early_stop_nsamples": 40, "val_every": 2, "dropout": 0.2}
    plain, run = (train(tmp_path, compile=on, **options) for on in (False, True))
    assert calls == [(True, True, 0)] * 5
    assert equal(weights(plain), weights(run))
    assert run.model._compiled_call_impl is None


def test_compilations_are_told_in_one_phrase():
    def told(**counts) -> str:
        names = {"graphs": ("stats", "unique_graphs"), "missed": ("inductor", "fxgraph_cache_miss")}
        names |= {
            "fused": ("inductor", "fuse_attention"),
            "breaks": ("graph_break", "Dynamic slicing\nHint: none"),
        }
        return compilations_in_words(compiled.Counter({names[name]: n for name, n in counts.items()}))

    assert told(graphs=1, missed=2) == "compiled 1 graph"
    assert told(graphs=1) == "compiled 1 graph from the cache"
    assert told() == "the compiled code of an earlier run was found"
    assert told(graphs=2, missed=1, breaks=1) == (
        "compiled 2 graphs, because of code that torch cannot trace (Dynamic slicing),"
    )
    assert told(graphs=1, missed=1, fused=4) == (
        "compiled 1 graph, with torch's fused kernel for attention (4 times),"
    )


HAS_COMPILER = any(map(shutil.which, ("g++", "clang++")))


@pytest.mark.slow
@pytest.mark.skipif(not HAS_COMPILER, reason="torch.compile needs a C++ compiler")
def test_a_later_run_of_the_same_shape_finds_the_compiled_code(tmp_path, notes):
    options = {"early_stop_nsamples": 24, "compile": True}
    first = train(tmp_path, **options)
    train(tmp_path, lr=1e-3, random_seed=1, **options)
    compiled.latest_params.clear()  # as in a process of its own
    again = train(tmp_path, **options)
    assert equal(weights(again), weights(first))
    ways = [note.partition(" in ")[0] for note in notes if "compiled" in note]
    assert ways == [
        "compiled 1 graph",
        "the compiled code of an earlier run was found",
        "compiled 1 graph from the cache",
    ]
