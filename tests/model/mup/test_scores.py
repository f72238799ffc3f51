"""scale_scores: the scores of every attention module are scaled, exactly and once, or the module is named."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from explore.scaling.coordinates import aligned_probe, fit_slope
from model.mup.base_shapes import make_base_shapes
from model.mup.parametrization import make_readouts, param_groups, roles
from model.mup.scores import aligned_score, scalable_attentions, scale_scores
from tests.model.tiny import perturb, tiny_lm

IDS = torch.randint(3, 60, (2, 12), generator=torch.Generator().manual_seed(0))
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 48,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
    "cls_token_id": 0,
    "sep_token_id": 2,
}
NEO = {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "num_heads": 4, "window_size": 4}
MPT = {"d_model": 32, "n_heads": 4, "n_layers": 2}
DEBERTA = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
MODELS = {  # model_type and settings
    "gpt2": ("gpt2", {}),
    "gpt_neo": ("gpt_neo", NEO),
    "gpt_neox": ("gpt_neox", {}),
    "bloom": ("bloom", {}),
    "falcon": ("falcon", {}),
    "falcon by head": ("falcon", {"multi_query": False}),
    "falcon alibi": ("falcon", {"alibi": True}),
    "falcon in groups": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "mpt": ("mpt", MPT),
    "openai-gpt": ("openai-gpt", {}),
    "llama": ("llama", {"num_key_value_heads": 2}),
    "bert": ("bert", {}),
    "modernbert": ("modernbert", {}),
    "mpnet": ("mpnet", {}),
    "deberta-v2": ("deberta-v2", {}),
    "deberta-v2 relative": ("deberta-v2", DEBERTA),
    "deberta-v2 shared": ("deberta-v2", DEBERTA | {"share_att_key": True}),
}
MASKED = ("bert", "modernbert", "mpnet", "deberta-v2")
EVERY_MODEL = pytest.mark.parametrize("kind", MODELS)


def make(kind: str) -> nn.Module:
    model_type, settings = MODELS[kind]
    config = AutoConfig.for_model(model_type, **SIZES | settings)
    torch.manual_seed(0)
    auto = AutoModelForMaskedLM if model_type in MASKED else AutoModelForCausalLM
    model = auto.from_config(config, attn_implementation="eager").eval()
    perturb(model, 0.1)
    return model


@torch.no_grad()
def first_pattern(model: nn.Module) -> torch.Tensor:
    return model(IDS, output_attentions=True).attentions[0].double()


def log_odds(pattern: torch.Tensor) -> torch.Tensor:
    """Return the log-odds of each visible key against the first, [B, H, T, S]. They are differences of scores."""
    return pattern.log() - pattern.log()[..., :1]


WITH_BIAS = (
    "bloom",
    "mpt",
    "mpnet",
    "falcon alibi",
)  # scores have parts that are no products of queries and keys


@EVERY_MODEL
def test_scores_are_multiplied_exactly(kind):
    model = make(kind)
    before = first_pattern(model)
    scale_scores(model, 0.25)
    after = first_pattern(model)
    visible = (before > 0) & (before[..., :1] > 0)
    assert (after > 0).eq(before > 0).all()
    if kind in WITH_BIAS:
        quarter, half = log_odds(after), log_odds(halved(kind))
        expected = half + (half - log_odds(before)) * 0.5  # a line in the factor: 1, 1/2 and 1/4
        assert_close(quarter[visible], expected[visible], rtol=0, atol=2e-4)
        assert not torch.allclose(quarter[visible], log_odds(before)[visible], atol=1e-2)
    else:
        assert_close(log_odds(after)[visible], log_odds(before)[visible] / 4, rtol=0, atol=2e-4)
    assert log_odds(before)[visible].abs().max() > 0.03  # 150 times the tolerance


def halved(kind: str) -> torch.Tensor:
    model = make(kind)
    scale_scores(model, 0.5)
    return first_pattern(model)


@EVERY_MODEL
def test_every_layer_is_scaled_once_and_copies_keep_it(kind):
    model = make(kind)
    names = [name for name, _ in model.named_parameters()]
    with torch.no_grad():
        plain = model(IDS).logits
        scale_scores(model, 0.25)
        scaled = model(IDS).logits
        assert not torch.allclose(plain, scaled, atol=1e-4)
        assert torch.equal(copy.deepcopy(model)(IDS).logits, scaled)
        fresh = make(kind)
        scale_scores(fresh, 0.25)
        fresh.load_state_dict(model.state_dict())
        assert torch.equal(fresh(IDS).logits, scaled)
    assert len(scalable_attentions(model)) == 2
    assert [name for name, _ in model.named_parameters()] == names
    with pytest.raises(ValueError, match="already scaled the attention of this model"):
        scale_scores(model, 0.25)
    for method in (model.save_pretrained, model.resize_token_embeddings):
        with pytest.raises(ValueError, match="would lose the factors that muP gives"):
            method("folder")


def test_readouts_are_not_lost_either():
    def bare(width: int) -> nn.Module:
        settings = SIZES | {"hidden_size": width, "intermediate_size": 2 * width}
        return AutoModelForMaskedLM.from_config(AutoConfig.for_model("bert", **settings))

    model, base = bare(64), make_base_shapes(bare(32), bare(64))
    model.resize_token_embeddings(70)  # before the recipe it works
    make_readouts(model, base)
    with pytest.raises(ValueError, match="resize_token_embeddings would lose"):
        model.resize_token_embeddings(80)
    same = bare(32)
    make_readouts(same, make_base_shapes(bare(32), bare(64)))
    same.resize_token_embeddings(80)  # at the base there is nothing to lose


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kdim", [None, 20])
def test_attention_of_torch(bias, kdim):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(32, 4, bias=bias, kdim=kdim, vdim=kdim, batch_first=True).eval()
    perturb(attention, 0.5)
    x, memory = torch.randn(2, 5, 32), torch.randn(2, 7, kdim or 32)
    names, state = [name for name, _ in attention.named_parameters()], copy.deepcopy(attention.state_dict())
    with torch.no_grad():
        _, before = attention(x, memory, memory, average_attn_weights=False)
        scale_scores(attention, 0.25)
        _, after = attention(x, memory, memory, average_attn_weights=False)
        fast, _ = attention(x, memory, memory, need_weights=False)
        assert_close(copy.deepcopy(attention)(x, memory, memory, need_weights=False)[0], fast)
    assert_close(after, (before.log() / 4).softmax(dim=-1))
    assert [name for name, _ in attention.named_parameters()] == names
    assert_close(attention.state_dict(), state, rtol=0, atol=0)
    attention(x, memory, memory)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in attention.parameters())


def test_a_stack_of_torch_in_training_and_in_its_fast_path():
    class Net(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
            self.stack = nn.TransformerEncoder(layer, 2)

    torch.manual_seed(0)
    net, x = Net(32), torch.randn(2, 5, 32)
    plain = net.stack(x)
    scale_scores(net, 0.25)
    scaled = net.stack(x)
    assert not torch.allclose(plain, scaled, atol=1e-4)
    with torch.no_grad():
        assert_close(net.eval().stack(x), scaled, rtol=0, atol=1e-5)
    groups = param_groups(net, roles(net, make_base_shapes(Net(16), Net(32))), lr=1.0)
    assert sum(len(group["params"]) for group in groups) == len(list(net.parameters()))


class OtherAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)


class OwnScaling(OtherAttention):
    def __init__(self) -> None:
        super().__init__()
        self.scaling = 0.5


def test_attention_that_cannot_be_scaled_is_named_and_nothing_changes():
    with pytest.raises(ValueError, match="this Linear has no attention whose scores can be scaled"):
        scale_scores(nn.Linear(3, 3), 0.5)
    own = OwnScaling()
    with pytest.raises(ValueError, match="the scores of 1, a OtherAttention, cannot be scaled"):
        scale_scores(nn.ModuleList([own, OtherAttention()]), 0.5)
    assert own.scaling == 0.5
    with pytest.raises(ValueError, match=r"the scores of decoder\.layers\.0\.mixer, a Attention"):
        scale_scores(tiny_lm(), 0.5)
    scale_scores(own, 0.5)
    assert math.isclose(own.scaling, 0.25)


def test_grouped_queries_of_a_square_map_are_no_thirds():
    class GroupedAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.Wqkv = nn.Linear(8, 16)

    with pytest.raises(ValueError, match="a GroupedAttention, cannot be scaled"):
        scale_scores(GroupedAttention(), 0.5)


@EVERY_MODEL
def test_the_probe_is_the_score_of_queries_with_themselves(kind):
    """By hand: it goes as the factor does, and as the square of the queries' weights."""
    model = make(kind)
    plain = aligned_score(model, lambda: model(IDS))
    assert plain > 0
    scale_scores(model, 0.25)
    before = model(IDS).logits
    assert aligned_score(model, lambda: model(IDS)) == pytest.approx(plain / 4, rel=0.1)
    assert torch.equal(model(IDS).logits, before), "hooks are gone"


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neo", "gpt_neox", "bloom", "llama", "modernbert", "mpnet"])
def test_the_coordinate_check_sees_scores_that_grow_with_the_head(kind):
    model_type, settings = MODELS[kind]

    def of_width(width: int, right: bool) -> nn.Module:
        wider = {"num_key_value_heads": 4} if kind == "llama" else {}
        sizes = SIZES | settings | wider | {"hidden_size": width, "intermediate_size": 2 * width}
        auto = AutoModelForMaskedLM if model_type in MASKED else AutoModelForCausalLM
        model = auto.from_config(AutoConfig.for_model(model_type, **sizes), attn_implementation="eager")
        for parameter in model.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        if right:
            scale_scores(model, (width / 32) ** (-1 if kind == "gpt_neo" else -0.5))
        return model

    def slope(right: bool) -> float:
        probes = aligned_probe("", {w: lambda w=w: of_width(w, right) for w in (32, 128)}, IDS)
        return fit_slope(probes, "score").value

    assert abs(slope(right=True)) <= 0.1
    assert slope(right=False) >= 0.4
