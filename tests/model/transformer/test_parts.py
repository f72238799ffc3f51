"""Optional parts of the block compute what their papers say, and nothing where they are neutral.

Softcaps, sinks and gates are also part of the attention that tests/model/transformer/test_knobs.py computes by hand.
"""

import math
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import GptOssConfig, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.t5.modeling_t5 import T5Attention

from model.context import Cache, Context
from model.hf.configs import config_settings
from model.hf.weights import as_hf
from model.lm import LM
from model.perplexity import NOT_SCORED
from model.problems import model_problems
from model.shapes import size_of, state_size_of
from model.transformer.convolution import Canon
from model.transformer.embeddings import t5_ranges
from tests.model.tiny import CharTokenizer, batch_of, default_dtype, random_ids, tiny_lm, tiny_params
from train.launch.match import params_without_embeddings
from train.train_params import TrainParams

IDS = random_ids(2, 9)


def test_later_values_are_mixed_with_those_of_the_first_layer():
    lm = tiny_lm(n_layers=3, n_kv_heads=1, value_residual=True)
    with torch.no_grad(), lm.record("resid_pre", "v") as seen:
        lm(IDS)
    own = [
        layer.mixer.qkv(layer.norm1.before(seen[f"layers.{i}.resid_pre"]))[..., -8:]
        for i, layer in enumerate(lm.decoder.layers)
    ]
    assert torch.equal(seen["layers.0.v"][:, 0], own[0])
    assert lm.decoder.layers[0].mixer.value_residual.lambdas is None
    for i in (1, 2):
        a, b = lm.decoder.layers[i].mixer.value_residual.lambdas
        assert_close(seen[f"layers.{i}.v"][:, 0], a * own[i] + b * own[0])


def test_values_have_an_embedding_of_the_token_in_the_layers_that_ask_for_one():
    lm = tiny_lm(n_layers=3, n_heads=4, n_kv_heads=2, value_embeddings=(False, True))
    with torch.no_grad(), lm.record("resid_pre", "v") as seen:
        lm(IDS)
    tables = [name for name, _ in lm.named_parameters() if "value_embedding" in name]
    assert tables == ["decoder.layers.1.mixer.value_embedding.table.weight"]
    layer = lm.decoder.layers[1]
    own = layer.mixer.qkv(layer.norm1.before(seen["layers.1.resid_pre"]))[..., -8:]
    expected = own + lm.get_parameter(tables[0])[IDS]
    assert_close(seen["layers.1.v"], torch.stack(expected.split(4, dim=-1), dim=1))


def test_tables_of_values_do_not_count_as_parameters_of_layers():
    plain, with_tables = tiny_params(), tiny_params(value_embeddings=(True, False))
    assert params_without_embeddings(plain, 30) == params_without_embeddings(with_tables, 30)
    assert size_of(with_tables, 30).n_params == size_of(plain, 30).n_params + 30 * 16


CANONS = {  # the place of each letter, and its channels in the model below
    "a": {"canon_a": 16},
    "b": {"mixer.canon_b": 32},
    "c": {"canon_c": 16},
    "d": {"canon_d": 20, "canon_d2": 20},
}


@pytest.mark.parametrize("letters", ["a", "bc", "dcba"])
def test_a_canon_layer_is_a_causal_convolution_beside_its_input(letters):
    lm = tiny_lm(canon=letters, gated=True, dim_ff=20, n_kv_heads=1, n_layers=1)
    found = {
        name.removeprefix("decoder.layers.0."): m for name, m in lm.named_modules() if isinstance(m, Canon)
    }
    assert {name: m.weight_WC.shape[1] for name, m in found.items()} == {
        name: n for letter in letters for name, n in CANONS[letter].items()
    }
    for canon in found.values():
        C = canon.weight_WC.shape[1]
        conv = nn.Conv1d(C, C, 4, groups=C, padding=3, bias=False, dtype=torch.float64)
        conv.weight.data = canon.weight_WC.data.T[:, None]
        x_BTC = torch.randn(2, 9, C, dtype=torch.float64)
        expected = x_BTC + conv(x_BTC.mT)[..., :9].mT
        assert_close(canon(x_BTC, Context(IDS)), expected)
    cache = Cache(16)
    assert_close(torch.stack([lm(IDS[:, :t], cache=cache)[:, -1] for t in range(1, 10)], dim=1), lm(IDS))
    kept = sum(x[0].numel() for x in cache.kept.values())
    assert state_size_of(lm) == kept == 2 * 8 * 16 + 3 * sum(m.weight_WC.shape[1] for m in found.values())


def test_padding_would_enter_canon_layers_and_mixers_have_no_place_b():
    mask, lm = torch.tensor([[False] + [True] * 8]).expand(2, 9), tiny_lm(canon=(None, "c"))
    assert_close(lm(IDS, mask=mask.flip(1))[:, :8], lm(IDS[:, :8]))
    with pytest.raises(ValueError, match=r"padding at the left .* state of layers.1.canon_c"):
        lm(IDS, mask=mask)
    with pytest.raises(ValueError, match="layer 1: canon='ab' does not work with layer_architecture='gla'"):
        tiny_lm(canon=("b", "ab"), layer_architecture=("custom-transformer", "gla"))
    assert tiny_lm(canon="acd", layer_architecture="gla")(IDS).isfinite().all()


def test_the_stream_is_mixed_with_the_embeddings_before_each_layer():
    lm = tiny_lm(n_layers=3, stream_lambdas=True)
    with torch.no_grad(), lm.record("embed", "resid_pre", "resid_post") as seen:
        lm(IDS)
    before = seen["embed"]
    for i in range(3):
        a, b = lm.decoder.mix.of_stream[i], lm.decoder.mix.of_embeddings[i]
        assert_close(seen[f"layers.{i}.resid_pre"], a * before + b * seen["embed"])
        before = seen[f"layers.{i}.resid_post"]


def test_completep_divides_what_lambdas_change_by_the_depth():
    lm = tiny_lm(n_layers=6, stream_lambdas=True, parametrization="completep", mup_base_layers=2)
    with torch.no_grad(), lm.record("embed", "layers.1.*") as seen:
        lm(IDS)
        before = lm(IDS, get_embeddings=True)["embeddings"][:, 0]
    a, b = lm.decoder.mix.of_stream[1], lm.decoder.mix.of_embeddings[1]
    assert_close(seen["layers.1.resid_pre"], before + ((a - 1) * before + b * seen["embed"]) / 3)


def test_logits_are_capped():
    capped, plain = tiny_lm(logit_softcap=0.5), tiny_lm()
    z, z_capped = plain(IDS), capped(IDS)
    assert z.abs().max() > 0.5 > z_capped.abs().max()
    assert_close(z_capped, 0.5 * torch.tanh(z / 0.5))


def test_z_loss_is_the_mean_squared_log_partition_of_scored_tokens():
    lm, scored = tiny_lm(), torch.ones_like(IDS, dtype=torch.bool)
    scored[0, 4:] = False
    batch = batch_of(IDS, scored)
    plain, _ = lm.get_losses(batch, TrainParams())
    losses, _ = lm.get_losses(batch, TrainParams(z_loss=0.1))
    assert list(plain) == ["main"]
    assert torch.equal(losses["main"], plain["main"])
    _, y, z = lm.get_batch_xyz(batch)
    logs = [z_V.exp().sum().log() for z_V in z[y != NOT_SCORED]]
    assert len(logs) == 3 + 8
    assert losses["z"].item() == pytest.approx(0.1 * sum(log.item() ** 2 for log in logs) / len(logs))


@pytest.mark.parametrize("parametrization", ["standard", "mup"])
def test_layers_begin_as_the_identity_where_their_outputs_begin_at_zero(parametrization):
    lm = LM(tiny_params(out_zero_init=True, parametrization=parametrization), CharTokenizer())
    with torch.no_grad(), lm.record("embed", "*.resid_post") as seen:
        lm(IDS)
    assert all(torch.equal(x, seen["embed"]) for x in seen.values())
    assert all(
        p.any() for name, p in lm.named_parameters() if name.endswith(("qkv.weight", "linear1.weight"))
    )


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_norms_without_gain_have_no_parameters(norm):
    lm = tiny_lm(norm=norm, norm_gain=False, qk_norm=True, embedding_norm=True)
    norms = [module for module in lm.modules() if isinstance(module, nn.LayerNorm | nn.RMSNorm)]
    assert len(norms) == 2 + 2 * 4
    assert not [p for module in norms for p in module.parameters()]
    with lm.record("embed") as seen:
        lm(IDS)
    assert_close(
        seen["embed"].square().mean(dim=-1), torch.ones(2, 9, dtype=torch.float64), rtol=1e-3, atol=0
    )


NEUTRAL = {  # a part, and values of its parameters with which it changes nothing
    "attn_softcap": (1e8, {}),
    "logit_softcap": (1e8, {}),
    "attn_sink": ("learned", {"sink_H": -1e3}),
    "attn_gate": ("head", {"gate.map.weight": 0.0, "gate.map.bias": 1e3}),
    "stream_lambdas": (True, {"of_stream": 1.0, "of_embeddings": 0.0}),
    "value_residual": (True, {"lambdas": (1.0, 0.0)}),
    "value_embeddings": (True, {"value_embedding.table.weight": 0.0}),
    "canon": ("abcd", {"weight_WC": 0.0}),
}


@pytest.mark.parametrize("name", NEUTRAL)
def test_a_part_with_neutral_weights_changes_nothing_and_with_others_it_does(name):
    value, weights = NEUTRAL[name]
    plain = tiny_lm(n_layers=3)
    with default_dtype(torch.float64):
        lm = LM(replace(plain.model_params, **{name: value}), CharTokenizer()).eval()
    unknown = lm.load_state_dict(plain.state_dict(), strict=False)
    assert not unknown.unexpected_keys
    assert bool(unknown.missing_keys) == bool(weights)
    if weights:
        assert not torch.allclose(lm(IDS), plain(IDS)) or name == "stream_lambdas"  # which begins as neutral
    for own, parameter in lm.named_parameters():
        for end, neutral in weights.items():
            if own.endswith(end):
                parameter.data.copy_(torch.as_tensor(neutral))
    assert_close(lm(IDS), plain(IDS))


def test_trained_factors_begin_as_in_their_sources():
    lm = LM(tiny_params(value_residual=True, stream_lambdas=True, attn_sink="learned"), CharTokenizer())
    mixer, mix = lm.decoder.layers[1].mixer, lm.decoder.mix
    assert mixer.value_residual.lambdas.tolist() == [0.5, 0.5]
    assert mixer.sink.sink_H.tolist() == [0, 0]
    assert (mix.of_stream.tolist(), mix.of_embeddings.tolist()) == ([1, 1], [0, 0])


def test_a_head_with_a_sink_may_attend_to_nothing():
    lm = tiny_lm(attn_sink="learned")
    for layer in lm.decoder.layers:
        layer.mixer.sink.sink_H.data.fill_(1e3)
    assert not lm("abc", get_attns=True)["attns"].any()
    off_by_one = tiny_lm(attn_sink="off-by-one")("abc", get_attns=True)["attns"]
    assert ((off_by_one.sum(dim=-1) > 0) & (off_by_one.sum(dim=-1) < 1)).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attention": "fused", "attn_softcap": 5.0}, "cannot apply attn_softcap=5.0"),
        ({"attention": "fused", "attn_sink": "learned"}, "cannot apply attn_sink='learned'"),
        (
            {"positions": ("rotary", "hard-alibi"), "n_heads": (2, 1)},
            "layer 1: positions='hard-alibi' limits",
        ),
        ({"init": "gpt2", "parametrization": "mup"}, "init='gpt2' is for parametrization='standard'"),
        ({"init": "xavier", "residual": "deepnet", "norm_position": "post"}, "both choose initial weights"),
        ({"canon": "abx"}, "canon='abx' must be some of the letters abcd"),
        ({"canon": ("ab", "aa")}, "layer 1: canon='aa' must be some of the letters"),
        ({"canon": "a", "causal": False, "objective": "masked"}, "mixes in earlier positions only"),
        ({"canon": ("ad", "ac"), "dim_ff": (16, 0)}, "layer 1: canon='ac' has a place in the feed-forward"),
        ({"norm_gain": False, "norm_position": "sandwich"}, "the norms after blocks begin with a small gain"),
        (
            {"out_zero_init": True, "residual": "deepnet", "norm_position": "post"},
            "both choose initial weights",
        ),
        (
            {"attention": ("explicit", "fused"), "attn_sink": ("learned", "off-by-one")},
            "layer 1: attention='fused'",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_params(**fields)


def test_values_of_different_shapes_are_not_mixed():
    with pytest.raises(ValueError, match="needs the same n_kv_heads and head_dim in each"):
        tiny_lm(value_residual=True, n_kv_heads=(1, 2))


def test_relu_squared_is_exported_to_transformers():
    hf_model = as_hf(tiny_lm(activation="relu2", dtype=torch.float32))
    assert hf_model.config.activation_function == "relu2"
    x = torch.linspace(-2, 2, 9)
    layer = tiny_lm(activation="relu2").decoder.layers[0]
    assert_close(layer.activation(x), torch.tensor([v * v if v > 0 else 0.0 for v in x.tolist()]))


def test_a_clamped_gate_is_that_of_gpt_oss():
    theirs = GptOssExperts(GptOssConfig(hidden_size=4, intermediate_size=2, num_local_experts=2))
    values = torch.linspace(-12, 12, 25, dtype=torch.float64)
    gate, up = torch.meshgrid(values, values, indexing="ij")
    layer = tiny_lm(gated="clamped", activation="quick_gelu").decoder.layers[0]
    expected = theirs._apply_gate(torch.stack([gate, up], dim=-1).flatten(1))
    assert_close(layer.activation(gate) * layer.factor(up), expected)


@pytest.mark.parametrize("causal", [True, False])
def test_ranges_of_distances_are_those_of_t5(causal):
    offsets_TS = torch.arange(-300, 301)[None]
    theirs = T5Attention._relative_position_bucket(offsets_TS, bidirectional=not causal)
    assert torch.equal(t5_ranges(offsets_TS, causal), theirs)


def test_hard_alibi_limits_the_first_half_of_the_heads():
    attns = tiny_lm(positions="hard-alibi", n_heads=4)(IDS, get_attns=True)["attns"][0, 1]
    for h, seen in enumerate((2, 3, 9, 9)):
        assert torch.equal(attns[h] > 0, torch.ones(9, 9, dtype=torch.bool).tril().triu(1 - seen))


def kept(parts: torch.Tensor, *sizes: int) -> torch.Tensor:
    """The products of the rows of each of several matrices side by side, less what they are if rows are orthonormal."""
    return torch.stack([part @ part.T - torch.eye(len(part)) for part in parts.split(sizes)])


@pytest.mark.parametrize("kind", ["custom-transformer", "torch-transformer"])
def test_named_initial_weights_are_those_of_their_name(kind):
    def weights(init: str) -> list[torch.Tensor]:
        torch.manual_seed(0)
        lm = LM(tiny_params(dim=64, init=init, layer_architecture=kind), CharTokenizer(1000))
        p = dict(lm.named_parameters())
        names = ("mixer.qkv.weight", "mixer.out.weight", "linear1.weight", "linear2.weight")
        if kind == "torch-transformer":
            names = (
                "self_attn.in_proj_weight",
                "self_attn.out_proj.weight",
                "linear1.weight",
                "linear2.weight",
            )
            names = tuple(f"block.{name}" for name in names)
        return [p["embed.tokens.weight"], *(p[f"decoder.layers.1.{name}"] for name in names)]

    def stds(init: str, *expected: float) -> None:
        assert [w.std().item() for w in weights(init)[-len(expected) :]] == pytest.approx(expected, rel=0.04)

    stds("gpt2", 0.02, 0.02, 0.01, 0.02, 0.01)  # into the stream: / sqrt(2 * 2 layers)
    stds("trunc_normal", *[0.02 * 0.8796] * 5)  # of normal numbers up to two deviations
    assert max(w.abs().max() for w in weights("trunc_normal")) <= 0.04
    stds("xavier", *(math.sqrt(2 / n) for n in (128, 128, 320, 320)))
    assert max(w.abs().max() for w in weights("xavier")[1:]) <= math.sqrt(6 / 128)
    stds("kaiming", *(math.sqrt(2 / n) for n in (64, 64, 64, 256)))
    _, qkv, out, up, down = weights("orthogonal")
    for x in (kept(qkv, 64, 64, 64), kept(out, 64), kept(up.T, 64), kept(down, 64)):
        assert_close(x, torch.zeros_like(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["custom-transformer", "mla", "gla", "deltanet", "mlstm", "based"])
def test_named_weights_of_queries_keys_and_values_are_drawn_one_by_one(kind):
    lm = LM(tiny_params(layer_architecture=kind, init="orthogonal"), CharTokenizer())
    for [weight] in lm.decoder.layers[0].mixer.query_key_value():
        values = torch.linalg.svdvals(weight)
        assert_close(values, torch.ones_like(values))


SCALINGS = {  # ours, and the settings of transformers
    "linear, factor=4": {"rope_type": "linear", "factor": 4.0},
    # transformers raises the base by the length of the input: here twice that of training, so by 2 * 2 - (2 - 1)
    "ntk, factor=3": {"rope_type": "dynamic", "factor": 2.0},
    "llama3, factor=8, original=64": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn,factor=4,original=256": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 256,
    },
    "yarn, factor=16, original=64, fast=8, slow=2": {
        "rope_type": "yarn",
        "factor": 16.0,
        "beta_fast": 8.0,
        "beta_slow": 2.0,
        "original_max_position_embeddings": 64,
    },
    "yarn_unrounded, factor=32, original=256": {
        "rope_type": "yarn",
        "factor": 32.0,
        "truncate": False,
        "original_max_position_embeddings": 256,
    },
}


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("head_dim", [16, 64])
def test_rotary_scalings_are_those_of_transformers(scaling, head_dim):
    settings = SCALINGS[scaling] | {"rope_theta": 500.0}
    config = LlamaConfig(
        hidden_size=head_dim, num_attention_heads=1, max_position_embeddings=1024, rope_parameters=settings
    )
    of_length = {"seq_len": 2048} if settings["rope_type"] == "dynamic" else {}
    expected_A, size = ROPE_INIT_FUNCTIONS[settings["rope_type"]](config, "cpu", **of_length)
    params = tiny_params(
        dim=head_dim, n_heads=1, positions="rotary", rotary_base=500.0, rotary_scaling=scaling
    )
    assert not list(model_problems(params))
    rotary = tiny_lm(**asdict(params)).decoder.layers[0].mixer.positions
    angles_TA = torch.arange(16.0)[:, None] * expected_A
    assert_close(rotary.cos_TA.float(), angles_TA.cos() * size, rtol=0, atol=1e-5)
    assert_close(rotary.sin_TA.float(), angles_TA.sin() * size, rtol=0, atol=1e-5)


def scaled_by_hand(
    f: float, i: int, d: int, kind: str, *, factor: float, original=0.0, fast=32, slow=1
) -> float:
    """Frequency i of d / 2, in the notation of the papers and, for llama3, of Meta's code."""
    if kind == "linear":
        return f / factor
    if kind == "ntk":
        return (500.0 * factor ** (d / (d - 2))) ** (-2 * i / d)
    if kind == "llama3":
        wavelength = 2 * math.pi / f
        if wavelength < original / 4:
            return f
        if wavelength > original:
            return f / factor
        smooth = (original / wavelength - 1) / 3
        return (1 - smooth) * f / factor + smooth * f
    low, high = (d * math.log(original / (n * 2 * math.pi)) / (2 * math.log(500.0)) for n in (fast, slow))
    if kind == "yarn":
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, d - 1)
    ramp = min(max((i - low) / (high - low), 0), 1)
    return f / factor * ramp + f * (1 - ramp)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_rotary_scalings_are_those_of_the_papers(scaling):
    kind, *settings = scaling.split(",")
    settings = {name.strip(): float(value) for name, _, value in (one.partition("=") for one in settings)}
    lm = tiny_lm(dim=64, n_heads=1, positions="rotary", rotary_base=500.0, rotary_scaling=scaling)
    rotary = lm.decoder.layers[0].mixer.positions
    frequencies = [scaled_by_hand(500.0 ** (-i / 32), i, 64, kind, **settings) for i in range(32)]
    angles_TA = torch.arange(16.0, dtype=torch.float64)[:, None] * torch.tensor(
        frequencies, dtype=torch.float64
    )
    size = 0.1 * math.log(settings["factor"]) + 1 if kind.startswith("yarn") else 1.0
    assert_close(rotary.cos_TA, angles_TA.cos() * size, rtol=0, atol=1e-12)
    assert_close(rotary.sin_TA, angles_TA.sin() * size, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ("yarn", "rotary_scaling='yarn': yarn needs factor, original, as in 'yarn, factor=4'"),
        ("llama4, factor=2", "'llama4' does not exist; did you mean 'llama3'?"),
        ("linear, factor=x", "factor must be a number, not 'x'"),
        ("linear, factr=2", "linear has no 'factr'; it has factor"),
        ("ntk, factor=-1", "factor must be greater than 0"),
        (
            "llama3, factor=2, original=9, low=4",
            "rotary_scaling='llama3, factor=2, original=9, low=4': high=4 must",
        ),
        ((None, "linear"), "layer 1: rotary_scaling='linear': linear needs factor"),
    ],
)
def test_rotary_scalings_that_cannot_be_used_are_refused(scaling, message):
    [problem] = model_problems(tiny_params(positions="rotary", rotary_scaling=scaling))
    assert message in problem


NOT_EXPORTED = {name: value for name, (value, _) in NEUTRAL.items()}
NOT_EXPORTED |= {"n_loops": 2, "share": "norms", "head_dim": 4, "residual": "layerscale"}
NOT_EXPORTED |= {"diff_attention": True, "n_predict": 2}


@pytest.mark.parametrize("name", NOT_EXPORTED)
def test_other_parts_are_not_exported(name):
    value = NOT_EXPORTED[name]
    with pytest.raises(ValueError, match=f"does not support {name}="):
        config_settings(tiny_params(**{name: value}))
