"""Run folders: what is saved is what is loaded, timestamps are unique, a kill leaves no half run."""

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data.data_params import DataParams
from tests.train.little_run import REPOSITORY, TINY, WHEN, make_lm, python, save_run
from train.saving.run_folder import RunFolder, load_run, output_root, run_folders
from train.train_params import TrainParams

ARCHITECTURES = {
    "ours": TINY,
    "untied, sin": replace(TINY, tied_embeddings=False, positions="sin"),
    "rotary, separate heads": replace(TINY, positions="rotary", separate_heads=True),
    "torch's": replace(TINY, layer_architecture="torch-transformer", bias=False),
    "lstm": replace(TINY, layer_architecture="torch-lstm", positions="none"),
}


@pytest.mark.parametrize("model_params", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_a_loaded_run_is_the_saved_one(tmp_path, model_params):
    lm = make_lm(model_params).eval()
    loaded = load_run(save_run(tmp_path, lm, val_loss=0.5))
    assert torch.equal(loaded.lm("abcabc"), lm("abcabc"))
    assert not any(module.training for module in loaded.lm.modules())
    assert loaded.params.model == model_params
    assert loaded.params.train == TrainParams(betas=(0.5, 0.75))
    assert loaded.params.data == DataParams(dataset_name="copy", task_args={"sizes": (1, 2)})
    (nan, third) = loaded.train_stats["stat/val_loss:main"]
    assert nan.v != nan.v
    assert third == (4, 16, 1, 1 / 3)
    assert loaded.about["summary"] == {"val_loss": 0.5}
    assert loaded.about["command"] == ["main.py", "--save"]
    assert loaded.about["timestamp"] == "2024-04-22--16-17-00"
    assert loaded.about["versions"]["torch"] == version("torch")


def test_shared_weights_are_saved_once_and_shared_again(tmp_path):
    folder = save_run(tmp_path)
    saved = load_file(folder / "model.safetensors")
    assert sum(tensor.shape == (12, 8) for tensor in saved.values()) == 1
    lm = load_run(folder).lm
    assert lm.unembed.weight is lm.embed.tokens.weight


def test_double_precision_stays(tmp_path):
    lm = make_lm().double().eval()
    assert torch.equal(load_run(save_run(tmp_path, lm)).lm("abc"), lm("abc"))


def test_output_root(monkeypatch, tmp_path):
    monkeypatch.delenv("WHATIF_OUT", raising=False)
    assert output_root() == REPOSITORY.parent
    monkeypatch.setenv("WHATIF_OUT", str(tmp_path / "env"))
    assert output_root() == tmp_path / "env"
    assert output_root(str(tmp_path / "arg")) == tmp_path / "arg"
    assert not list(tmp_path.iterdir())


def claim_three(root: Path) -> list[str]:
    return [RunFolder.claim(root, lambda t: f"{os.getpid()}/{t}", when=WHEN).timestamp for _ in range(3)]


def test_timestamps_are_unique_between_folders_and_processes(tmp_path):
    first = RunFolder.claim(tmp_path, lambda timestamp: f"elsewhere/{timestamp}", when=WHEN)
    assert first.path == tmp_path / "saved-models/elsewhere/2024-04-22--16-17-00.partial"
    first.finish()
    with ProcessPoolExecutor(4) as pool:
        claimed = [timestamp for three in pool.map(claim_three, [tmp_path] * 4) for timestamp in three]
    assert sorted(claimed) == [f"2024-04-22--16-17-{second:02}" for second in range(1, 13)]
    assert len(list(run_folders(tmp_path))) == 13
    assert {path.name for path in (tmp_path / "saved-models" / ".timestamps").iterdir()} == {
        *claimed,
        "2024-04-22--16-17-00",
    }


@pytest.mark.parametrize("subfolder", ["../../{t}", "/tmp/{t}", "{t}/model", "a/../../{t}", "copy", "{t}x"])
def test_a_name_that_could_not_be_found_again_is_refused(tmp_path, subfolder):
    with pytest.raises(ValueError, match="save_folder_name gives"):
        RunFolder.claim(tmp_path, lambda timestamp: subfolder.format(t=timestamp))
    assert not list((tmp_path / "saved-models").iterdir())


KILLED = """
    import os, random, signal, sys, time
    from pathlib import Path
    sys.path.insert(0, os.getcwd())
    from tests.train.little_run import make_lm, save_run
    from train.saving.provenance import code_of_this_process

    code_of_this_process()  # asks git, once for all children
    root, lm = Path(sys.argv[1]), make_lm()

    def in_child(work):
        child = os.fork()
        if child == 0:
            work()
            os._exit(0)
        return child

    def save_and_die_at(moment):  # the so manieth time that the file system is asked for something
        asked = 0
        def hook(event, args):
            nonlocal asked
            if event in ("open", "os.mkdir", "os.rename", "os.rmdir", "os.scandir"):
                asked += 1
                if asked == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        save_run(root / f"moment-{moment}", lm)

    moment, status = 0, None
    while status != 0:
        moment += 1
        status = os.waitpid(in_child(lambda: save_and_die_at(moment)), 0)[1]
    print(moment)

    def save_for_ever():
        while True:
            save_run(root / "random", lm)

    for _ in range(8):
        child = in_child(save_for_ever)
        time.sleep(random.uniform(0.01, 0.06))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
"""


@pytest.mark.slow
def test_a_kill_leaves_a_complete_run_or_one_named_incomplete(tmp_path):
    process = python(KILLED, tmp_path)
    assert process.returncode == 0, process.stderr
    assert int(process.stdout) > 10  # moments at which it was killed
    folders = [folder for root in tmp_path.iterdir() for folder in run_folders(root)]
    partial = [folder for folder in folders if folder.name.endswith(".partial")]
    assert len(partial) > 10
    assert len(partial) < len(folders)
    for folder in set(folders) - set(partial):
        assert load_run(folder).train_stats
