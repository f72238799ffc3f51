"""Two processes train exactly what one does with batches twice as large, and only the first one prints and writes."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data.data_params import DataParams
from explore.load import runs
from model.model_params import ModelParams
from tests.train.saving.test_claims import claim_of_saved, claimed_elsewhere
from train.data import make_data
from train.launch.problems import sharding_problems
from train.optimizers import by_role
from train.train_params import TrainParams

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = {
    "dataset_name": "maskedcopy",
    "task_args": {"max_length": 8},
    "n_samples": 150,  # 144 to train on: the last step is too short to give every process a batch
    "dim": 16,
    "n_layers": 1,
    "freeze": ("embed.positions.*",),
    "accumulate_grad_batches": 2,
    "random_seed": [1, 2],
    "epochs": 2,
    "warmup_steps": 2,
    "hyperparams_log_freq": 1,
    "precision": "64-true",
    "threads": 1,
}


def command_of(out: Path, **fields) -> list[str]:
    command = [sys.executable, str(ROOT / "main.py"), "--config=test-synth", "--no-wandb", "--save"]
    command += ["--out", str(out)]
    return command + [
        word for key, value in (OPTIONS | fields).items() for word in ("--set", f"{key}={value}")
    ]


def train(out: Path, *options: str, **fields) -> tuple[str, list[Path]]:
    """Run main.py and return its output and the saved runs."""
    done = subprocess.run(
        [*command_of(out, **fields), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout
    return done.stdout, [path.parent for path in sorted(out.rglob("model.safetensors"))]


EXACT, ROUNDED = {"rtol": 1e-9, "atol": 1e-11}, {"rtol": 1e-3, "atol": 1e-5}
# With AdamW in float32, rounding errors would grow to the size of gradients that ought to be zero.
IN_FLOAT32 = {"precision": "32-true", "optimizer": "sgd", "lr": 0.1}


MIXTURE = {
    "dataset_name": {"sotu": 3, "pydoc": 1},
    "debug_crop": 20,
    "task_args": {},
    "n_samples": 100_000,
    "max_seq_len": 32,
    "epochs": None,
    "max_steps": 12,
    "val_every": 6,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "close", "fields"),
    [
        pytest.param("ddp", EXACT, {}, marks=pytest.mark.ci),
        ("ddp", EXACT, {"n_experts": 4, "dim_ff": 16, "balance": "'bias'"}),
        ("ddp", EXACT, {"compile": True}),
        ("ddp", EXACT, MIXTURE),
        ("ddp", EXACT, {"beta2_half_life": 500.0}),
        ("fsdp", ROUNDED, IN_FLOAT32),
        ("fsdp", ROUNDED, {"n_experts": 4, "dim_ff": 16, "balance": "'bias'", **IN_FLOAT32}),
        ("fsdp", ROUNDED, {"n_experts": 3, "dim_ff": 16, "balance": None, "gated": True, **IN_FLOAT32}),
    ],
)
def test_two_processes_equal_one_with_the_double_batch(strategy, close, fields, tmp_path):
    printed, of_two = train(tmp_path / "two", batch_size=7, devices=2, strategy=strategy, **fields)
    _, of_one = train(tmp_path / "one", batch_size=14, **fields)
    assert len(of_two) == len(of_one) == 2, "a grid of two runs"
    for two, one in zip(of_two, of_one, strict=True):
        expected = load_file(one / "model.safetensors")
        for name, weight in load_file(two / "model.safetensors").items():
            torch.testing.assert_close(weight, expected[name], **close)
        ours, theirs = (json.loads((folder / "stats.json").read_text()) for folder in (two, one))
        assert ours.keys() == theirs.keys()
        for name in ours.keys() - {"stat/train_seconds"}:
            assert [stat[:3] for stat in ours[name]] == [stat[:3] for stat in theirs[name]], "steps, samples"
            assert [stat[3] for stat in ours[name]] == pytest.approx(
                [stat[3] for stat in theirs[name]], rel=1e-6 if close is EXACT else 1e-3
            )
    assert len(list((tmp_path / "two" / "logs").iterdir())) == 1
    beginnings = [line.split(":")[0] for line in printed.splitlines()]
    assert [line for line in beginnings if line.startswith(("run ", "step "))] == [
        *("run 1 of 2", "step 6", "step 12", "run 1 (random_seed 1)"),
        *("run 2 of 2", "step 6", "step 12", "run 2 (random_seed 2)"),
    ]
    assert "distributed" not in printed
    assert ("compiled 1 graph" in printed) == fields.get("compile", False)


LENGTHS_OF_TWO = [
    ("ddp", {"max_tokens": 3_000, "val_every": 0.5, "warmup_steps": 0.25}),
    ("ddp", {"max_flops": 3e7, "checkpoint_every": 0.5, "hyperparams_log_freq": 0.2}),
    ("ddp", {"tokens_per_parameter": 1.0, "stop_when": "'val_loss[long] < 10'"}),
    (
        "ddp",
        {"early_stop_nsamples": 300, "patience": 3, "patience_metric": "'val_loss[long]'", "val_every": 4},
    ),
    ("fsdp", {"max_tokens": 3_000, "val_every": 0.5, "warmup_steps": 0.25, **IN_FLOAT32}),
    ("fsdp", {"tokens_per_parameter": 1.0, "stop_when": "'val_loss[long] < 10'", **IN_FLOAT32}),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "length"),
    LENGTHS_OF_TWO,
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_lengths_and_evaluation_sets_of_two_processes_are_those_of_one(strategy, length, tmp_path):
    fields = {
        "epochs": None,
        "random_seed": 1,
        "eval_sets": {"long": {"task_args": {"min_length": 8, "max_length": 9}, "n_samples": 30}},
        "eval_every": 1,
        **length,
    }
    _, [two] = train(tmp_path / "two", batch_size=7, devices=2, strategy=strategy, **fields)
    _, [one] = train(tmp_path / "one", batch_size=14, **fields)
    close = EXACT if strategy == "ddp" else ROUNDED
    expected = load_file(one / "model.safetensors")
    for name, weight in load_file(two / "model.safetensors").items():
        torch.testing.assert_close(weight, expected[name], **close)
    [ours], [theirs] = (runs(str(tmp_path / side), all=True).to_dict("records") for side in ("two", "one"))
    assert (ours["steps"], ours["stopped"]) == (theirs["steps"], theirs["stopped"])
    for name in ("val_loss", "val_loss[long]", "val_accuracy[long]"):
        assert ours[name] == pytest.approx(theirs[name], rel=close["rtol"]), name


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "precision"), [("ddp", "64-true"), ("fsdp", "32-true")])
def test_two_killed_processes_go_on_as_if_nothing_had_been(strategy, precision, tmp_path):
    """Dropout and all; the second run of the grid was not begun."""
    two = {"batch_size": 7, "devices": 2, "strategy": strategy, "precision": precision}
    longer = {**two, "dropout": 0.2, "epochs": 12}
    _, whole = train(tmp_path / "whole", **longer)
    command = command_of(tmp_path / "killed", **longer)
    process = subprocess.Popen([*command, "--resume"], stdout=subprocess.DEVNULL, start_new_session=True)
    wait_for_checkpoint(process, tmp_path / "killed")
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    said, resumed = train(tmp_path / "killed", "--resume", **longer)
    assert "--resume: 1 continued, 1 new" in said
    assert_same_runs(whole, resumed)


def wait_for_checkpoint(process: subprocess.Popen, out: Path) -> None:
    # Not rglob, which fails if a folder disappears meanwhile.
    while not any("resume.ckpt" in files for _, _, files in os.walk(out)):
        assert process.poll() is None
        time.sleep(0.01)


def assert_same_runs(whole: list[Path], resumed: list[Path]) -> None:
    for a, b in zip(whole, resumed, strict=True):
        expected, weights = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
        ours, theirs = (json.loads((folder / "stats.json").read_text()) for folder in (a, b))
        assert {n: v for n, v in ours.items() if n != "stat/train_seconds"} == {
            n: v for n, v in theirs.items() if n != "stat/train_seconds"
        }


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "precision"), [("ddp", "64-true"), ("fsdp", "32-true")])
def test_two_processes_that_ctrl_c_stops_go_on_as_if_nothing_had_been(strategy, precision, tmp_path):
    """Both stop at step 50, within an epoch."""
    two = {"batch_size": 7, "devices": 2, "strategy": strategy, "precision": precision, "random_seed": 1}
    longer = {**two, "dropout": 0.2, "epochs": 12}
    _, whole = train(tmp_path / "whole", **longer)
    command = command_of(tmp_path / "stopped", **longer)
    process = subprocess.Popen([*command, "--resume"], stdout=subprocess.DEVNULL, start_new_session=True)
    wait_for_checkpoint(process, tmp_path / "stopped")
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=300) == 130
    [stopped] = runs(str(tmp_path / "stopped"), all=True).itertuples()
    assert (stopped.stopped, stopped.steps) == ("interrupted", 50)
    _, resumed = train(tmp_path / "stopped", "--resume", **longer)
    assert_same_runs(whole, resumed)
    steps = [stat[0] for stat in json.loads((resumed[0] / "stats.json").read_text())["stat/lr"]]
    assert steps == [*range(72)]


@pytest.mark.slow
def test_two_processes_leave_out_together_what_another_call_trains(tmp_path):
    """The first and the last of four runs: before the second process has started, and after."""
    two = {"batch_size": 7, "devices": 2, "random_seed": [1, 2, 3, 4]}
    _, whole = train(tmp_path / "whole", **two)
    claims = [*map(claim_of_saved, whole)]
    with claimed_elsewhere(tmp_path / "shared", claims[0], claims[3]):
        said, trained = train(tmp_path / "shared", "--resume", **two)
    assert [line for line in said.splitlines() if "left out" in line] == [
        f"run {number}: left out: another call trains it at the moment" for number in (1, 4)
    ]
    assert_same_runs(whole[1:3], trained)
    said, resumed = train(tmp_path / "shared", "--resume", **two)
    assert "--resume: 2 new, 2 finished" in said
    assert len(resumed) == 4


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "precision"), [("ddp", "64-true"), ("fsdp", "32-true")])
def test_two_processes_hide_the_same_tokens_every_time(strategy, precision, tmp_path):
    fields = {"batch_size": 7, "devices": 2, "strategy": strategy, "precision": precision}
    masked = {"causal": False, "objective": "masked", "mask_frac": 0.3, "random_seed": 1}
    _, [run] = train(tmp_path / "once", **fields, **masked)
    _, [again] = train(tmp_path / "again", **fields, **masked)
    weights, same = load_file(run / "model.safetensors"), load_file(again / "model.safetensors")
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    ours, theirs = (json.loads((folder / "stats.json").read_text()) for folder in (run, again))
    for name in ("stat/train_loss:main", "stat/val_loss:main"):
        assert [stat[3] for stat in ours[name]] == [stat[3] for stat in theirs[name]]
        assert all(math.isfinite(stat[3]) for stat in ours[name])


def test_processes_share_every_row_and_have_equally_many_batches(tmp_path):
    data = make_data(
        DataParams(dataset_name="maskedcopy", n_samples=150, task_args={"max_length": 8}),
        ModelParams(max_seq_len=24),
        tmp_path,
    )
    n_rows = 3 * 7 * 6 + 8  # the last batches: 7 rows, 1 row, none
    assert data.n_rows("train") == n_rows
    [whole] = data.train_dataloader(n_rows)
    shares = [list(data.train_dataloader(7, 2, rank=rank, world=3)) for rank in range(3)]
    assert {len(share) for share in shares} == {len(data.train_dataloader(7, 2, world=3))} == {7}
    scored = [[int(batch["target_mask"].sum()) for batch in share] for share in shares]
    assert sum(map(sum, scored)) == whole["target_mask"].sum()
    assert [share[-1] > 0 for share in scored] == [True, True, False]
    assert len(shares[2][-1]["x_indices"]), "so that its loss is a number"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "devices=1"),
        ({"devices": 2, "patience": 2}, "neither patience"),
        ({"devices": 2, "checkpoint_every": 5}, "nor checkpoint_every"),
        ({"devices": 2, "compile": True}, "nor compile=True"),
    ],
)
def test_options_that_fsdp_does_not_support_are_refused(fields, reason):
    with pytest.raises(ValueError, match=reason):
        TrainParams(strategy="fsdp", **fields)


def test_fsdp_refuses_mup_and_other_uses_of_parameter_roles():
    shared = TrainParams(strategy="fsdp", devices=2)
    assert not list(sharding_problems(shared, by_role(ModelParams(), shared)))
    wide = ModelParams(parametrization="mup")
    assert not list(sharding_problems(TrainParams(), by_role(wide, TrainParams())))
    [problem] = sharding_problems(shared, by_role(wide, shared))
    assert "neither muP" in problem
