"""Runs that begin with the weights of a pretrained model or of a saved run: tuned, edited, with LoRA, refused."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import main
from data.tokenizer import pretrained_tokenizer
from explore.load import checkpoints, find_run, runs
from model.lm import n_params
from model.transformer.attention import Attention
from model.transformer.lora import is_lora
from tests.train.little_run import CALL, fit, save_run
from train import pretrained
from train.evaluation import Evaluation
from train.grid.expand import GridError, read_grid
from train.grid.params import Params
from train.launch.problems import grid_problems
from train.run import make_lm
from train.saving.run_folder import load_run

TEXT = ["the cat sat on the mat and saw a rat in a hat", "a dog ran to the sun and ate all of it at noon"]
FEW_STEPS = """\
DataParams
dataset_name = "rhymes"
val_pct = 20.0
TrainParams
batch_size = 8
epochs = 3
threads = 1
ModelParams
"""


@pytest.fixture(scope="module", autouse=True)
def rhymes(tmp_path_factory):
    """A little text, and another."""
    data = tmp_path_factory.mktemp("data")
    (data / "rhymes").mkdir()
    (data / "numbers").mkdir()
    (data / "rhymes/data.txt").write_text("\n".join(f"{TEXT[i % 2]} {i % 7} times" for i in range(60)))
    (data / "numbers/data.txt").write_text("\n".join(f"{i} + {i} = {2 * i}" for i in range(60)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WHATIF_DATA", str(data))
        yield


@pytest.fixture(scope="module")
def hf_folder(tmp_path_factory) -> Path:
    """A GPT-2 of 2 layers with random weights, and its tokenizer."""
    folder = tmp_path_factory.mktemp("hf") / "tiny@home"
    bpe = RustTokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    end = "<|endoftext|>"
    trainer = trainers.BpeTrainer(
        vocab_size=280, special_tokens=[end], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(TEXT * 9, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=end, eos_token=end, unk_token=end)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=bpe.get_vocab_size(), n_positions=32, n_embd=16, n_layer=2, n_head=2)
    config.bos_token_id = config.eos_token_id = 0
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


class Saved(NamedTuple):
    """Two runs in an output root."""

    root: Path
    plain: str  # the timestamp of a character model
    lora: str  # of the GPT-2, tuned by LoRA


@pytest.fixture(scope="module")
def saved(tmp_path_factory, hf_folder) -> Saved:
    root = tmp_path_factory.mktemp("out")
    call(root, 'dim = 16\nn_layers = 2\nn_heads = 2\nmax_seq_len = 24\npositions = "sin"', "--save")
    call(root, f"from_pretrained = {str(hf_folder)!r}\nlora_rank = 2", "--save")
    return Saved(root, *runs(str(root), all=True).index)


@pytest.fixture
def root(saved) -> Path:
    return saved.root


def call(root: Path, model_fields: str, *options: str) -> int:
    """main.py with a config of these fields."""
    configs = root / "configs"
    configs.mkdir(exist_ok=True)
    (configs / "trial.txt").write_text(FEW_STEPS + model_fields)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main, "CONFIGS", configs)
        return main.main(["--config=trial", "--no-wandb", "--out", str(root), *options])


def grid(root: Path, model_fields: str, **options: str) -> list[Params]:
    """The runs of a config of these fields."""
    (root / "configs").mkdir(exist_ok=True)
    config = root / "configs" / "trial.txt"
    config.write_text(FEW_STEPS + model_fields)
    typed = {f"--set {key}": f"{key}={value}" for key, value in options.items()}
    found = partial(grid_problems, root=root)
    grid = read_grid([config], typed, problems=found, defaults=partial(pretrained.defaults, root))
    return [run.params for run in grid]


def train(root: Path, model_fields: str, **options: str):
    """A fitted LMTrainer."""
    [params] = grid(root, model_fields, **options)
    call = CALL._replace(out=root)
    return fit(params, call)


def val_losses(lm_trainer) -> list[tuple[int, float]]:
    return [(stat.s, stat.v) for stat in lm_trainer.stats.train_stats["stat/val_loss:main"]]


def begun(root: Path, model_fields: str, **options: str):
    """The model before its first step."""
    [params] = grid(root, model_fields, **options)
    tokenizer = pretrained.saved_tokenizer(params.model, root)
    return make_lm(params, tokenizer or pretrained_tokenizer(params.model.tokenizer_source_name), root)


@pytest.mark.slow
@pytest.mark.ci
def test_tuning_begins_with_the_loss_of_the_pretrained_model_and_lowers_it(root, hf_folder):
    run = train(root, f"from_pretrained = {str(hf_folder)!r}", lr="3e-3")
    (first, before), *_, (last, after) = val_losses(run)
    assert (first, last) == (0, run.global_step)
    hf_model = GPT2LMHeadModel.from_pretrained(hf_folder).eval()
    losses, n_scored = 0.0, 0
    for batch in run.data.val_dataloader(8):
        ids, scored = batch["x_indices"], batch["target_mask"][:, 1:]
        with torch.no_grad():
            logits = hf_model(ids[:, :-1]).logits
        losses += torch.nn.functional.cross_entropy(
            logits[scored], ids[:, 1:][scored], reduction="sum"
        ).item()
        n_scored += int(scored.sum())
    assert before == pytest.approx(losses / n_scored, rel=1e-5)
    assert after < before - 0.3
    assert run.train_seconds < 60, "of training alone"


@pytest.mark.slow
@pytest.mark.ci
def test_the_params_tell_the_architecture_and_the_run_opens_when_the_model_it_began_with_is_gone(
    root, hf_folder, tmp_path
):
    folder = shutil.copytree(hf_folder, tmp_path / "hf")
    assert call(tmp_path, f"from_pretrained = {str(folder)!r}\nactivation = 'relu'", "--save") == 0
    shutil.rmtree(folder)
    [timestamp] = runs(str(tmp_path), all=True).index
    model = load_run(find_run(timestamp, str(tmp_path))).params.model
    assert (model.dim, model.n_layers, model.n_heads, model.max_seq_len) == (16, 2, 2, 32)
    assert (model.from_pretrained, model.activation) == (str(folder), "relu")
    assert call(tmp_path, f"from_saved = {timestamp!r}") == 0, "so it can go on, too"


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize(
    ("edit", "changed"),
    [
        ("positions = 'none'", {"embed.positions.table.weight": "gone"}),
        ("positions = 'rotary'", {"embed.positions.table.weight": "gone"}),
        ("max_seq_len = 12", {"embed.positions.table.weight": "shorter"}),
        ("attention = 'fused'", {}),
        ("activation = 'relu'", {}),
        ("n_layers = 1", {"decoder.layers.1.": "gone"}),
        ("n_layers = 3", {"decoder.layers.2.": "new"}),
        ("qk_norm = True", {"mixer.q_norm": "new", "mixer.k_norm": "new"}),
        ("lora_rank = 3", {"lora_": "new"}),
        ("tied_embeddings = False", {}),
    ],
)
def test_an_edit_keeps_every_weight_that_it_does_not_take_away(root, hf_folder, edit, changed):
    plain = begun(root, f"from_pretrained = {str(hf_folder)!r}").state_dict()
    edited = begun(root, f"from_pretrained = {str(hf_folder)!r}\n{edit}").state_dict()
    hf = GPT2LMHeadModel.from_pretrained(hf_folder).state_dict()
    assert torch.equal(plain["unembed.weight"], hf["transformer.wte.weight"])
    for name in plain.keys() | edited.keys():
        [what] = [what for part, what in changed.items() if part in name] or ["the same"]
        assert (name in plain) == (what != "new"), name
        assert (name in edited) == (what != "gone"), name
        if what in ("the same", "shorter"):
            assert torch.equal(edited[name], plain[name][: len(edited[name])]), name
            assert (edited[name].shape == plain[name].shape) == (what == "the same"), name


@pytest.mark.slow
@pytest.mark.ci
def test_tying_what_was_not_tied_keeps_the_embedding(root, tmp_path, saved):
    call(tmp_path, "dim = 16\nn_layers = 1\ntied_embeddings = False", "--save")
    [timestamp] = runs(str(tmp_path), all=True).index
    saved = load_run(find_run(timestamp, str(tmp_path))).lm
    tied = begun(tmp_path, f"from_saved = {timestamp!r}\ntied_embeddings = True")
    assert tied.unembed.weight is tied.embed.tokens.weight
    assert torch.equal(tied.embed.tokens.weight, saved.embed.tokens.weight)
    assert not torch.equal(saved.unembed.weight, saved.embed.tokens.weight)


def test_files_with_a_readout_that_the_config_does_not_tell_of_ask_for_it(root, hf_folder, tmp_path):
    folder = tmp_path / "untied"
    shutil.copytree(hf_folder, folder)
    hf = GPT2LMHeadModel.from_pretrained(hf_folder)
    hf.lm_head.weight = torch.nn.Parameter(hf.lm_head.weight.detach() * 2)
    hf.config.tie_word_embeddings = False
    hf.save_pretrained(folder)
    config = (folder / "config.json").read_text().replace('word_embeddings": false', 'word_embeddings": true')
    (folder / "config.json").write_text(config)
    with pytest.raises(ValueError, match="a separate one: set tied_embeddings=False"):
        begun(root, f"from_pretrained = {str(folder)!r}")
    lm = begun(root, f"from_pretrained = {str(folder)!r}\ntied_embeddings = False")
    assert torch.equal(lm.unembed.weight, hf.lm_head.weight)


def test_the_effect_of_edited_code_on_pretrained_weights_is_logged(root, hf_folder, capsys, monkeypatch):
    begun(root, f"from_pretrained = {str(hf_folder)!r}")
    assert "logits differ" not in capsys.readouterr().out
    attend = Attention.attend
    monkeypatch.setattr(Attention, "attend", lambda self, q, k, v, ctx: attend(self, q, k, 2 * v, ctx))
    begun(root, f"from_pretrained = {str(hf_folder)!r}")
    said = capsys.readouterr()
    assert "logits differ from those of transformers by" in said.out + said.err


@pytest.mark.slow
@pytest.mark.ci
def test_edited_missing_and_new_weights_are_logged(root, saved, capsys):
    def said(fields: str) -> str:
        begun(root, fields)
        [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("weights of")]
        return line

    more = said(f"from_saved = {saved.plain!r}\nn_layers = 3\npositions = 'none'")
    assert more.startswith(
        f"weights of from_saved={saved.plain!r}; n_layers=3, positions='none'; new: decoder."
    )
    assert more.endswith(" and 9 more")
    assert "left out" not in more
    less = said(f"from_saved = {saved.lora!r}\nlora_rank = 0\npositions = 'none'")
    assert less.endswith("; positions='none', lora_rank=0; left out: embed.positions.table.weight")
    assert said(f"from_saved = {saved.lora!r}") == f"weights of from_saved={saved.lora!r}"


def test_a_saved_run_goes_on_where_it_ended(root, saved):
    run = train(root, f"from_saved = {saved.plain!r}", lr="3e-3")
    ended_with = load_run(find_run(saved.plain, str(root))).about["summary"]["val_loss"]
    (first, before), *_, (_, after) = val_losses(run)
    assert (first, before) == (0, ended_with), "to the last bit"
    assert after < before
    assert run.model.model_params == replace(
        load_run(find_run(saved.plain, str(root))).params.model, from_saved=saved.plain
    )


def test_a_kept_checkpoint_is_cooled_down(tmp_path):
    fields = "dim = 16\nn_layers = 1\nn_heads = 2\nmax_seq_len = 24"
    options = ("checkpoint_every=3", "val_every=3", "lr_schedule=constant")
    assert call(tmp_path, fields, "--save", *[f"--set={option}" for option in options]) == 0
    [timestamp] = runs(str(tmp_path), all=True).index
    kept = {s.s: s.v for s in load_run(find_run(timestamp, str(tmp_path))).train_stats["stat/val_loss:main"]}
    run = train(tmp_path, f'from_saved = "{timestamp}@3"', lr_schedule="cooldown", hyperparams_log_freq="1")
    assert val_losses(run)[0] == (0, kept[3]), "to the last bit"
    rates = [stat.v for stat in run.stats.train_stats["stat/lr"]]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == 0
    [why] = refusals(tmp_path, f'from_saved = "{timestamp}@4"')
    assert "kept no weights of step 4; nearest: 3" in why
    [why] = refusals(tmp_path, f'from_saved = "{timestamp}@last"')
    assert "'last' is no step of a kept checkpoint" in why


def test_ctrl_c_in_the_first_validation_ends_the_run(root, saved, monkeypatch):
    add = Evaluation.add

    def interrupted(self, *args):
        monkeypatch.setattr(Evaluation, "add", add)
        os.kill(os.getpid(), signal.SIGINT)
        add(self, *args)

    monkeypatch.setattr(Evaluation, "add", interrupted)
    run = train(root, f"from_saved = {saved.plain!r}")
    assert (run.stopped, run.global_step) == ("interrupted", 0)


@pytest.mark.slow
@pytest.mark.ci
def test_a_saved_run_goes_on_in_double_precision_to_the_last_bit(root, tmp_path, saved):
    fields = 'dim = 16\nn_layers = 1\npositions = "rotary"'
    assert call(tmp_path, fields, "--save", "--set", "precision=64-true") == 0
    [timestamp] = runs(str(tmp_path), all=True).index
    saved = load_run(find_run(timestamp, str(tmp_path)))
    lm = begun(tmp_path, f"from_saved = {timestamp!r}", precision="64-true")
    assert lm.unembed.weight.dtype == torch.float64
    assert all(torch.equal(weight, saved.lm.state_dict()[name]) for name, weight in lm.state_dict().items())


def test_a_saved_run_brings_its_tokenizer(root, saved):
    run = train(root, f"from_saved = {saved.plain!r}", dataset_name="numbers")
    then = load_run(find_run(saved.plain, str(root)))
    assert run.model.tokenizer.fingerprint == then.tokenizer.fingerprint
    assert run.data.tokenizer is run.model.tokenizer
    assert run.model.n_tokens == then.lm.n_tokens
    unknown = then.tokenizer.unk
    assert any((batch["x_indices"] == unknown).any() for batch in run.data.val_dataloader(8)), "such as +"


@pytest.mark.slow
@pytest.mark.ci
def test_a_task_goes_on_with_the_vocabulary_of_the_saved_run_and_no_other(tmp_path, capsys):
    def on_copy(n_letters: int, fields: str, *options: str) -> int:
        task = "dataset_name=copy", f"task_args={{'n_letters': {n_letters}}}", "n_samples=300"
        return call(tmp_path, fields, *(word for part in task for word in ("--set", part)), *options)

    assert on_copy(6, "dim = 16\nn_layers = 1\nmax_seq_len = 48", "--save") == 0
    [timestamp] = runs(str(tmp_path), all=True).index
    assert on_copy(4, f"from_saved = {timestamp!r}") == 0
    capsys.readouterr()
    assert on_copy(9, f"from_saved = {timestamp!r}") == 2
    error = capsys.readouterr().err.strip()
    assert re.search(
        r"^--set dataset_name=copy: .* draws the token '[ghi]' too rarely for the vocabulary", error
    )
    assert error.endswith(f"(with the tokenizer of from_saved={timestamp!r})")


@pytest.mark.slow
@pytest.mark.ci
def test_runs_that_go_on_from_two_vocabularies_are_each_sized_by_their_own(root, saved, tmp_path, capsys):
    out = shutil.copytree(root, tmp_path / "out")
    both = [saved.plain, save_run(out).name]
    assert call(out, f"from_saved = {both}\nmax_seq_len = 16", "--dry-run") == 0
    shown = capsys.readouterr().out
    for timestamp in both:
        size = n_params(load_run(find_run(timestamp, str(out))).lm)
        assert re.search(rf"{timestamp} +{size:,} ", shown)


@pytest.mark.slow
@pytest.mark.ci
def test_lora_trains_its_own_parameters_only_and_is_saved_and_opened(root, hf_folder, saved):
    run = train(root, f"from_pretrained = {str(hf_folder)!r}\nlora_rank = 2", lr="3e-3", weight_decay="0.5")
    (_, before), *_, (_, after) = val_losses(run)
    assert after < before - 0.05
    start = begun(root, f"from_pretrained = {str(hf_folder)!r}\nlora_rank = 2").state_dict()
    for name, weight in run.model.state_dict().items():
        assert torch.equal(weight, start[name]) != is_lora(name), name
    saved = load_run(find_run(saved.lora, str(root)))
    assert saved.params.model.lora_rank == 2
    assert {name for name in saved.lm.state_dict() if is_lora(name)} == set(filter(is_lora, start))
    assert saved.lm.decoder.layers[0].linear1.lora_b.any()


@pytest.mark.slow
@pytest.mark.ci
def test_a_run_with_lora_goes_on_with_it_or_merged(root, saved):
    then = load_run(find_run(saved.lora, str(root))).lm
    on, merged = (
        begun(root, f"from_saved = {saved.lora!r}"),
        begun(root, f"from_saved = {saved.lora!r}\nlora_rank = 0"),
    )
    assert on.model_params.lora_rank == 2
    assert torch.equal(on("the cat"), then("the cat"))
    assert not any(map(is_lora, merged.state_dict()))
    torch.testing.assert_close(merged("the cat"), then("the cat"))
    [why] = refusals(root, f"from_saved = {saved.lora!r}\nlora_rank = 4")
    assert f"lora_rank=4 does not fit from_saved={saved.lora!r}, whose weights are for lora_rank=2" in why


def refusals(root: Path, model_fields: str, **options: str) -> list[str]:
    with pytest.raises(GridError) as caught:
        grid(root, model_fields, **options)
    return caught.value.errors


def test_an_edit_that_changes_the_shape_of_weights_is_refused_with_its_place(root, hf_folder, saved):
    def why(fields: str) -> str:
        [error] = refusals(root, f"from_pretrained = {str(hf_folder)!r}\n{fields}")
        return error.replace(repr(str(hf_folder)), "HF")

    there = "configs/trial.txt:9 and configs/trial.txt:10: "
    assert why("dim = 32") == f"{there}dim=32 does not fit from_pretrained=HF, whose weights are for dim=16"
    assert "dim_ff=20 does not fit from_pretrained=HF, whose weights are for dim_ff=None" in why(
        "dim_ff = 20"
    )
    assert "max_seq_len=33 does not fit from_pretrained=HF, whose weights are for max_seq_len=32" in why("max_seq_len = 33")  # fmt: skip
    assert "n_kv_heads=1 does not fit from_pretrained=HF, whose" in why("n_kv_heads = 1")
    assert "dim=32, dim_ff=8 does not fit from_pretrained=HF" in why(
        "activation = 'relu'\ndim = 32\ndim_ff = 8"
    )
    [of_saved] = refusals(root, f"from_saved = {saved.plain!r}", tokenizer_source_name="custom")
    assert f"tokenizer_source_name='custom' does not fit from_saved={saved.plain!r}, whose weights are for tokenizer_source_name='char'" in of_saved  # fmt: skip


def test_another_vocabulary_is_refused_before_anything_trains(root, hf_folder, tmp_path, capsys):
    for option, why in (
        ("tokenizer_source_name=char", r"the tokenizer has 29 tokens, but the weights are for"),
        ("tokenizer_crop=True", "tokenizer_crop=True renumbers the tokens"),
    ):
        assert call(tmp_path, f"from_pretrained = {str(hf_folder)!r}", "--save", "--set", option) == 2
        error = capsys.readouterr().err
        assert "configs/trial.txt:9" in error
        assert f"from_pretrained={str(hf_folder)!r}: " in error
        assert why in error
    assert not (tmp_path / "saved-models").exists()


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ("from_saved = '2024-04-22--16-17-00'", r"trial.txt:9: from_saved='2024-04-22--16-17-00': no run '2024-04-22--16-17-00' in .*nearest: .*{plain}"),
        ("from_saved = '../x'", r"trial.txt:9: from_saved='../x': no run '../x'"),
        ("from_saved = 5", r"trial.txt:9: ModelParams cannot have from_saved = 5: it should be a valid string"),
        ("from_saved = ['', 'b']", r"trial.txt:9: from_saved='': no run ''"),
        ("from_pretrained = 'nobody/nothing'", r"trial.txt:9: from_pretrained='nobody/nothing': .*cannot be loaded"),
        ("from_pretrained = '{root}'", r"trial.txt:9: from_pretrained='{root}': .*cannot be loaded"),
        ("from_pretrained = ''", r"trial.txt:9: from_pretrained='': .*cannot be loaded"),
        ("n_heads = 2\nfrom_pretrained = 'a'\nfrom_saved = '{plain}'", r"trial.txt:10 and .*trial.txt:11: from_pretrained='a' and from_saved='{plain}' exclude"),
    ],
)  # fmt: skip
def test_unavailable_weights_are_refused_in_one_sentence_each(root, saved, fields, why):
    known = {"root": root, "plain": saved.plain}
    errors = refusals(root, fields.format(**known))
    assert len(errors) == (2 if "," in fields else 1)
    assert re.search(why.format(**known), errors[0]), errors
    assert not any("\n" in error for error in errors)


def test_missing_weights_are_looked_up_once_in_a_grid(root, monkeypatch):
    asked = []

    def fields(name: str, *_):
        asked.append(name)
        raise ValueError("it is not there")

    monkeypatch.setattr("model.hf.weights.pretrained_params", fields)
    [why] = refusals(root, "from_pretrained = 'nobody/else'", lr="[1e-3, 1e-4]", random_seed="[1, 2, 3]")
    assert why == "configs/trial.txt:9: from_pretrained='nobody/else': it is not there"
    assert asked == ["nobody/else"]


def test_damaged_weights_are_refused_before_anything_trains(root, hf_folder, tmp_path, capsys, saved):
    folder = shutil.copytree(hf_folder, tmp_path / "hf")
    (folder / "model.safetensors").write_bytes(b"no weights")
    assert call(tmp_path, f"from_pretrained = {str(folder)!r}") == 2
    assert f"configs/trial.txt:9: from_pretrained={str(folder)!r}: " in capsys.readouterr().err
    (folder / "model.safetensors").unlink()
    assert call(tmp_path, f"from_pretrained = {str(folder)!r}") == 2
    out = shutil.copytree(root, tmp_path / "out")
    (find_run(saved.plain, str(out)) / "model.safetensors").write_bytes(b"no weights")
    assert call(out, f"from_saved = {saved.plain!r}") == 2
    assert f"configs/trial.txt:9: from_saved={saved.plain!r}: " in capsys.readouterr().err


def test_lora_without_linear_maps_is_refused(root):
    [why] = refusals(root, "layer_architecture = 'torch-lstm'\npositions = 'none'\nlora_rank = 2")
    assert "trial.txt:11: lora_rank=2 " in why
    assert why.endswith("leaves nothing to train")
    [why] = refusals(root, "lora_rank = 2", freeze="('*lora_?',)")
    assert "freeze=('*lora_?',)" in why
    assert why.endswith("leaves nothing to train")


def test_both_fields_are_axes_and_each_point_has_the_fields_of_its_own_weights(root, hf_folder, saved):
    points = grid(root, f"from_saved = [{saved.plain!r}, {saved.lora!r}, None]\nnorm_eps = [1e-5, 1e-6]")
    assert [p.model.max_seq_len for p in points] == [24, 24, 32, 32, 128, 128]
    assert [p.model.lora_rank for p in points] == [0, 0, 2, 2, 0, 0]
    assert [p.model.norm_eps for p in points] == [1e-5, 1e-6] * 3
    assert {p.model.from_pretrained for p in points} == {None}, (
        "where the saved run itself began is its own story"
    )
    scratch = points[2].changed(from_saved=None)
    assert scratch.model.max_seq_len == 32


@pytest.mark.slow
@pytest.mark.ci
def test_equal_params_give_bitwise_equal_runs(root, hf_folder):
    fields = f"from_pretrained = {str(hf_folder)!r}\nlora_rank = 2"
    one, two, other = (train(root, fields, dropout="0.1", random_seed=seed) for seed in "112")
    assert one.stats.train_stats["stat/train_loss:main"] == two.stats.train_stats["stat/train_loss:main"]
    weights = [run.model.state_dict() for run in (one, two, other)]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
    assert not all(torch.equal(weight, weights[2][name]) for name, weight in weights[0].items())


def test_a_revision_stands_behind_the_name_but_a_folder_is_a_folder(hf_folder):
    parts = pretrained.name_and_revision
    assert parts("EleutherAI/pythia-70m@step1000") == ("EleutherAI/pythia-70m", "step1000")
    assert parts("gpt2") == ("gpt2", None)
    assert parts(str(hf_folder)) == (str(hf_folder), None)


@pytest.mark.slow
def test_two_processes_go_on_from_a_saved_run_as_one_does_with_the_double_batch(root, saved, tmp_path):
    out = shutil.copytree(root, tmp_path / "out")
    script = "import sys, main; from pathlib import Path; main.CONFIGS = Path(sys.argv[1]); sys.exit(main.main(sys.argv[2:]))"
    (tmp_path / "two.py").write_text(script)
    (out / "configs" / "trial.txt").write_text(FEW_STEPS + f"from_saved = {saved.plain!r}")
    options = ["--config=trial", "--no-wandb", "--save", "--out", str(out), "--set=precision=64-true"]
    for more in (
        ["--set=batch_size=16"],
        ["--set=devices=2", "--set=strategy=ddp", "--set=checkpoint_every=2"],
    ):
        command = [sys.executable, str(tmp_path / "two.py"), str(out / "configs"), *options, *more]
        environment = os.environ | {"PYTHONPATH": str(main.CONFIGS.parent)}
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=120, check=False, env=environment
        )
        assert done.returncode == 0, done.stdout + done.stderr
    one, two = runs(str(out), all=True).index[-2:]
    of_one, of_two = (load_run(find_run(timestamp, str(out))) for timestamp in (one, two))
    for name, weight in of_one.lm.state_dict().items():
        torch.testing.assert_close(of_two.lm.state_dict()[name], weight, rtol=1e-9, atol=1e-11)
    firsts = [of.train_stats["stat/val_loss:main"][0] for of in (of_one, of_two)]
    assert firsts[0].s == firsts[1].s == 0
    assert [step for step, _ in checkpoints(two, str(out))][:3] == [0, 2, 4]


@pytest.mark.slow
@pytest.mark.ci
def test_a_chat_model_goes_on_training_without_bos_and_keeps_its_end_tokens(hf_folder, tmp_path):
    """Its tokenizer names an end token and no bos, its generation config two end tokens."""
    folder = shutil.copytree(hf_folder, tmp_path / "chat")
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {"bos_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 9]}')
    assert call(tmp_path, f"from_pretrained = {str(folder)!r}", "--save") == 0
    [timestamp] = runs(str(tmp_path), all=True).index
    lm, tokenizer, *_ = load_run(find_run(timestamp, str(tmp_path)))
    assert (tokenizer.bos, tokenizer.eos, tokenizer.stops, lm.tokenizer.stops) == (None, 0, (0, 9), (0, 9))
    assert lm.sample("the", 4, as_str=False)[0] == tokenizer.encode_batch(["the"])[0][0]


@pytest.mark.slow
@pytest.mark.ci
def test_a_pretrained_tokenizer_without_special_tokens_trains(tmp_path):
    (folder := tmp_path / "bare").mkdir()
    characters = sorted({*"".join(TEXT), *"0123456789\n"})
    bare = RustTokenizer(models.BPE({character: i for i, character in enumerate(characters)}, []))
    bare.decoder = decoders.Fuse()
    bare.save(str(folder / "tokenizer.json"))
    fields = f"tokenizer_source_name = {str(folder)!r}\ndim = 16\nn_layers = 1\nn_heads = 2\nmax_seq_len = 16"
    assert call(tmp_path, fields, "--save") == 0
    [timestamp] = runs(str(tmp_path), all=True).index
    lm, tokenizer, *_ = load_run(find_run(timestamp, str(tmp_path)))
    assert lm.n_tokens == len(characters) + 4
    first = characters.index("t")
    assert tokenizer("t") == [tokenizer.bos, first]
    assert tokenizer.decode([tokenizer.bos, 0, first, tokenizer.eos]) == characters[0] + "t"
