"""Edits of two places each, written as the README writes its own, applied to a copy of the code: all that is promised holds."""

import pytest

from tests.test_readme import apply_to_copy, forked, in_copy

LOOPED = """
--- a/model/model_params.py
+++ b/model/model_params.py
@@ -13,2 +13,3 @@ class ModelParams:
     n_layers: NonNegativeInt = 4  # layers of the stack; 0 leaves embeddings and unembedding only
+    n_loops: PositiveInt = 1  # how often a forward pass goes through the stack
     n_heads: PositiveInt = 4  # per layer; must divide dim
--- a/model/transformer/transformer.py
+++ b/model/transformer/transformer.py
@@ -45,1 +45,1 @@ class Transformer(nn.Module):
-        return list(enumerate(self.layers))
+        return list(enumerate([*self.layers] * self.model_params.n_loops))
"""

VALUE_RESIDUAL = """
--- a/model/model_params.py
+++ b/model/model_params.py
@@ -60,2 +60,3 @@ class ModelParams:
     n_layers: NonNegativeInt = 4  # layers of the stack; 0 leaves embeddings and unembedding only
+    mean_values: bool = False  # mean of a layer's values and the first layer's (Zhou et al. 2024)
     n_heads: PositiveInt = 4  # per layer; must divide dim
--- a/model/transformer/attention.py
+++ b/model/transformer/attention.py
@@ -48,1 +48,3 @@ class Attention(nn.Module):
+        if self.model_params.mean_values:
+            v_BGTK = (v_BGTK + ctx.shared.setdefault("v", v_BGTK)) / 2
         v_BGTK = ctx.tap("v", self.value_residual(v_BGTK, ctx))
"""

PRELUDE = """
import torch
from explore.inspection.analysis import direct_logit_attribution, logit_lens
from data.data_params import DataParams
from model.context import Context
from model.lm import LM
from model.generation.sampling import generate
from tests.model.tiny import CharTokenizer, random_ids, tiny_lm, tiny_params
from train.launch.check_models import checks_of, outcome_of
from model.shapes import roles_of
from train.flops import flops_per_row
from train.grid.params import Params
from train.train_params import TrainParams

torch.set_num_threads(1)

def check_all(lm):
    lm = LM(lm.model_params, CharTokenizer())
    params = Params(DataParams(), TrainParams(), lm.model_params)
    skipped = {"one batch is learned by heart", "save and load are equal"}  # they take long
    for name, check in checks_of(params).items():
        if name not in skipped:
            assert outcome_of(check, lm, params).result == "pass", (name, outcome_of(check, lm, params))
"""

EFFECTS = {
    LOOPED: """
lm, once = (tiny_lm(n_loops=n, dtype=torch.float64, max_seq_len=12) for n in (3, 1))
ids = random_ids(2, 9)
once.load_state_dict(lm.state_dict())
x = once.embed(ids)
for layer in [*once.decoder.layers] * 3:
    x = layer(x, Context(ids))
assert torch.allclose(lm.unembed(lm.decoder.norm(x)), lm(ids))

# Names, recordings and patches: of every pass its own.
assert [name for name in lm.activation_names() if "resid_post" in name] == [f"layers.{i}.resid_post" for i in range(6)]
assert lm(ids, get_embeddings=True)["embeddings"].shape[1] == 6
with lm.record("v", "z") as seen:
    plain = lm(ids)
with lm.patch(dict(seen)):
    assert torch.equal(lm(ids), plain)
assert torch.equal(logit_lens(lm, ids)[:, -1], plain)
parts = direct_logit_attribution(lm, ids[:1])
assert sum("mlp_out" in name for name in parts.index) == 6

# Generation from a cache, and the checks that every architecture passes.
assert generate(lm, [[1, 4, 5]], 8, temperature=0) == generate(lm, [[1, 4, 5]], 8, temperature=0, use_cache=False)
assert lm.cache_check.reason is None
check_all(tiny_lm(n_loops=2, dtype=torch.float32, max_seq_len=12))
assert flops_per_row(lm, 8) > 2 * flops_per_row(once, 8)

# Depth is that of a pass: initial weights, Admin's omegas, CompleteP.
from model.lm import LM
from tests.model.tiny import CharTokenizer
def fresh(**fields):
    torch.manual_seed(0)
    return LM(tiny_params(**fields), CharTokenizer())
looped, flat = fresh(n_loops=4), fresh()
ratio = looped.decoder.layers[0].linear2.weight / flat.decoder.layers[0].linear2.weight
assert torch.allclose(ratio, torch.full_like(ratio, 0.5))
admin = {"norm_position": "post", "residual": "admin"}
assert fresh(n_loops=4, **admin).decoder.layers[0].residual_sa.omega == fresh(n_layers=8, **admin).decoder.layers[0].residual_sa.omega
completep = fresh(n_loops=4, parametrization="completep", mup_base_layers=2)
assert completep.decoder.layers[0].residual_sa.branch_mult == 0.25
assert {role.depth for name, role in roles_of(completep).items() if name.startswith("decoder.layers")} == {4.0}
""",
    VALUE_RESIDUAL: """
lm = tiny_lm(mean_values=True, n_layers=3, dtype=torch.float64)
ids = random_ids(2, 9)
with lm.record("v", "resid_pre") as seen:
    plain = lm(ids)
def own(i):
    layer = lm.decoder.layers[i]
    qkv = layer.mixer.qkv(layer.norm1.before(seen[f"layers.{i}.resid_pre"]))
    return qkv.view(2, 9, 6, 8).transpose(1, 2)[:, 4:]
for i in range(3):
    assert torch.allclose(seen[f"layers.{i}.v"], (own(i) + own(0)) / 2)
assert torch.equal(lm(ids), plain), "nothing is left of an earlier pass"
assert generate(lm, [[1, 4, 5]], 8, temperature=0) == generate(lm, [[1, 4, 5]], 8, temperature=0, use_cache=False)
assert lm.cache_check.reason is None
check_all(tiny_lm(mean_values=True, dtype=torch.float32, max_seq_len=12))
""",
}


@pytest.mark.parametrize("diff", [LOOPED, VALUE_RESIDUAL], ids=["looped stack", "value residual"])
def test_an_edit_of_the_layer_stack_has_its_effect(diff, tmp_path):
    copy = apply_to_copy(diff, tmp_path, more=["tests"])
    assert forked(lambda: in_copy(PRELUDE + EFFECTS[diff], copy, tmp_path / "out")) == 0
