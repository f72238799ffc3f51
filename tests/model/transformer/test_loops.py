"""A looped stack: the layers run several times, and every pass has its own names, cache and place in figures."""

import pytest
import torch
from torch.testing import assert_close

from explore.inspection.analysis import direct_logit_attribution, logit_lens
from explore.scaling.fold import fold_residual
from model.context import Cache, Context
from model.generation.sampling import generate
from model.lm import LM, n_params
from model.model_params import ModelParams
from model.shapes import roles_of, size_of, state_size_of
from tests.model.tiny import CharTokenizer, random_ids, tiny_lm, tiny_params
from train.flops import flops_per_row
from train.launch.memory import memory_of_step
from train.launch.problems import reuse_problems
from train.train_params import TrainParams

IDS = random_ids(2, 9)


def fresh(**fields) -> LM:
    torch.manual_seed(0)
    return LM(tiny_params(**fields), CharTokenizer())


@torch.no_grad()
def test_a_looped_stack_is_its_layers_several_times():
    lm, once = (tiny_lm(n_loops=n, positions="rotary", sliding_window=(3, None)) for n in (3, 1))
    once.load_state_dict(lm.state_dict())
    x = once.embed(IDS)
    for layer in [*once.decoder.layers] * 3:
        x = layer(x, Context(IDS))
    assert_close(lm.unembed(lm.decoder.norm(x)), lm(IDS))


@torch.no_grad()
def test_every_pass_has_names_recordings_and_a_cache_of_its_own():
    lm = tiny_lm(n_loops=3, value_residual=True, stream_lambdas=True, canon="abcd")
    streams = [name for name in lm.activation_names() if "resid_post" in name]
    assert streams == [f"layers.{i}.resid_post" for i in range(6)]
    found = lm(IDS, get_embeddings=True, get_attns=True)
    assert (found["embeddings"].shape[1], found["attns"].shape[1]) == (6, 6)
    with lm.record("v", "z") as seen:
        plain = lm(IDS)
    with lm.patch(dict(seen)):
        assert torch.equal(lm(IDS), plain)
    assert torch.equal(logit_lens(lm, IDS)[:, -1], plain)
    parts = direct_logit_attribution(tiny_lm(n_loops=3), IDS[:1])
    assert sum("mlp_out" in name for name in parts.index) == 6
    cache = Cache(9)
    assert_close(torch.stack([lm(IDS[:, :t], cache=cache)[:, -1] for t in range(1, 10)], dim=1), plain)
    assert generate(lm, [[1, 4, 5]], 8, temperature=0) == generate(
        lm, [[1, 4, 5]], 8, temperature=0, use_cache=False
    )
    assert lm.cache_check.reason is None


def test_sizes_count_weights_once_and_operations_and_states_in_every_loop():
    looped, once = (tiny_params(n_loops=n) for n in (3, 1))
    assert size_of(looped, 30).n_params == size_of(once, 30).n_params == n_params(tiny_lm(n_loops=3))
    without = flops_per_row(tiny_lm(n_layers=0), 8)
    of_layers = flops_per_row(tiny_lm(), 8) - without
    assert flops_per_row(tiny_lm(n_loops=3), 8) == 3 * of_layers + without
    assert (
        state_size_of(tiny_lm(n_loops=3))
        == size_of(looped, 30).state_size
        == 3 * size_of(once, 30).state_size
    )
    deep = tiny_params(n_loops=3, n_layers=140)
    assert size_of(deep, 30).state_size == 3 * 70 * size_of(once, 30).state_size
    several, one = (memory_of_step(p, TrainParams(batch_size=4), 30) for p in (looped, once))
    assert several.weights == one.weights
    assert several.activations > 2 * one.activations


def test_the_depth_of_initial_weights_admin_and_completep_is_that_of_a_pass():
    ratio = fresh(n_loops=4).decoder.layers[0].linear2.weight / fresh().decoder.layers[0].linear2.weight
    assert_close(ratio, torch.full_like(ratio, 0.5))
    admin = {"norm_position": "post", "residual": "admin"}
    omegas = [
        fresh(**sizes, **admin).decoder.layers[0].residual_sa.omega
        for sizes in ({"n_loops": 4}, {"n_layers": 8})
    ]
    assert omegas[0] == omegas[1]
    completep = fresh(n_loops=4, parametrization="completep", mup_base_layers=2)
    assert completep.decoder.layers[0].residual_sa.branch_mult == 0.25
    roles = roles_of(completep)
    assert {role.depth for name, role in roles.items() if name.startswith("decoder.layers")} == {4.0}
    assert ModelParams(n_layers=3, n_loops=2).depth == ModelParams(n_layers=3, n_loops=2).at(1).depth == 6


def test_what_a_loop_makes_ambiguous_is_refused():
    post = {"norm_position": "post", "residual": "admin", "n_loops": 2}
    with pytest.raises(ValueError, match="differs in each of n_loops=2 loops"):
        tiny_params(**post, residual_profile=True)
    with pytest.raises(ValueError, match="its omega cannot be folded"):
        fold_residual(tiny_lm(**post))
    assert list(reuse_problems(tiny_params(n_loops=2), "fsdp")) == [
        "strategy='fsdp' does not support n_loops=2; use strategy='ddp'"
    ]
    assert not list(reuse_problems(tiny_params(), "fsdp")) + list(
        reuse_problems(tiny_params(n_loops=2), "ddp")
    )
