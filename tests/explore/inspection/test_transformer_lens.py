"""The same GPT-2 in TransformerLens and here: equal activations, one by one. Where transformer-lens is installed."""

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from model.hf.weights import from_hf
from model.recording import at
from tests.model.tiny import perturb, random_ids

lens = pytest.importorskip(
    "transformer_lens.model_bridge", reason="transformer-lens is not installed (requirements-lens.txt)"
)

pytestmark = pytest.mark.extras

SIZES = {"vocab_size": 61, "n_positions": 32, "n_embd": 24, "n_layer": 3, "n_head": 4}
OUTSIDE = {"ln_final.hook_out": "final_norm", "unembed.hook_out": "logits"}
IN_A_LAYER = {
    "hook_resid_pre": "resid_pre",
    "attn.hook_q": "q",
    "attn.hook_k": "k",
    "attn.hook_v": "v",
    "attn.hook_attn_scores": "scores",
    "attn.hook_pattern": "pattern",
    "attn.hook_z": "z",
    "hook_attn_out": "attn_out",
    "hook_resid_mid": "resid_mid",
    "mlp.hook_pre": "mlp_pre",
    "mlp.hook_post": "mlp_post",
    "hook_mlp_out": "mlp_out",
    "hook_resid_post": "resid_post",
}


@pytest.fixture(scope="module")
def twins():
    """Our LM and their bridge with the weights of one random GPT-2."""
    torch.manual_seed(0)
    hf_model = GPT2LMHeadModel(GPT2Config(**SIZES)).eval()
    perturb(hf_model)
    ours = from_hf(hf_model)
    words = {str(i): i for i in range(61)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, "0")), pad_token="0")
    theirs = lens.TransformerBridge.boot_transformers(
        "gpt2", hf_model=hf_model, tokenizer=tokenizer, device="cpu"
    )
    return ours, theirs


def test_every_activation_equals_transformer_lens(twins):
    ours, theirs = twins
    ids = random_ids(3, 17, n_tokens=61)
    with torch.no_grad(), ours.record() as seen:
        ours(ids)
        _, cache = theirs.run_with_cache(ids)
    names = OUTSIDE | {
        f"blocks.{i}.{name}": f"layers.{i}.{our_name}"
        for i in range(3)
        for name, our_name in IN_A_LAYER.items()
    }
    assert set(seen) - set(names.values()) == {"embed", *(f"layers.{i}.head_out" for i in range(3))}
    assert_close(seen["embed"], cache["hook_embed"] + cache["hook_pos_embed"])
    past = torch.ones(17, 17, dtype=torch.bool).tril()
    for their_name, our_name in names.items():
        expected = cache[their_name]
        if our_name.endswith((".q", ".k", ".v", ".z")):
            expected = expected.transpose(1, 2)  # heads follow positions there
        got = seen[our_name]
        if our_name.endswith("scores"):
            expected, got = expected[..., past], got[..., past]  # they have a large number for -inf
        assert_close(got, expected, rtol=1e-5, atol=1e-5, msg=lambda text, name=our_name: f"{name}: {text}")


def test_outputs_of_heads_equal_transformer_lens(twins):
    ours, theirs = twins
    ids = random_ids(2, 9, n_tokens=61)
    with torch.no_grad(), ours.record("head_out") as seen:
        ours(ids)
        _, cache = theirs.run_with_cache(ids)
        for i in range(3):
            z, w = cache[f"blocks.{i}.attn.hook_z"], theirs.blocks[i].attn.W_O
            expected = torch.einsum("bthk,hkd->bhtd", z, w)
            assert_close(seen[f"layers.{i}.head_out"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("head", [0, 3])
def test_a_patched_run_equals_transformer_lens(twins, head):
    ours, theirs = twins
    ids = random_ids(2, 9, n_tokens=61)

    def without_head(z, hook):
        z[:, :, head] = 0
        return z

    with torch.no_grad():
        expected = theirs.run_with_hooks(ids, fwd_hooks=[("blocks.1.attn.hook_z", without_head)])
        with ours.patch({"layers.1.z": at(0, heads=head)}):
            assert_close(ours(ids), expected, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(ours(ids), expected, atol=1e-3)
