"""The same GPT-2 in TransformerLens and here: equal activations, one by one. Where transformer-lens is installed."""

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.nn.utils.rnn import pad_sequence
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from explore.inspection.analysis import run_until
from explore.inspection.circuits import circuit_svd, composition_scores
from explore.inspection.scores import detect_heads
from model.hf.weights import from_hf
from model.recording import at
from tests.model.tiny import perturb, random_ids

lens = pytest.importorskip(
    "transformer_lens.model_bridge", reason="transformer-lens is not installed (requirements-lens.txt)"
)

from transformer_lens.head_detector import detect_head  # noqa: E402 -- where it is installed
from transformer_lens.SVDInterpreter import SVDInterpreter  # noqa: E402

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


@pytest.mark.parametrize("reads", ["Q", "K", "V"])
def test_composition_scores_equal_transformer_lens(twins, reads):
    ours, theirs = twins
    expected = theirs.all_composition_scores(reads)
    table = composition_scores(ours, reads)
    scores = expected.scores.flatten(2).flatten(0, 1)
    assert_close(torch.tensor(table.to_numpy()), scores, rtol=1e-5, atol=1e-6)
    assert [f"L{layer}H{head}" for layer, head in table.columns] == expected.head_labels


@pytest.mark.parametrize("circuit", ["QK", "OV"])
def test_singular_vectors_of_circuits_equal_transformer_lens(twins, circuit):
    ours, theirs = twins
    for layer, head in [(0, 0), (2, 3)]:
        matrix = (theirs.QK if circuit == "QK" else theirs.OV)[layer, head]
        u, values, v = matrix.svd()
        svd = circuit_svd(ours, circuit, layer, head)
        assert_close(svd.values, values, rtol=1e-5, atol=1e-5)
        signs = (svd.left * u).sum(dim=0).sign()
        assert_close(svd.left * signs, u, rtol=1e-3, atol=1e-4)
        assert_close(svd.right * signs, v, rtol=1e-3, atol=1e-4)
        assert_close(svd.left * svd.values @ svd.right.T, matrix.AB, rtol=1e-4, atol=1e-5)


def test_output_directions_as_logits_equal_transformer_lens(twins):
    ours, theirs = twins
    expected = SVDInterpreter(theirs).get_singular_vectors("OV", layer_index=1, head_index=2, num_vectors=6)
    with torch.no_grad():
        logits = ours.unembed(circuit_svd(ours, "OV", 1, 2).right.T).T
    signs = (logits * expected[:, 0]).sum(dim=0).sign()
    assert_close(logits * signs, expected[:, 0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_run_until_a_layer_equals_transformer_lens(twins, layer):
    ours, theirs = twins
    ids = random_ids(2, 9, n_tokens=61)
    with torch.no_grad():
        expected = theirs(ids, stop_at_layer=layer)
        assert_close(run_until(ours, ids, f"layers.{layer}.resid_pre"), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("excluded", [{}, {"exclude_first": True}, {"exclude_self": True}])
def test_detected_heads_equal_transformer_lens(twins, excluded, monkeypatch):
    ours, theirs = twins
    ids = torch.tensor([[0, 7, 3, 7, 3, 3, 11, 7, 3]])
    monkeypatch.setattr(theirs, "to_tokens", lambda text: ids)
    their_options = {
        {"exclude_first": "exclude_bos", "exclude_self": "exclude_current_token"}[name]: value
        for name, value in excluded.items()
    }
    for measure, theirs_measure, rounding in [("share", "mul", 1e-6), ("distance", "abs", 5.1e-4)]:
        table = detect_heads(ours, ids, measure=measure, **excluded)
        for kind in ("previous_token", "duplicate_token", "induction"):
            expected = detect_head(
                theirs, "text", f"{kind}_head", error_measure=theirs_measure, **their_options
            )
            got = torch.tensor(table[kind].to_numpy()).unflatten(0, (3, 4))
            assert_close(got, expected, rtol=0, atol=rounding, check_dtype=False)
    own = torch.rand(len(ids[0]), len(ids[0]), generator=torch.Generator().manual_seed(0)).tril()
    expected = detect_head(theirs, "text", own, error_measure="abs")
    got = torch.tensor(detect_heads(ours, ids, own, measure="distance")["pattern"].to_numpy())
    assert_close(got.unflatten(0, (3, 4)), expected, rtol=0, atol=5.1e-4, check_dtype=False)


def test_heads_detected_on_several_texts_equal_transformer_lens(twins, monkeypatch):
    ours, theirs = twins
    ids = {"a": [0, 7, 3, 7, 3, 3, 11, 7, 3], "b": [0, 5, 5, 9], "c": [0, 4, 8, 4, 8, 4]}

    def to_tokens(text):
        """Theirs asks for all texts at once, for the length alone, and then for each of them."""
        rows = [ids[one] for one in text] if isinstance(text, list) else [ids[text]]
        return pad_sequence([torch.tensor(row) for row in rows], batch_first=True)

    monkeypatch.setattr(theirs, "to_tokens", to_tokens)
    table = detect_heads(ours, [*ids.values()])
    for kind in ("previous_token", "duplicate_token", "induction"):
        expected = detect_head(theirs, [*ids], f"{kind}_head", error_measure="mul")
        got = torch.tensor(table[kind].to_numpy()).unflatten(0, (3, 4))
        assert_close(got, expected, rtol=0, atol=1e-6, check_dtype=False)


def test_gradients_of_activations_equal_transformer_lens(twins):
    ours, theirs = twins
    ids, found = random_ids(2, 9, n_tokens=61), {}
    theirs.reset_hooks()
    theirs.add_hook(
        "blocks.1.attn.hook_z", lambda grad, hook: found.__setitem__("z", grad.clone()) or None, dir="bwd"
    )
    theirs(ids)[:, -1, 5].sum().backward()
    theirs.reset_hooks()
    with ours.record("layers.1.z") as seen:
        logits = ours(ids)
    [gradient] = torch.autograd.grad(logits[:, -1, 5].sum(), [seen["layers.1.z"]])
    assert_close(gradient, found["z"].transpose(1, 2), rtol=1e-4, atol=1e-5)
