"""A little saved run, a Python to look at it from another process, and the plainest options."""

import subprocess
import sys
import textwrap
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from data.data_params import DataParams
from data.tokenizer import char_tokenizer
from model.lm import LM
from model.model_params import ModelParams
from train.grid.params import Params
from train.grid.run import Call, Run
from train.run import train_run
from train.saving.code import Code
from train.saving.outcome import Outcome
from train.saving.provenance import Version, code_of_this_process
from train.saving.record import Record
from train.saving.run_folder import RunFolder, create_run_files, save
from train.stats import Stats
from train.train_params import TrainParams
from train.trainer import LMTrainer

REPOSITORY = Path(__file__).resolve().parents[2]
WHEN = datetime(2024, 4, 22, 16, 17, 0)
CALL = Call(Path(), save=False, wandb=False, wandb_entity=None, wandb_group="", gpu_id=None, command=[])
TINY = ModelParams(dim=8, n_layers=2, n_heads=2, max_seq_len=16)


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
    create_run_files(folder.path, params, ["main.py", "--save"])
    save(folder.path, lm=lm, stats=stats, summary=summary)
    folder.finish()
    return folder.path


def train(params: Params, call: Call = CALL, stats: Stats | None = None) -> tuple[LMTrainer, Outcome]:
    """Train a run that is not saved. Return its LMTrainer, too."""
    made = []

    def make_trainer(*args: Any) -> LMTrainer:
        made.append(LMTrainer(*args))
        return made[0]

    with patch("train.run.LMTrainer", make_trainer):
        outcome = train_run(Run(params, {}, "trial"), Record(stats or Stats()), call)
    return made[0], outcome


def fit(params: Params, call: Call = CALL) -> LMTrainer:
    """Train a run that is not saved, and return its LMTrainer."""
    return train(params, call)[0]


def python(code: str, *args: object, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


def version_with_edits(*names: str) -> Version:
    """Return the version of the code that this process runs, as if these files had been edited."""
    version = code_of_this_process()
    edited = {
        name: file._replace(rest=file.rest._replace(hash="0")) if name in names else file
        for name, file in version.code.files.items()
    }
    return version._replace(code=Code(edited))
