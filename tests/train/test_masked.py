"""A masked model in the harness: it trains, is checked, saved, opened and looked at like any other."""

import math

import matplotlib.pyplot as plt
import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertTokenizer

import gpt2
import main
import model_explorer
from explore.html import attention_html
from explore.inspection.analysis import ablate, logit_lens
from explore.inspection.patterns import attention_patterns
from explore.inspection.scores import head_scores, loss_by_position, loss_by_token
from explore.plots import draw_attentions, show_lm_attns
from model.perplexity import NOT_SCORED
from tests.model.hf.test_encoders import make
from train.evaluation import Evaluation

BERT = [
    "causal=False",
    "objective='masked'",
    "norm_position='post'",
    "embedding_norm=True",
    "readout_transform=True",
    "readout_bias=True",
]
SMALL = ["dim=32", "n_layers=1", "n_heads=2", "threads=1", "batch_size=8", "max_seq_len=32", "val_every=None"]
OF_TEXT = ["debug_crop=30", "val_pct=4.0", "test_pct=4.0", "early_stop_nsamples=64"]
OF_TASK = ["dataset_name='maskedcopy'", "task_args={'max_length': 6}", "n_samples=300", "val_pct=20.0"]


def call(out, *options, fields=(), config="bert") -> int:
    settings = [part for field in (*SMALL, *fields) for part in ("--set", field)]
    return main.main([f"--config={config}", "--no-wandb", "--out", str(out), *options, *settings])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A saved run of text: its output root and timestamp."""
    out = tmp_path_factory.mktemp("masked")
    assert call(out, "--save", fields=[*OF_TEXT, "mask_frac=0.4", "tokenizer_vocab_size=300"]) == 0
    [timestamp] = model_explorer.runs(out=str(out), all=True).index
    return str(out), timestamp


@pytest.mark.slow
@pytest.mark.ci
def test_a_saved_masked_run_opens_as_it_was_saved(run, capsys):
    out, timestamp = run
    model_explorer.verify_stable_load(timestamp, out=out)
    shown = capsys.readouterr().out
    assert "no logits depend on other samples: ok" in shown
    lm, dataset, stats, _ = model_explorer.get_model_by_timestamp(timestamp, out=out)
    assert lm.tokenizer.mask == lm.n_tokens - 1 == 300
    assert dataset.tokenizer is lm.tokenizer
    assert not [name for name in stats if "bits_per_byte" in name]
    table = model_explorer.runs(out=out, all=True)
    assert table.bits_per_byte.isna().all()
    assert "«" in table["sample"].iloc[0]


@pytest.mark.slow
@pytest.mark.ci
def test_validation_masks_the_share_mask_frac(run):
    out, timestamp = run
    lm, dataset, _, params = model_explorer.get_model_by_timestamp(timestamp, out=out)
    evaluation = Evaluation(lm, dataset)
    total, n = 0.0, 0
    for batch in dataset.val_dataloader(5):
        evaluation.add(batch, params["train"])
        _, y, z = lm.get_batch_xyz(batch, train_params=params["train"])
        log_probs = z.log_softmax(dim=-1)
        for row, target in zip(log_probs, y, strict=True):
            for t in (target != NOT_SCORED).nonzero()[:, 0]:
                total, n = total - float(row[t, target[t]]), n + 1
    assert evaluation.result()["val_loss:main"] == pytest.approx(total / n, rel=1e-4)
    lengths = [min(len(dataset.rows("val")[i].ids), 32) - 1 for i in range(dataset.n_rows("val"))]
    assert n == pytest.approx(0.4 * sum(lengths), rel=0.05)


@pytest.mark.slow
@pytest.mark.ci
def test_the_explorer_works_on_a_masked_run(run):
    out, timestamp = run
    lm = model_explorer.get_model_by_timestamp(timestamp, out=out).lm
    text = "we the<mask> of the United"
    assert lm.fill(text).startswith("we the")
    ids = lm.tokenizer.with_gaps(text)
    logits, attns = show_lm_attns(lm, ids, out=out)
    assert attns.shape[-1] == logits.shape[1] == len(ids)
    patterns = attention_patterns(lm, ids)
    assert not patterns.causal
    assert '"leaks":[]' in attention_html(lm, ids).html
    figure = draw_attentions(patterns, [0], [0])
    image = figure.axes[0].images
    plt.close(figure)
    assert len(image) == 1, "nothing is drawn as a leak"
    assert not image[0].get_array().mask.any(), "nothing is blank"
    assert logit_lens(lm, ids).shape[1] == 1
    assert len(head_scores(lm)) == 2
    samples = ["we the people of the United States", "in order to form"]
    losses = lm.perplexities(samples, per_token=True, before_exp=True)
    by_position = loss_by_position(lm, samples)
    assert by_position["count"].sum() == losses.total_tokens == loss_by_token(lm, samples)["count"].sum()
    assert by_position.loss[1] == pytest.approx(float(losses.per_token_res[:, 0].double().mean()), rel=1e-5)
    assert ablate(lm, samples).notna().all()


@pytest.mark.slow
@pytest.mark.ci
def test_a_task_is_trained_on_its_scored_tokens(tmp_path, capsys):
    fields = [*OF_TASK, "tokenizer_source_name='char'", "early_stop_nsamples=64"]
    assert call(tmp_path, fields=fields) == 0
    shown = capsys.readouterr().out
    assert "objective='masked': losses are those of masked tokens" in shown
    assert "exact_match" not in shown
    assert call(tmp_path, "--check", fields=fields) == 0
    assert call(tmp_path, "--dry-run", fields=fields) == 0


@pytest.mark.slow
@pytest.mark.ci
def test_mask_frac_without_the_masked_objective_is_reported(tmp_path, capsys):
    fields = ["causal=True", "objective=['next-token','masked']", "mask_frac=0.5", *OF_TASK]
    fields += ["tokenizer_source_name='char'", "early_stop_nsamples=16"]
    assert call(tmp_path, fields=fields) == 0
    shown = capsys.readouterr().out
    assert (
        "run 1: mask_frac=0.5 has no effect: nothing in this run uses it; objective='masked' would" in shown
    )


def test_the_whole_grid_is_refused_before_anything_is_trained(tmp_path, capsys):
    assert call(tmp_path, fields=["causal=[False,True]", "objective=['masked','next-token']"]) == 2
    assert "causal=False with objective='next-token'" in capsys.readouterr().err
    assert call(tmp_path, fields=["layer_architecture=['custom-transformer','gated-conv']"]) == 2
    assert "causal=False does not work with layer_architecture='gated-conv'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.ci
def test_a_run_of_next_tokens_has_no_weights_for_a_mask(tmp_path, capsys):
    plain = ["causal=True", "objective='next-token'", *OF_TASK, "tokenizer_source_name='char'"]
    assert call(tmp_path, "--save", fields=[*plain, "early_stop_nsamples=16"]) == 0
    [timestamp] = model_explorer.runs(out=str(tmp_path), all=True).index
    capsys.readouterr()
    words = ["--no-wandb", "--out", str(tmp_path), "--config=bert"]
    fields = [*OF_TASK, f"from_saved='{timestamp}'", "tokenizer_source_name='char'", *SMALL]
    assert main.main([*words, *[part for field in fields for part in ("--set", field)]]) == 2
    assert "objective='masked' does not fit from_saved" in capsys.readouterr().err


@pytest.fixture
def pretrained(tmp_path):
    """A folder with a tiny BERT and its tokenizer."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", "the", "of", "##s"]
    folder = tmp_path / "tiny-bert"
    BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
    make(
        "bert", hidden_size=32, num_attention_heads=2, num_hidden_layers=1, vocab_size=len(words)
    ).save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
@pytest.mark.ci
def test_a_pretrained_bert_goes_on_training(pretrained, tmp_path):
    lm = gpt2.get_pretrained(pretrained)
    assert lm.tokenizer.mask == 4
    assert isinstance(lm.fill("the [MASK] of"), str)
    (tmp_path / "tuned.txt").write_text(f"ModelParams\nfrom_pretrained = '{pretrained}'\n")
    config = ["--no-wandb", "--save", "--out", str(tmp_path), "--config=tuned"]
    fields = [*OF_TEXT, "dataset_name='sotu'", "threads=1", "batch_size=8", "lr=1e-9", "weight_decay=0.0"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main, "CONFIGS", tmp_path)
        assert main.main([*config, *[part for field in fields for part in ("--set", field)]]) == 0
    [timestamp] = model_explorer.runs(out=str(tmp_path), all=True).index
    tuned = model_explorer.get_model_by_timestamp(timestamp, out=str(tmp_path)).lm
    assert_close(tuned([2, 5, 4, 3]), lm([2, 5, 4, 3]), rtol=0, atol=1e-4)


def test_a_masked_run_is_written_and_read_by_transformers(run, tmp_path):
    out, timestamp = run
    lm = model_explorer.get_model_by_timestamp(timestamp, out=out).lm
    gpt2.to_hf(lm, tmp_path)
    theirs, hf_model = AutoTokenizer.from_pretrained(tmp_path), AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert theirs.mask_token_id == lm.tokenizer.mask
    ids = torch.tensor([lm.tokenizer.with_gaps("we the<mask> of")])
    with torch.no_grad():
        assert_close(hf_model(ids).logits, lm(ids), rtol=0, atol=1e-4)
    again = gpt2.get_pretrained(str(tmp_path))
    assert again.fill("we the<mask> of") == lm.fill("we the<mask> of")


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_masked_models_train_in_other_precisions(precision, tmp_path):
    fields = [*OF_TASK, "tokenizer_source_name='char'", "early_stop_nsamples=16", f"precision='{precision}'"]
    assert call(tmp_path, fields=[*fields, "accumulate_grad_batches=2", "attention='fused'"]) == 0


def test_the_first_loss_is_that_of_guessing(run):
    out, timestamp = run
    _, _, stats, _ = model_explorer.get_model_by_timestamp(timestamp, out=out)
    assert stats["stat/train_loss:main"][0].v == pytest.approx(math.log(301), rel=0.05)


@pytest.mark.slow
def test_a_diffusion_run_samples_by_unmasking(tmp_path, capsys):
    fields = [*OF_TEXT, "objective='diffusion'", "tokenizer_vocab_size=300"]
    assert call(tmp_path, "--save", fields=fields) == 0
    shown = capsys.readouterr()
    assert "objective='diffusion': losses are bounds" in shown.out + shown.err
    [timestamp] = model_explorer.runs(out=str(tmp_path), all=True).index
    model_explorer.verify_stable_load(timestamp, out=str(tmp_path))
    lm, _, stats, _ = model_explorer.get_model_by_timestamp(timestamp, out=str(tmp_path))
    assert not [name for name in stats if "bits_per_byte" in name or "trained" in name]
    assert lm.tokenizer.mask not in lm.sample("the", max_seq_len=20, as_str=False, n_steps=4)
