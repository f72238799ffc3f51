"""The start of a call: what it says before heavy libraries are imported, and which calls need none of them."""

import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

import main
from common.repository import REPOSITORY
from train.grid.expand import GridError
from train.launch import sweep
from train.saving.code import Code, read_source

# Makes several calls, which are given as one text. Prints their exit codes, and the heavy modules imported by then.
SCRIPT = """
import sys, main
codes = []
for options in sys.argv[1].split(";"):
    try:
        codes.append(main.main(options.split()))
    except SystemExit as error:
        codes.append(error.code)
print("END", *codes, *(name for name in ("torch", "lightning", "torchmetrics", "pandas") if name in sys.modules))
"""


def calls(options: str) -> list[str]:
    """Return the exit codes of calls in one process, and the heavy modules that it has imported at the end."""
    command = [sys.executable, "-c", SCRIPT, options]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    assert "END" in done.stdout, done.stderr
    return done.stdout.splitlines()[-1].split()[1:]


def test_calls_that_read_only_text_import_nothing_heavy():
    wrong = ["--set=dimm=3", "--set=lr=[1", "--set=lrs=1"]
    options = ["--help", "--configs", "--config=test-synht", *(f"--config=test-synth {one}" for one in wrong)]
    assert calls(";".join(options)) == ["0", "0", "2", "2", "2", "2"]


@pytest.mark.slow
@pytest.mark.ci
def test_calls_that_train_nothing_import_no_lightning(tmp_path):
    out = f"--out {tmp_path}"
    wrong = ["--set=optimizer=adma --set=norm=rms", "--set=n_heads=5", "--set=from_saved=never"]
    options = ["--fields lr", "--fields zzz", "--tasks", f"--report=nothing-there {out}"]
    options += [f"--config=test-synth --no-wandb {one} {out}" for one in wrong]
    assert calls(";".join(options)) == ["0", "2", "0", "2", "2", "2", "2", "torch", "pandas"]


@pytest.mark.slow
def test_the_explorer_imports_no_lightning():
    code = (
        "import sys, model_explorer; model_explorer.runs(sys.argv[1]); assert 'lightning' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, "/nonexistent"], cwd=REPOSITORY, timeout=120, check=True)


def test_the_first_line_says_what_was_read(tmp_path, capsys, monkeypatch):
    class Enough(Exception):
        pass

    def stop(*_: object) -> None:
        raise Enough

    monkeypatch.setattr(main, "check_runs", stop)
    for options, line in (
        (["--config=copy", "--seed=[1,2,3]"], "configs/copy.txt: 6 runs"),
        (["--config=test"], "configs/test-nlp.txt, configs/test-synth.txt: 2 runs"),
        (["--config=test-synth"], "configs/test-synth.txt: 1 run"),
    ):
        with pytest.raises(Enough):
            main.main([*options, "--no-wandb", "--out", str(tmp_path)])
        assert capsys.readouterr().out == f"{line}\n"


def test_a_misspelt_name_is_answered_alone_and_a_wrong_value_with_all_others(capsys):
    assert main.main(["--config=test-synth", "--set=dimm=3", "--set=optimizer=adma", "--set=epochs=0"]) == 2
    errors = capsys.readouterr().err
    assert "'dimm'; did you mean 'dim'?" in errors
    assert "epochs = 0" in errors
    assert "adma" not in errors
    assert main.main(["--config=test-synth", "--set=optimizer=adma", "--set=epochs=0"]) == 2
    errors = capsys.readouterr().err
    assert "epochs = 0" in errors
    assert "there are: adamw, sgd, muon" in errors


def test_code_that_was_edited_before_it_was_loaded_is_refused(monkeypatch):
    now = {
        name: read_source(f"x = {i}".encode(), name) for i, name in enumerate(["train/run.py", "model/lm.py"])
    }
    version = SimpleNamespace(code=Code(now))
    monkeypatch.setattr(sweep, "code_of_this_process", lambda: version)
    for name, text, is_refused in (
        ("model/lm.py", "x = 1  # a comment", False),
        ("model/lm.py", "x = 2", True),
    ):
        edited = Code(now | {name: read_source(text.encode(), name)})
        monkeypatch.setattr(sweep.Code, "read", lambda root, edited=edited: edited)
        with pytest.raises(GridError, match=f"{name}: edited while") if is_refused else nullcontext():
            sweep.refuse_edited_code()
