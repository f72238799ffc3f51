"""--reproduce: claims are refused, trained for, judged, kept and listed, with exit codes."""

import json
import re
from datetime import datetime

import pytest
import torch

import explore.compare.report
import main
from data.data_params import DataParams
from explore.compare.reproductions import CURVE_POINTS, curve_of
from explore.scaling.stability import output_change
from model.lm import LM
from model.model_params import ModelParams
from tests.model.tiny import tiny_lm
from train.data import make_data
from train.final_metrics import final_metrics, metric, values_of_metrics
from train.grid.params import measured_column
from train.stats import Stats

CONFIG = """DataParams
dataset_name = "copy"
n_samples = 400

TrainParams
max_steps = 4
threads = 1
random_seed = [1, 2]

ModelParams
n_layers = [1, 2]
dim = 16
n_heads = 2
max_seq_len = 48

Expect
topic = "tiny models"
source = "nobody"
minutes = 1
claims = {
    "layers count": "n_params(n_layers=2) > n_params(n_layers=1)",
    "four steps teach nothing": "val_accuracy(n_layers=2) < 0.9",
    "the loss is small": "LOSS",
}
"""


@pytest.fixture
def reproduce(tmp_path, monkeypatch, capsys):
    """Writes configs/reproduce/tiny.txt with a claim, calls main with options, and returns its exit code and output."""
    folder = tmp_path / "configs" / "reproduce"
    folder.mkdir(parents=True)
    for module in (main, explore.compare.report):
        monkeypatch.setattr(module, "CONFIGS", tmp_path / "configs")
    monkeypatch.setattr(main, "RECORDS", tmp_path / "reproductions")

    def call(option: str, *others: str, loss: str = "val_loss(n_layers=1) < 100") -> tuple[int, str]:
        (folder / "tiny.txt").write_text(CONFIG.replace("LOSS", loss))
        code = main.main([option, "--no-wandb", "--out", str(tmp_path / "out"), *others])
        output = capsys.readouterr()
        return code, output.out + output.err

    return call


def test_a_result_is_trained_once_judged_kept_and_listed(reproduce, tmp_path):
    code, output = reproduce("--reproduce=tiny")
    assert code == 0, output
    assert len(re.findall("holds", output)) == 3
    record = json.loads((tmp_path / "reproductions" / "tiny.json").read_text())
    assert [one["fields"] for one in record["runs"]] == [
        {"random_seed": seed, "n_layers": n} for seed in (1, 2) for n in (1, 2)
    ]
    assert {one["date"] for one in record["runs"]} == {f"{datetime.now():%Y-%m-%d}"}
    assert "Claims" in (tmp_path / "out" / "reports" / "reproduce" / "tiny" / "report.html").read_text()

    code, output = reproduce("--reproduce=tiny", loss="val_loss(n_layers=1) < 1")
    assert code == 3
    assert "finished earlier" in output
    assert re.search(r"the loss is small .*fails", output)

    code, output = reproduce("--reproduce")
    assert code == 0
    assert output.count("holds") == 3
    assert "other code" not in output
    assert "tiny models" in output
    assert "3 claims of 1 config: 3 hold, 0 fail, 0 cannot be told" in output
    changed = {**record, "runs": [{**one, "code": "0"} for one in record["runs"]]}
    (tmp_path / "reproductions" / "tiny.json").write_text(json.dumps(changed))
    output = reproduce("--reproduce")[1]
    assert "  tiny* " in output
    assert "other code" in output


def test_a_later_report_judges_the_claims_again(reproduce, tmp_path):
    reproduce("--reproduce=tiny", loss="val_loss(n_layers=1) < 1")
    page = tmp_path / "out" / "reports" / "reproduce" / "tiny"
    code, output = reproduce("--report=reproduce/tiny", loss="val_loss(n_layers=2) < 100")
    assert (code, output.count("holds")) == (0, 3), output
    assert (
        "- the loss is small: holds. Expected val_loss(n_layers=2) < 100" in (page / "report.md").read_text()
    )
    assert "Claims" in (page / "report.html").read_text()

    assert reproduce("--config=reproduce/tiny", "--save", "--set", "max_steps=5")[0] == 0
    code, output = reproduce("--report=reproduce/tiny")
    assert (code, output.count("holds")) == (0, 3), "runs with other values of fields do not count"


def test_claims_find_runs_of_earlier_grids_by_their_variants_of_today(reproduce, tmp_path, monkeypatch):
    assert reproduce("--reproduce=tiny")[0] == 0
    variants = """Grid
variants = {"one layer": {"n_layers": 1}, "two layers": {"n_layers": 2}}

Expect"""
    changed = CONFIG.replace("n_layers = [1, 2]\n", "").replace("Expect", variants)
    for n, name in enumerate(("one layer", "two layers"), 1):
        changed = changed.replace(f"(n_layers={n})", f"(variant='{name}')")
    monkeypatch.setattr("tests.test_reproduce.CONFIG", changed)
    code, output = reproduce("--reproduce=tiny", loss="val_loss(variant='one layer') < 100")
    assert output.count("finished earlier") >= 4
    assert len(re.findall("holds", output)) == 3
    assert code == 0
    page = (tmp_path / "out" / "reports" / "reproduce" / "tiny" / "report.md").read_text()
    assert "| two layers |" in page


def test_a_kept_curve_is_short_and_ends_with_the_last_validation(tmp_path):
    stats = Stats()
    for step in range(1, 102):
        stats.log("val_loss:main", 1 / step, step=step, n_samples=step)
    stats.save(tmp_path / "stats.json")
    curve = curve_of({measured_column("folder"): str(tmp_path)}, "val_loss")
    assert [step for step, _ in curve] == [*range(2, 102, 3)]
    assert len(curve) <= CURVE_POINTS
    assert curve[-1][1] == pytest.approx(1 / 101, rel=1e-3)


def test_a_dry_run_says_that_the_claims_are_checked(reproduce):
    code, output = reproduce("--config=reproduce/tiny", "--dry-run")
    assert code == 0, output
    assert "claims: 3, judged when the runs have ended" in output


def test_a_result_without_runs_is_listed_as_open(reproduce):
    code, output = reproduce("--reproduce")
    assert (code, output.count("never"), output.count("not run yet")) == (0, 1, 3)
    assert "3 have no runs yet" in output


def test_runs_of_another_config_are_marked(reproduce, tmp_path):
    reproduce("--reproduce=tiny")
    file = tmp_path / "reproductions" / "tiny.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"runs": record["runs"][1:]}))
    assert "  tiny* " in reproduce("--reproduce")[1], "a run is missing"
    file.write_text(json.dumps(record | {"common": record["common"] | {"lr": 0.5}}))
    assert "  tiny* " in reproduce("--reproduce")[1], "the learning rate was another one"
    file.write_text(json.dumps(record | {"format": 0}))
    code, output = reproduce("--reproduce")
    assert code == 2
    assert "tiny.json has format 0, not 1; --reproduce=tiny replaces it" in output


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (ValueError, 1)])
def test_a_record_stays_if_a_run_does_not_end(reproduce, tmp_path, monkeypatch, error, code):
    reproduce("--reproduce=tiny")
    file = tmp_path / "reproductions" / "tiny.json"
    record = file.read_text()
    assert len(json.loads(record)["runs"]) == 4

    def fails(*args, **options):
        raise error

    monkeypatch.setattr("train.run.fit", fails)
    assert reproduce("--reproduce=tiny", "--out", str(tmp_path / "clone"))[0] == code
    assert file.read_text() == record


def test_the_document_says_what_is_known_of_each_claim(reproduce, tmp_path):
    reproduce("--reproduce=tiny")
    output = reproduce("--reproduce", "--json")[1]
    found, _ = json.JSONDecoder().raw_decode(output)
    first = found["claims"][0]
    assert first["verdict"] == "holds"
    known = {
        name: first[name] for name in ("config", "topic", "source", "minutes", "date", "has_todays_code")
    }
    date = f"{datetime.now():%Y-%m-%d}"
    assert known == {
        "config": "tiny",
        "topic": "tiny models",
        "source": "nobody",
        "minutes": 1,
        "date": date,
        "has_todays_code": True,
    }


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("val_los(n_layers=1) < 3", "there is no column 'val_los'; did you mean 'val_loss'"),
        ("val_accuracy('long', n_layers=1) < 3", "there is no column 'val_accuracy[long]'"),
        (
            "steps_to('val_los < 3', n_layers=1) < 3",
            "there is no statistic 'val_los'; did you mean 'val_loss'",
        ),
        ("slope('n_parms', 'val_loss') < 3", "there is no column 'n_parms'; did you mean 'n_params'"),
    ],
)
def test_unknown_names_are_refused_before_training(reproduce, tmp_path, loss, message):
    code, output = reproduce("--reproduce=tiny", loss=loss)
    assert code == 2
    assert re.search(rf"reproduce/tiny\.txt:23: claim 'the loss is small': .*{re.escape(message)}", output), (
        output
    )
    assert not (tmp_path / "out" / "saved-models").exists()


def test_a_config_is_reproduced_as_it_is(reproduce):
    assert reproduce("--reproduce=tiny", "--set", "lr=1")[0] == 2
    assert reproduce("--reproduce=tiny", "--seed=7")[0] == 2
    assert reproduce("--reproduce=tiny", "--resume=anyway")[0] == 2
    assert "did you mean 'tiny'" in reproduce("--reproduce=tny")[1]


def test_a_registered_metric_becomes_a_column_of_the_runs_that_claims_are_about(
    reproduce, monkeypatch, tmp_path
):
    monkeypatch.setattr(final_metrics, "entries", dict(final_metrics.entries))

    @metric
    def n_weights(lm, data):
        assert not lm.training
        return sum(parameter.numel() for parameter in lm.parameters())

    loss = "n_weights(n_layers=1) <= n_params(n_layers=1)"
    for first in (True, False):  # trained with the claim, and without it before
        if not first:
            reproduce("--reproduce=tiny", "--out", str(tmp_path / "before"))
        code, output = reproduce(
            "--reproduce=tiny", "--out", str(tmp_path / f"{'out' if first else 'before'}"), loss=loss
        )
        assert code == 0, output
        assert output.count("holds") == 3
        assert ("finished earlier" in output) is not first
        assert reproduce("--reproduce", loss=loss)[1].count("holds") == 3, "the record has the metric, too"


def test_the_output_change_of_a_run_without_training_is_that_of_its_first_weights(
    reproduce, monkeypatch, tmp_path
):
    untrained = CONFIG.replace("max_steps = 4", "max_steps = 1\nlr = 1e-9\nmin_lr = 0")
    monkeypatch.setattr("tests.test_reproduce.CONFIG", untrained)
    code, output = reproduce("--reproduce=tiny", loss="output_change(n_layers=1) < 1")
    assert code in (0, 4), output
    record = json.loads((tmp_path / "reproductions" / "tiny.json").read_text())
    for run in record["runs"]:
        model = ModelParams(dim=16, n_heads=2, max_seq_len=48, n_layers=run["fields"]["n_layers"])
        data = make_data(DataParams(dataset_name="copy", n_samples=400), model, tmp_path)
        torch.manual_seed(run["fields"]["random_seed"])
        lm = LM(model, tokenizer=data.tokenizer)
        x_BT = next(iter(data.train_dataloader(16)))["x_indices"][:, :-1]
        expected = output_change(lm, x_BT, generator=torch.Generator().manual_seed(0))
        assert run["metrics"]["output_change"] == pytest.approx(expected, rel=1e-2)


def test_a_metric_that_fails_loses_no_run(monkeypatch):
    monkeypatch.setattr(final_metrics, "entries", dict(final_metrics.entries))

    @metric
    def hopeless(lm, data):
        raise RuntimeError("no idea")

    assert values_of_metrics(["hopeless"], tiny_lm(), None) == {"hopeless": None}


def test_a_pick_by_a_size_that_match_changes_is_refused(reproduce, monkeypatch):
    """`match` chooses dim_ff after the text is read, so the size that the text sets has no run."""
    grid = 'Grid\nmatch = "params"\n\nExpect'
    axes = "dim_ff = 64\ngated = [True, False]\nn_layers = 1\n"
    changed = CONFIG.replace("Expect", grid).replace("n_layers = [1, 2]\n", axes)
    claims = 'claims = {"one": "val_loss(gated=False, dim_ff=64) < 100"}\n'
    monkeypatch.setattr(
        "tests.test_reproduce.CONFIG", re.sub(r"claims = \{.*\}\n", claims, changed, flags=re.S)
    )
    code, output = reproduce("--reproduce=tiny")
    assert code == 2
    assert "`val_loss(gated=False, dim_ff=64)` picks no run, since match has chosen other sizes" in output
