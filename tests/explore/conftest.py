"""Little saved runs, untrained: what the explorer does with a run does not depend on how good it is."""

import json
import shutil
from datetime import datetime
from pathlib import Path

import matplotlib as mpl
import pytest
import torch

from data.data_params import DataParams
from data.dataloader import LMDataModule
from data.tokenizer import TokenizerSpec
from docs.browser import browser
from model.lm import LM
from model.model_params import ModelParams
from train.evaluation import Evaluation
from train.grid.params import Params
from train.saving.run_folder import RunFolder, create_run_files, save
from train.stats import Stats
from train.train_params import TrainParams

mpl.use("Agg")
COPY = DataParams(
    dataset_name="copy", task_args={"min_length": 2, "max_length": 5}, n_samples=200, val_pct=10.0
)


def save_little_run(root: Path, dim: int) -> None:
    params = Params(
        COPY, TrainParams(batch_size=8), ModelParams(dim=dim, n_layers=2, n_heads=2, max_seq_len=20)
    )
    data = LMDataModule(COPY, TokenizerSpec("char"), 20, cache=root / "cache")
    torch.manual_seed(0)
    lm = LM(params.model, data.tokenizer).eval()
    evaluation = Evaluation(lm, data)
    for batch in data.val_dataloader(8):
        evaluation.add(batch, params.train)
    stats = Stats()
    for step in range(5):
        stats.log("val_loss:main", 4.0 - step / dim, step=step, n_samples=8 * step)
        stats.log("lr", 0.1 * step, step=step, n_samples=8 * step)
    summary = {"val_loss": evaluation.result()["val_loss:main"], "steps": 5}
    folder = RunFolder.claim(
        root, lambda timestamp: f"little/{timestamp}", when=datetime(2024, 4, 22, 16, 17)
    )
    create_run_files(folder.path, params, ["main.py"])
    save(folder.path, lm=lm, stats=stats, summary=summary)
    folder.finish()


@pytest.fixture(scope="session")
def saved_once(tmp_path_factory):
    root = tmp_path_factory.mktemp("out")
    save_little_run(root, dim=8)
    save_little_run(root, dim=16)
    return root


@pytest.fixture
def root(saved_once, tmp_path) -> Path:
    """An output root with two runs, 2024-04-22--16-17-00 of dim 8 and 2024-04-22--16-17-01 of dim 16, free to be spoiled."""
    return Path(shutil.copytree(saved_once, tmp_path / "root"))


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    """A browser without a screen; tests that ask for it are skipped where there is none."""
    try:
        with browser(tmp_path_factory.mktemp("chromium")) as driver:
            yield driver
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture
def watched(chromium, tmp_path):
    """The browser; whatever it opens meanwhile, nothing may be complained about and nothing asked for beyond `tmp_path`."""
    chromium.get("about:blank")
    chromium.get_log("performance")
    yield chromium
    assert [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"] == []
    messages = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert urls
    assert all(url.startswith(f"file://{tmp_path}/") for url in urls)
