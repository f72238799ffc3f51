"""Run folders: what is saved is what is loaded, a kill leaves no half run, a stranger's folder runs nothing."""

import json
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from data.data_params import DataParams
from data.tokenizer import char_tokenizer
from model.lm import LM
from model.model_params import ModelParams
from train import provenance, saver
from train.params import Params
from train.saver import RunFolder, load, output_root, run_folders, save
from train.stats import Stats
from train.train_params import TrainParams

REPOSITORY = Path(__file__).resolve().parents[2]
WHEN = datetime(2024, 4, 22, 16, 17, 0)
TINY = ModelParams(dim=8, n_layers=2, n_heads=2, max_seq_len=16)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def make_lm(model_params: ModelParams = TINY) -> LM:
    torch.manual_seed(0)
    return LM(model_params, char_tokenizer("abcdefgh"))


def save_run(root: Path, lm: LM | None = None, **summary: object) -> Path:
    lm = lm or make_lm()
    params = Params(
        DataParams(dataset_name="copy", task_args={"sizes": (1, 2)}),
        TrainParams(betas=(0.5, 0.75)),
        lm.model_params,
    )
    stats = Stats()
    stats.log("val_loss:main", float("nan"), step=3, n_samples=12)
    stats.log("val_loss:main", 1 / 3, step=4, n_samples=16)
    folder = RunFolder.claim(root, lambda timestamp: f"test/copy/{timestamp}", when=WHEN)
    save(folder.path, params=params, lm=lm, stats=stats, summary=summary, command=["main.py", "--save"])
    folder.finish()
    return folder.path


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
    loaded = load(save_run(tmp_path, lm, val_loss=0.5))
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
    assert loaded.about["versions"]["torch"] == torch.__version__


def test_shared_weights_are_saved_once_and_shared_again(tmp_path):
    folder = save_run(tmp_path)
    saved = load_file(folder / "model.safetensors")
    assert sum(tensor.shape == (12, 8) for tensor in saved.values()) == 1
    lm = load(folder).lm
    assert lm.unembed.weight is lm.embed.tokens.weight


def test_double_precision_stays(tmp_path):
    lm = make_lm().double().eval()
    assert torch.equal(load(save_run(tmp_path, lm)).lm("abc"), lm("abc"))


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
    assert not [path for path in (tmp_path / "saved-models").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("subfolder", ["../../{t}", "/tmp/{t}", "{t}/model", "a/../../{t}", "copy", "{t}x"])
def test_a_name_that_could_not_be_found_again_is_refused(tmp_path, subfolder):
    with pytest.raises(ValueError, match="save_folder_name gives"):
        RunFolder.claim(tmp_path, lambda timestamp: subfolder.format(t=timestamp))
    assert not list((tmp_path / "saved-models").iterdir())


KILLED = """
    import os, random, signal, sys, time
    from pathlib import Path
    sys.path.insert(0, os.getcwd())
    from tests.train.test_saver import make_lm, save_run
    from train.provenance import code_of_this_process

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


def test_a_kill_leaves_a_complete_run_or_one_named_incomplete(tmp_path):
    process = python(KILLED, tmp_path)
    assert process.returncode == 0, process.stderr
    assert int(process.stdout) > 10  # moments at which it was killed
    folders = [folder for root in tmp_path.iterdir() for folder in run_folders(root)]
    partial = [folder for folder in folders if folder.name.endswith(".partial")]
    assert len(partial) > 10
    assert len(partial) < len(folders)
    for folder in set(folders) - set(partial):
        assert load(folder).train_stats


def python(code: str, *args: object, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


class Bomb:
    """Unpickling it touches a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


OURS = [
    "params.json",
    "about.json",
    "model.safetensors",
    "stats.json",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_ids.json",
]


def refusal(folder: Path) -> str:
    """The one sentence with which `folder` is refused."""
    with pytest.raises(ValueError, match=str(folder)) as caught:
        load(folder)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert len(sentence) < 600 + 2 * len(str(folder))
    return sentence


@pytest.mark.parametrize("name", OURS)
def test_a_pickle_under_our_name_is_refused_and_never_run(tmp_path, name):
    folder = save_run(tmp_path)
    (folder / name).write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    refusal(folder)
    assert not (tmp_path / "exploded").exists()


def test_files_we_do_not_read_are_not_read(tmp_path):
    folder = save_run(tmp_path)
    for name in (
        "diff.patch",
        "log.txt",
        "model.pt",
        "last.ckpt",
        "pytorch_model.bin",
        "tokenizer/tokenizer.pkl",
        "model.py",
    ):
        (folder / name).write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    torch.save(Bomb(tmp_path / "exploded"), folder / "model.pth")
    load(folder)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe", b"null", b"[1]", b'{"a": {}}', b'{"a":' * 100_000, b'{"params":' + b"[" * 900 + b"]" * 900 + b"}", b"1" * 10_000],
    ids=["empty", "no utf-8", "null", "list", "foreign", "deep, open", "deep, closed", "long number"],
)  # fmt: skip
def test_a_damaged_file_is_refused_in_one_sentence(tmp_path, name, content):
    folder = save_run(tmp_path)
    (folder / name).write_bytes(content)
    refusal(folder)


@pytest.mark.parametrize("name", OURS)
def test_a_missing_file_a_folder_or_a_pipe_is_refused_at_once(tmp_path, name):
    folder = save_run(tmp_path)
    signal.alarm(20)
    try:
        (folder / name).unlink()
        refusal(folder)
        (folder / name).mkdir()
        refusal(folder)
        (folder / name).rmdir()
        os.mkfifo(folder / name)
        refusal(folder)
    finally:
        signal.alarm(0)


@pytest.mark.parametrize("size", [2**60, 2**62 + 5, 90_000_000, 2**33])
def test_a_huge_header_is_refused(tmp_path, size):
    folder = save_run(tmp_path)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", size) + b"{" * 1000)
    refusal(folder)


def edit_params(folder: Path, section: str, **values: object) -> None:
    params = json.loads((folder / "params.json").read_text())
    params[section] |= values
    (folder / "params.json").write_text(json.dumps(params))


HUGE = [
    {"dim": 2**40},
    {"dim": 2**62, "n_heads": 2**61},
    {"dim": 10**30},
    {"n_layers": 10**9},
    {"dim": 2**40, "n_heads": 2**39, "separate_heads": True},
    {"dim_ff": 2**50},
    {"max_seq_len": 2**50},
    {"positions": "sin", "max_seq_len": 2**36},
    {"positions": "rotary", "max_seq_len": 2**36},
    {"positions": "none", "max_seq_len": 10**30},
    {"layer_architecture": "torch-lstm", "n_layers": 10**9},
]


@pytest.mark.parametrize("values", HUGE, ids=str)
def test_params_of_a_huge_model_are_refused_before_it_is_built(tmp_path, values):
    positions = values.get("positions", "learned")
    folder = save_run(tmp_path, make_lm(replace(TINY, positions=positions)))
    edit_params(folder, "model", **values)
    start = time.perf_counter()
    if values == {"positions": "none", "max_seq_len": 10**30}:
        load(folder)  # a number and nothing more
    else:
        refusal(folder)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    ("section", "values", "told"),
    [
        ("model", {"dim": "8"}, "ModelParams.dim"),
        ("model", {"dim": 8.5}, "ModelParams.dim"),
        ("model", {"n_heads": 3}, "n_heads=3 must divide dim=8"),
        ("model", {"layer_architecture": "os.system"}, "layer_architecture='os.system'"),
        ("train", {"lr": float("nan")}, "TrainParams.lr"),
        ("train", {"betas": [[[]]]}, "TrainParams.betas"),
        ("data", {"dataset_name": ["copy"]}, "DataParams.dataset_name"),
        ("model", {"__init__": 1}, "ModelParams has no field '__init__'"),
        ("train", {"x" * 10_000: 1}, "TrainParams has no field 'xxx"),
    ],
)
def test_params_that_are_none_are_refused_by_name(tmp_path, section, values, told):
    folder = save_run(tmp_path)
    edit_params(folder, section, **values)
    assert told in refusal(folder)


def test_nothing_is_allocated_for_a_model_that_does_not_fit(tmp_path, monkeypatch):
    folder = save_run(tmp_path)
    edit_params(folder, "model", dim=16)
    devices = []

    def spy(*args):
        devices.append(torch.get_default_device().type)
        return LM(*args)

    monkeypatch.setattr(saver, "LM", spy)
    refusal(folder)
    edit_params(folder, "model", dim=8)
    load(folder)
    assert devices == ["meta", "meta", "cpu"]


def test_weights_that_do_not_fit_are_named(tmp_path):
    folder = save_run(tmp_path)
    weights = load_file(folder / "model.safetensors")
    name = "decoder.layers.1.linear1.weight"
    save_file(weights | {name: torch.zeros(3, 8)}, folder / "model.safetensors")
    assert f"'{name}' is (3, 8) there, (32, 8) by the params" in refusal(folder)
    save_file(weights | {"extra": torch.zeros(1)}, folder / "model.safetensors")
    assert "'extra' is (1,) there, absent by the params" in refusal(folder)
    del weights[name]
    save_file(weights, folder / "model.safetensors")
    assert f"'{name}' is absent there" in refusal(folder)


def test_a_commit_is_printed_only_if_it_is_one(tmp_path):
    folder = save_run(tmp_path)
    edit_params(folder, "model", gone=1)
    about = json.loads((folder / "about.json").read_text())
    for commit, told in [
        (COMMIT, f"saved at commit {COMMIT}"),
        ("\x1b[2J", "an unknown commit"),
        ([], "an unknown commit"),
    ]:
        (folder / "about.json").write_text(json.dumps(about | {"commit": commit}))
        assert told in refusal(folder)


# Later code: a copy of the repository, edited between saving and loading.


@pytest.fixture(scope="module")
def copy_of_repo(tmp_path_factory):
    copy = tmp_path_factory.mktemp("copy") / "whatif"
    for folder in ("data", "model", "train", "tests"):
        shutil.copytree(REPOSITORY / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    git(copy, "init", "-q")
    git(copy, "add", ".")
    git(copy, "commit", "-qm", "as it was")
    return copy


def git(folder: Path, *args: str) -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *who, *args], cwd=folder, check=True, capture_output=True, text=True).stdout


SAVE = "import sys; from pathlib import Path; from tests.train.test_saver import save_run; print(save_run(Path(sys.argv[1])))"
LOAD = "import sys; from pathlib import Path; from train.saver import load; print(load(Path(sys.argv[1])).params)"


@pytest.fixture(scope="module")
def old_run(copy_of_repo, tmp_path_factory):
    process = python(SAVE, tmp_path_factory.mktemp("old"), cwd=copy_of_repo)
    assert process.returncode == 0, process.stderr
    return Path(process.stdout.strip())


def load_after(copy: Path, folder: Path, file: str, before: str, after: str) -> subprocess.CompletedProcess:
    """`folder` loaded by the code of `copy` with one edit, which is then undone."""
    text = (copy / file).read_text()
    assert before in text
    (copy / file).write_text(text.replace(before, after))
    try:
        return python(LOAD, folder, cwd=copy)
    finally:
        (copy / file).write_text(text)


def test_a_field_added_since_has_its_default_and_a_changed_model_is_announced(copy_of_repo, old_run):
    field = "    n_layers: NonNegativeInt = 4\n"
    new = load_after(
        copy_of_repo, old_run, "model/model_params.py", field, field + "    inject_relu: bool = False\n"
    )
    assert "inject_relu=False" in new.stdout, new.stderr
    commit = git(copy_of_repo, "rev-parse", "HEAD").strip()
    assert [line for line in new.stdout.splitlines() if "model/ has changed" in line and commit in line]
    same = load_after(copy_of_repo, old_run, "train/schedules.py", "import math", "import math  # edited")
    assert "ModelParams" in same.stdout
    assert "has changed" not in same.stdout


@pytest.mark.parametrize("after", ["    wsd_share: float = 0.2\n", ""], ids=["renamed", "removed"])
def test_a_field_gone_since_is_refused_by_name_with_its_commit(copy_of_repo, old_run, after):
    before = next(
        line for line in (copy_of_repo / "train/train_params.py").read_text().splitlines(keepends=True) if "wsd_decay_frac" in line
    )  # fmt: skip
    loaded = load_after(copy_of_repo, old_run, "train/train_params.py", before, after)
    assert loaded.returncode != 0
    last = loaded.stderr.strip().splitlines()[-1]
    commit = git(copy_of_repo, "rev-parse", "HEAD").strip()
    assert last.startswith("ValueError")
    assert f"TrainParams has no field 'wsd_decay_frac'; the run was saved at commit {commit}" in last


def test_the_diff_holds_our_code_and_nothing_else(tmp_path, monkeypatch):
    ours, secret = tmp_path / "ours", "sk-secret"
    files = {
        "main.py": "a = 1\n",
        "model/lm.py": "b = 1\n",
        "configs/test.txt": "c = 1\n",
        "README.md": "d\n",
        "keys.json": "{}\n",
    }
    write(ours, files | {".gitignore": "ignored.py\n"})
    git(ours, "init", "-q")
    git(ours, "add", ".")
    git(ours, "commit", "-qm", "as it was")
    git(ours, "config", "diff.noprefix", "true")  # whatever a user's git is set to
    clean = tmp_path / "clean"
    git(tmp_path, "clone", "-q", str(ours), str(clean))
    changed = {
        "main.py": "a = 2\n",
        "model/lm.py": "b = 2\n",
        "configs/test.txt": "c = 2\n",
        "model/new/idea.py": "e = 1\n",
        "top.py": "",
    }
    others = ["README.md", "keys.json", ".env", "model/notes.txt", "ignored.py", "venv/lib/site.py"]
    write(ours, changed | dict.fromkeys(others, secret))
    monkeypatch.setattr(provenance, "REPOSITORY", ours)
    code = provenance.code_of_this_process.__wrapped__()
    assert secret.encode() not in code.diff
    (tmp_path / "diff.patch").write_bytes(code.diff)
    git(clean, "apply", "--allow-empty", str(tmp_path / "diff.patch"))
    assert {name: (clean / name).read_text() for name in changed} == changed
    assert code.commit == git(ours, "rev-parse", "HEAD").strip()


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_outside_git_there_is_no_commit_and_no_diff(tmp_path, monkeypatch):
    write(tmp_path, {"model/lm.py": "b = 1\n"})
    monkeypatch.setattr(provenance, "REPOSITORY", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    code = provenance.code_of_this_process.__wrapped__()
    assert (code.commit, code.diff) == (None, b"")
    write(tmp_path, {"model/lm.py": "b = 2\n"})
    assert provenance.hash_of_model() != code.model_hash
    monkeypatch.setenv("PATH", "")
    assert provenance.code_of_this_process.__wrapped__().commit is None
