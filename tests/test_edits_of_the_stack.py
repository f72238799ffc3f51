"""Edits of two places each, written as the README writes its own, applied to a copy of the code: all that is promised holds."""

import pytest

from tests.test_readme import apply_to_copy, forked, in_copy

AND_BACK = """
--- a/model/model_params.py
+++ b/model/model_params.py
@@ -13,2 +13,3 @@ class ModelParams:
     n_layers: NonNegativeInt = 4  # layers of the stack; 0 leaves embeddings and unembedding only
+    and_back: bool = False  # a forward pass goes through the stack and back
     n_heads: PositiveInt = 4  # per layer; must divide dim
--- a/model/transformer/transformer.py
+++ b/model/transformer/transformer.py
@@ -45,1 +45,3 @@ class Transformer(nn.Module):
+        if self.model_params.and_back:
+            return list(enumerate([*self.layers, *reversed(self.layers)]))
         return list(enumerate([*self.layers] * self.model_params.n_loops))
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
from data.data_params import DataParams
from model.context import Context
from model.lm import LM
from model.generation.sampling import generate
from tests.model.tiny import CharTokenizer, random_ids, tiny_lm
from train.launch.check_models import checks_of, outcome_of
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
    AND_BACK: """
lm, once = (tiny_lm(and_back=on, dtype=torch.float64, max_seq_len=12) for on in (True, False))
ids = random_ids(2, 9)
once.load_state_dict(lm.state_dict())
x, (first, second) = once.embed(ids), once.decoder.layers
for layer in (first, second, second, first):
    x = layer(x, Context(ids))
assert torch.allclose(lm.unembed(lm.decoder.norm(x)), lm(ids))
assert lm(ids, get_embeddings=True)["embeddings"].shape[1] == 4
assert generate(lm, [[1, 4, 5]], 8, temperature=0) == generate(lm, [[1, 4, 5]], 8, temperature=0, use_cache=False)
assert lm.cache_check.reason is None
check_all(tiny_lm(and_back=True, dtype=torch.float32, max_seq_len=12))
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


@pytest.mark.parametrize("diff", [AND_BACK, VALUE_RESIDUAL], ids=["and back", "value residual"])
def test_an_edit_of_the_layer_stack_has_its_effect(diff, tmp_path):
    copy = apply_to_copy(diff, tmp_path, more=["tests"])
    assert forked(lambda: in_copy(PRELUDE + EFFECTS[diff], copy, tmp_path / "out")) == 0
