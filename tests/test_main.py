"""The command line: exit codes, what is refused before anything is written, what a call leaves behind."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

import main
from explore.load import runs
from train.run import train_run

ROOT = Path(__file__).resolve().parents[1]
QUICK = [
    "--no-wandb",
    "--set",
    "n_samples=400",
    "--set",
    "epochs=1",
    "--set",
    "threads=1",
    "--set",
    "warmup_steps=2",
]


def call(tmp_path, *options: str) -> int:
    return main.main([*options, "--out", str(tmp_path / "out")])


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--config=tset"], r"--config=tset: no such config in .*configs; did you mean 'test'\?"),
        (["--config=test-synth", "--task=cpoy"], r"^--task=cpoy: dataset_name='cpoy' is neither .*did you mean 'copy'"),
        (["--config=test-synth", "--set", "dimm=3"], r"^--set dimm=3: there is no field 'dimm'; did you mean 'dim'\?"),
        (["--config=test-synth", "--set", "n_heads=[4,5]"], r"^--set n_heads=\[4,5\] and configs/test-synth\.txt:\d+: n_heads=5 must"),
        (["--config=test-synth", "--set", "task_args={'max_len': 3}"], r"task_args.*max_len.*did you mean 'max_length'"),
        (["--config=test-synth", "--set", "tokenizer_source_name=custom"], r"tokenizer_source_name='custom' is for text"),
        (["--config=test-synth", "--set", "max_seq_len=8"], r"max_seq_len=8"),
        (["--config=test-synth", "--set", "positions=rotery"], r"positions='rotery' does not exist; did you mean 'rotary'"),
        (["--config=test-synth", "--set", "freeze=('x.*',)"], r"freeze=\('x\.\*',\): none of \d+ parameters matches 'x\.\*'"),
        (["--config=test-synth", "--seed=x"], r"^--seed=x: TrainParams cannot have random_seed = 'x'"),
        (["--config=test-nlp", "--task=ptb"], r"ptb.*--task=sotu"),
        (["--config=test-nlp", "--set", "tokenizer_source_name=bert-base-uncased"], r"tokenizer_source_name=.bert-base-uncased. is not on this machine"),
        (["--config=test-nlp", "--set", "debug_crop=2"], r"debug_crop=2"),
        (["--config=test-synth", "--gpu-id=99"], r"^--gpu-id=99: this machine has \d+ GPUs"),
        (["--config=test-synth", "--baseline=dim=64"], r"^--baseline and --compare are about the report of saved runs: add --save"),
        (["--config=test-synth", "--save", "--set", "dim=[64,32]", "--baseline=dim=65"], r"^no report is possible: there is no variant 'dim=65'"),
    ],
)  # fmt: skip
def test_a_call_that_cannot_work_is_refused_and_leaves_nothing(
    tmp_path, capsys, monkeypatch, options, expected
):
    monkeypatch.delenv("WHATIF_DATA", raising=False)
    assert call(tmp_path, *QUICK, *options) == 2
    output = capsys.readouterr()
    assert re.search(expected, output.err, re.MULTILINE), output.err
    assert "Traceback" not in output.err
    assert len(output.err.splitlines()) <= 2
    assert files(tmp_path) == []


def test_mistakes_of_text_and_of_params_are_listed_together(tmp_path, capsys):
    options = [
        "--task=cpoy",
        "--set",
        "positions=rotery",
        "--set",
        "lr_schedule=cosin",
        "--set",
        "batch_size=0",
    ]
    assert call(tmp_path, "--config=test-synth", *options) == 2
    error = capsys.readouterr().err
    for word in ("cpoy", "rotery", "cosin", "batch_size = 0"):
        assert word in error, error


@pytest.mark.slow
@pytest.mark.ci
def test_without_save_a_call_leaves_only_its_log_and_its_cache(tmp_path, capsys):
    options = ["--set", "debug_crop=4", "--set", "val_pct=25.0"]
    short = [option.replace("epochs=1", "early_stop_nsamples=64") for option in QUICK]
    assert call(tmp_path, "--config=test-nlp", *short, *options) == 0
    assert {name.split("/")[1] for name in files(tmp_path)} == {"logs", "cache"}
    shown, [log] = capsys.readouterr().out, list((tmp_path / "out" / "logs").iterdir())
    for column in ("val", "loss", "bits/", "accu-", "chance", "para-", "tokens", "seconds"):
        assert column in shown
        assert column in log.read_text()
    assert "sample: " in shown


@pytest.mark.slow
@pytest.mark.ci
def test_a_dry_run_shows_the_grid_and_trains_nothing(tmp_path, capsys):
    assert (
        call(tmp_path, "--config=test-synth", *QUICK, "--dry-run", "--set", "dim=[32,64]", "--seed=[1,2]")
        == 0
    )
    shown = capsys.readouterr().out
    rows = [line.split() for line in shown.splitlines() if re.match(r"\s+\d", line)]
    assert [row[1:3] for row in rows] == [["1", "32"], ["2", "32"], ["1", "64"], ["2", "64"]]
    assert rows[0][3] == rows[1][3] != rows[2][3], "parameters"
    assert rows[0][4] == rows[1][4] != rows[2][4], "state, the cache of keys and values"
    assert {row[5] for row in rows} == {"6"}, "steps: 400 samples less 2 x 2 %, in batches of 64"
    assert not (tmp_path / "out" / "logs").exists()


def test_a_saved_grid_is_found_by_the_explorer(tmp_path):
    assert call(tmp_path, "--config=test-synth", *QUICK, "--save", "--set", "dim=[16,32]") == 0
    table = runs(out=str(tmp_path / "out"), all=True)
    assert list(table["status"]) == ["complete", "complete"]
    assert sorted(table["dim"]) == [16, 32]
    assert table["val_loss"].notna().all()


@pytest.mark.slow
@pytest.mark.ci
def test_the_name_of_a_variant_is_seen_and_kept(tmp_path, capsys, monkeypatch):
    (tmp_path / "configs").mkdir()
    text = (main.CONFIGS / "test-synth.txt").read_text().replace("dim = 64\n", "")
    text += "\nGrid\nvariants = {'narrow': {'dim': 16, 'norm': 'rmsnorm'}, 'wide': {'dim': [32, 48]}}\n"
    (tmp_path / "configs" / "widths.txt").write_text(text)
    monkeypatch.setattr(main, "CONFIGS", tmp_path / "configs")
    monkeypatch.setattr(main.Namer, "run_name", lambda namer: f"my-{namer.variant}")
    assert call(tmp_path, "--config=widths", *QUICK, "--save") == 0
    shown = capsys.readouterr().out
    assert "run 1 of 3: variant narrow, dim 16, " in shown
    assert "norm" not in shown, "the variant's name says it"
    table = shown[shown.rindex("accu-") :]
    assert re.findall(r"^ +(\d) +(\w+) +(\d+) ", table, re.MULTILINE) == [
        ("1", "narrow", "16"),
        ("2", "wide", "32"),
        ("3", "wide", "48"),
    ]
    out = str(tmp_path / "out")
    assert list(runs(out=out, all=True)["variant"]) == ["narrow", "wide", "wide"]
    assert sorted(runs(out=out, variant="wide", all=True)["dim"]) == [32, 48]
    assert all("/my-wide/" in folder for folder in runs(out=out, variant="wide", all=True)["folder"])
    assert call(tmp_path, "--config=widths", *QUICK, "--dry-run", "--set", "variant=narrow") == 0
    assert re.search(r"^ +1 +narrow +[\d,]+ +6 ", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.ci
def test_an_ablation_in_run_all_is_run_with_ablate_only(tmp_path, capsys, monkeypatch):
    def run_all(params, ablate):
        return [params, params.changed(positions="none")] if ablate else [params]

    monkeypatch.setattr(main, "run_all", run_all)
    for options, n_runs in ((["--ablate"], 2), ([], 1)):
        assert call(tmp_path, "--config=test-synth", *QUICK, "--dry-run", *options) == 0
        assert len(re.findall(r"^\s+\d", capsys.readouterr().out, re.MULTILINE)) == n_runs


def test_a_failing_run_is_shown_and_the_other_runs_go_on(tmp_path, capsys, monkeypatch):
    real = train_run

    def break_one(run, *args, **options):
        if run.params.model.dim == 32:
            raise RuntimeError("out of memory")
        return real(run, *args, **options)

    monkeypatch.setattr("train.run.train_run", break_one)
    assert call(tmp_path, "--config=test-synth", *QUICK, "--set", "dim=[16,32,64]") == 1
    shown = capsys.readouterr().out
    assert "run 2 failed with dim 32" in shown
    assert "RuntimeError: out of memory" in shown
    table = shown[shown.rindex("accu-") :]
    assert re.search(r"2 +32 +-.*failed: RuntimeError: out of memory", table)
    assert len(re.findall(r"finished", table)) == 2


def test_a_diverged_run_makes_the_exit_code_1(tmp_path, capsys):
    options = [
        "--set",
        "lr=1e9",
        "--set",
        "optimizer=sgd",
        "--set",
        "gradient_clip_val=None",
        "--set",
        "batch_size=4",
    ]
    assert call(tmp_path, "--config=test-synth", *QUICK, *options) == 1
    assert "diverged: training loss" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("where", [pytest.param("training", marks=pytest.mark.ci), "twice"])
def test_ctrl_c_saves_and_leaves(tmp_path, where):
    command = [
        sys.executable,
        str(ROOT / "main.py"),
        "--config=test-synth",
        "--no-wandb",
        "--save",
        "--seed=[1,2]",
    ]
    command += ["--set", "epochs=1000", "--set", "val_every=20", "--set", "threads=1", "--out", str(tmp_path)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path
    )
    deadline = time.time() + 120
    for line in process.stdout:
        if line.startswith("step"):
            break
        assert time.time() < deadline
    process.send_signal(signal.SIGINT)
    if where == "twice":
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=120)[0]
    assert process.returncode in (130, -signal.SIGINT), output  # a shell shows both as 130
    assert "Traceback" not in output, output
    [folder] = runs(out=str(tmp_path), all=True).itertuples()
    if where == "training":
        assert folder.status == "complete"
        assert folder.stopped == "interrupted"
        assert "run 2" not in output
    else:
        assert folder.status.startswith(("training", "incomplete", "complete"))


def test_help_explains_every_option_with_an_example(capsys):
    with pytest.raises(SystemExit) as stop:
        main.main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for option in re.findall(r"^  (--[a-z-]+)", shown, re.MULTILINE):
        if option != "--help":
            section = shown[shown.index(f"  {option}") :]
            assert re.search(
                rf": .*{option}", section.split("\n  --")[0].replace("\n", " ") + section[:400]
            ), option


def test_namer_follows_the_design():
    args = main.parse_arguments(["--config=test-nlp", "--wandb-proj-name=trial"])
    from train.grid.params import SECTIONS, Params

    namer = main.Namer(Params(*(cls() for cls in SECTIONS.values())), args)
    assert namer.wandb_proj_name() == "base-trial-sotu"
    assert namer.run_name() is None
    assert (
        namer.save_folder_name("2024-04-22--16-17-00", "calm-sky-1")
        == "test-nlp/sotu/calm-sky-1/2024-04-22--16-17-00"
    )
    assert namer.save_folder_name("2024-04-22--16-17-00") == "test-nlp/sotu/2024-04-22--16-17-00"


@pytest.mark.parametrize(
    ("method", "wrong", "said"),
    [
        ("save_folder_name", lambda namer, timestamp, wandb_name=None: f"../{timestamp}", "save_folder_name gives '../"),
        ("run_name", lambda namer: namer.model_params.dmi, "AttributeError.*'dmi'"),
    ],
)  # fmt: skip
def test_a_mistake_in_namer_is_found_before_anything_is_trained(
    tmp_path, capsys, monkeypatch, method, wrong, said
):
    monkeypatch.setattr(main.Namer, method, wrong)
    assert call(tmp_path, "--config=test-synth", *QUICK, "--save") == 2
    assert re.match(f"Namer in main.py: .*{said}", capsys.readouterr().err)
    assert not (tmp_path / "out" / "saved-models").exists()


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert main.main(["--config=test-synth", *QUICK, "--save", "--out", str(blocked / "out")]) == 2
    error = capsys.readouterr().err
    assert str(blocked) in error
    assert "Traceback" not in error


@pytest.fixture
def ptb(tmp_path, monkeypatch):
    """Penn Treebank's layout on this machine, as the hub's parquet branch has it."""
    folder = tmp_path / "data" / "ptb"
    folder.mkdir(parents=True)
    rng = random.Random(0)
    words = [
        "the",
        "<unk>",
        "of",
        "to",
        "a",
        "in",
        "and",
        "'s",
        "that",
        "for",
        "N",
        "$",
        "is",
        "it",
        "said",
        "on",
        "by",
        "at",
    ]
    for split, n in (("train", 60), ("validation", 12), ("test", 12)):
        sentences = [" ".join(rng.choices(words, k=rng.randint(5, 25))) for _ in range(n)]
        pd.DataFrame({"sentence": sentences}).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    monkeypatch.setenv("WHATIF_DATA", str(folder.parent))


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("options", [["--no-wandb"], [], ["--save"]], ids=" ".join)
def test_the_commands_of_the_first_example_run_with_and_without_wandb_and_save(
    ptb, tmp_path, capsys, options
):
    assert call(tmp_path, "--config=test-nlp", "--task=ptb", "--set", "epochs=2", *options) == 0
    shown = capsys.readouterr().out
    assert len(re.findall(r"^  sample: ", shown, re.MULTILINE)) == 2, "a sample at the end of each epoch"
    wandb = list((tmp_path / "out").rglob("*.wandb"))
    assert len(wandb) == ("--no-wandb" not in options)
    saved = list((tmp_path / "out" / "saved-models").glob("test-nlp/ptb/*/model.safetensors"))
    assert len(saved) == ("--save" in options)


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")
def test_a_full_disk_fails_the_run_and_leaves_no_half_saved_one(tmp_path, capsys):
    disk = tmp_path / "out"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", disk], check=False).returncode:
        pytest.skip("no tmpfs here")
    try:
        assert call(tmp_path, "--config=test-synth", *QUICK, "--save", "--set", "dim=[16,128]") == 1
        shown = capsys.readouterr().out
        assert re.search(r"run 2 failed with dim 128:.*No space left on device", shown, re.DOTALL)
        assert re.search(r"^ +2 +128 .*failed: ", shown, re.MULTILINE)
        complete, failed = runs(out=str(disk), all=True)["status"]
        assert complete == "complete"
        assert re.fullmatch(r"failed: OSError: .*No space left on device( \(os error 28\))?", failed)
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize(
    ("name", "fault"),
    [("a#b", "must not contain #"), ("50%?", "must not contain % ?"), ("x" * 130, "longer than 128")],
)
def test_a_project_name_that_wandb_refuses_is_known_beforehand(tmp_path, capsys, name, fault):
    online = ["--config=test-synth", "--wandb-proj-name", name, "--dry-run"]
    assert call(tmp_path, *online) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("wandb refuses the project name 'base-")
    assert fault in line
    assert call(tmp_path, *online, "--no-wandb") == 0


def test_a_config_that_is_no_text_is_one_sentence_and_exit_code_2(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(main, "CONFIGS", tmp_path)
    (tmp_path / "mine.txt").write_bytes(b"TrainParams\nlr = 0.1 # \xff\n")
    (tmp_path / "folder.txt").mkdir()
    for name, fault in (
        ("mine", "not UTF-8 text: byte 23 is 0xff"),
        ("folder", "cannot be read: Is a directory"),
    ):
        assert call(tmp_path, f"--config={name}", "--no-wandb") == 2
        assert capsys.readouterr().err == f"{tmp_path.name}/{name}.txt: {fault}\n"


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (PermissionError(13, "Permission denied", "/data/text.parquet"), "cannot use a file or folder: "),
        (OSError(5, "Input/output error"), "cannot use a file or folder: "),
        (PermissionError(13, "Permission denied", "OUT/logs"), "cannot write outputs (see --out): "),
        (OSError(28, "No space left on device"), "cannot write outputs (see --out): "),
    ],
)
def test_an_error_while_reading_is_not_reported_as_one_of_writing(
    error, sentence, tmp_path, monkeypatch, capsys
):
    if error.filename:
        error.filename = error.filename.replace("OUT", str(tmp_path / "out"))

    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(main, "expand_grid", lambda *_, **__: fails())
    assert call(tmp_path, "--config=test-synth", "--no-wandb") == 2
    assert capsys.readouterr().err == f"{sentence}{error}\n"


@pytest.mark.slow
def test_a_plain_run_does_not_import_the_courses(tmp_path):
    code = (
        "import sys, main\n"
        "assert main.main(sys.argv[1:]) == 0\n"
        "assert not [name for name in sys.modules if name.partition('.')[0] == 'learn']\n"
        "from model.context import layer_kinds\n"
        "assert layer_kinds['student'].__module__ == 'learn.layer'\n"
    )
    options = [
        "--config=test-synth",
        "--no-wandb",
        "--set=n_samples=40",
        "--set=threads=1",
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(
        [sys.executable, "-c", code, *options], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
