"""The report on saved runs: its table, what is said on the terminal, and how the command line and a grid come to it."""

import csv
import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import main
import model_explorer
from explore.compare import report as report_module
from explore.compare.curves import TRAINING, VALIDATION, average_curves, read_curves, thinned
from explore.compare.report import report_grid
from explore.compare.variants import gather
from explore.load import runs
from tests.explore.compare.fake_runs import DEFAULT, fake_grid, fake_run
from train import run as train_run
from train.grid.run import Run
from train.saving.outcome import Ending, Outcome
from train.stats import Stat

SMALL = {"positions": ["learned", "rotary"], "lr": [1e-3, 3e-3], "random_seed": [0, 1, 2, 3]}


def change(folder: Path, **summary: object) -> None:
    about = json.loads((folder / "about.json").read_text())
    about["summary"] |= summary
    (folder / "about.json").write_text(json.dumps(about))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def document_of(html: str) -> dict:
    """The data of the page."""
    return json.loads(html.partition("id=data>")[2].partition("</script>")[0])


def test_results_is_tidy_and_begins_with_what_varied(tmp_path):
    fake_grid(tmp_path, "demo/copy", **SMALL)
    fake_run(tmp_path, "other", 99, DEFAULT)
    table = model_explorer.results("demo", out=str(tmp_path))
    assert list(table)[:6] == ["timestamp", "status", "lr", "random_seed", "positions", "val_loss"]
    assert len(table) == 16
    assert len(model_explorer.results(out=str(tmp_path))) == 17
    assert len(model_explorer.results("demo/copy", out=str(tmp_path))) == 16
    assert len(model_explorer.results("dem", out=str(tmp_path))) == 0
    assert table.val_loss.dtype == float
    assert table.dim.dtype == int


def test_integers_stay_integers_beside_incomplete_runs(tmp_path):
    fake_grid(tmp_path, **SMALL)
    (tmp_path / "saved-models" / "demo" / "2024-01-01--00-00-00.partial").mkdir()
    table = model_explorer.results("demo", out=str(tmp_path))
    assert [str(value) for value in table.dim[1:]] == ["128"] * 16
    assert table.status[0].startswith("incomplete")


@pytest.mark.slow
@pytest.mark.ci
def test_a_report_leaves_three_files_and_says_the_verdict(tmp_path, capsys):
    fake_grid(tmp_path, **SMALL)
    page = model_explorer.report("demo", out=str(tmp_path))
    folder = tmp_path / "reports" / "demo"
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "report.md", "results.csv"]
    assert (folder / "report.html").read_text() == page.html
    assert "<iframe" in page._repr_html_()
    rows = rows_of(folder / "results.csv")
    table = runs(str(tmp_path), all=True)
    assert [float(row["val_loss"]) for row in rows] == list(table.val_loss)
    assert [row["positions"] for row in rows] == list(table.positions)
    shown = capsys.readouterr().out
    assert "|" not in shown
    assert re.search(r"^ positions=rotary +lr=0.003 +4 ", shown, re.MULTILINE)
    assert shown.endswith(f"report: {folder / 'report.html'}\n")
    lines = (folder / "report.md").read_text().splitlines()
    assert any(line.startswith("| variant | best | seeds |") for line in lines)
    comparison = model_explorer.compare(table)
    verdict = comparison.verdict[1]
    assert any(line.startswith("| positions=rotary | lr=0.003 | 4 |") and verdict in line for line in lines)
    lines = shown.splitlines()
    assert any(line.startswith(f"positions=rotary: {verdict}; loss ") for line in lines)
    assert verdict in page.html
    assert "the best may lie beyond the values tried: lr=0.003 is the largest tried" in "\n".join(lines)


def test_options_are_those_of_compare(tmp_path, capsys):
    fake_grid(tmp_path, **SMALL)
    model_explorer.report("demo", out=str(tmp_path), baseline="positions=rotary", at="flops")
    assert re.search(r"^positions=learned: ", capsys.readouterr().out, re.MULTILINE)
    with pytest.raises(ValueError, match="no variant 'positions=rotory'"):
        model_explorer.report("demo", out=str(tmp_path), baseline="positions=rotory")


def test_different_data_have_sections_of_their_own(tmp_path):
    fake_grid(tmp_path, dataset_name=["copy", "sort"], **SMALL)
    html = model_explorer.report("demo", out=str(tmp_path)).html
    titles = ["dataset_name=copy", "dataset_name=sort"]
    assert re.findall(r"<h3 class=data>(.*?)</h3>", html) == titles * 3, (
        "of the answer, the curves and the rest"
    )
    assert html.count("<p class=answer>") == 2


def test_failures_leaks_and_what_is_left_out_are_listed(tmp_path):
    folders = fake_grid(tmp_path, **SMALL)
    change(folders[0], val_loss=math.nan, stopped="diverged: training loss 88")
    change(folders[9], leak="position 3 sees token 7")
    change(folders[15], stopped="interrupted")
    html = model_explorer.report("demo", out=str(tmp_path)).html
    assert "lr=0.001, random_seed=0, positions=learned: diverged: training loss 88" in html
    assert "positions=rotary: position 3 sees token 7" in html
    assert "1 run left out: interrupted before its end" in html
    assert "1 failed or diverged" in html


def test_runs_saved_before_operations_were_counted_still_report(tmp_path):
    for folder in fake_grid(tmp_path, **SMALL):
        about = json.loads((folder / "about.json").read_text())
        for name in ("flops", "achieved_flops", "peak_flops", "sample", "final_loss", "trained_tokens"):
            del about["summary"][name]
        (folder / "about.json").write_text(json.dumps(about))
    (folder / "stats.json").unlink()
    html = model_explorer.report("demo", out=str(tmp_path)).html
    assert "<h2>Samples</h2>" not in html
    assert "–" in html


def test_curves_are_means_over_seeds_with_t_intervals(tmp_path):
    fake_grid(tmp_path, **SMALL)
    variants, _ = gather(runs(str(tmp_path), all=True))
    curves = read_curves(variants).averages
    curve = curves[VALIDATION][1, 0]
    values = []
    for run in variants[1].runs_of(0):
        saved = json.loads((Path(run["folder"]) / "stats.json").read_text())[VALIDATION]
        assert [n for _, n, *_ in saved] == list(curve.x)
        values.append([v for *_, v in saved])
    assert curve.mean == pytest.approx(np.mean(values, axis=0))
    expected = stats.ttest_1samp(values, 0).confidence_interval()
    assert curve.low == pytest.approx(expected.low)
    assert curve.high == pytest.approx(expected.high)
    assert len(curves[TRAINING][0, 0].x) == 100, "of 120 values, neighbors are averaged"
    saved = json.loads((Path(variants[0].runs_of(0)[0]["folder"]) / "stats.json").read_text())[TRAINING]
    one = average_curves([[Stat(*stat) for stat in saved]])
    assert one is not None
    assert one.mean[-1] == pytest.approx(saved[-1][3])


def test_a_run_that_ends_early_counts_in_the_curve_up_to_its_end():
    long, short = [Stat(n, n, n, 1.0) for n in (1, 2, 3)], [Stat(1, 1, 0, 3.0), Stat(2, 2, 1, math.nan)]
    curve = average_curves([long, short])
    assert curve is not None
    assert list(curve.mean) == [2.0, 1.0, 1.0]


def test_bands_need_three_seeds():
    curve = average_curves(
        [[Stat(1, 1, 0, loss), Stat(2, 2, 1, loss)][:n] for loss, n in ((1.0, 2), (2.0, 2), (3.0, 1))]
    )
    assert curve is not None
    assert list(np.isnan(curve.low)) == [False, True]
    assert list(curve.steps) == [1, 2]


def test_thinned_curves_keep_their_extremes():
    rng = np.random.default_rng(0)
    values = [Stat(step, step, step, float(value)) for step, value in enumerate(rng.normal(size=10_000))]
    values[5_000] = values[5_000]._replace(v=50.0)
    values[70] = values[70]._replace(v=math.nan)
    kept = thinned(values)
    assert len(kept) <= 400
    assert {50.0, min(stat.v for stat in values)} <= {stat.v for stat in kept}
    assert (kept[0], kept[-1]) == (values[0], values[-1])
    assert kept == sorted(kept)
    assert thinned(values[:70]) == values[:70]


def test_a_long_diff_that_all_runs_share_is_kept_once(tmp_path):
    folders = fake_grid(tmp_path, n_points=5, random_seed=[*range(25)])
    for folder in folders:
        (folder / "diff.patch").write_text("+line\n" * 5_000)
    document = document_of(model_explorer.report("demo", out=str(tmp_path)).html)
    [place] = {run["diff"] for run in document["runs"]}
    assert document["texts"][place].startswith("+line\n+line\n")


def test_a_report_without_runs_is_one_sentence_and_exit_code_2(tmp_path, capsys):
    assert main.main(["--report=test", "--out", str(tmp_path)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("--report=test: there are no saved runs in ")
    (tmp_path / "saved-models" / "test" / "2024-01-01--00-00-00.partial").mkdir(parents=True)
    assert main.main(["--report=test", "--out", str(tmp_path)]) == 2
    assert "1 run there: incomplete" in capsys.readouterr().err
    assert main.main(["--report=../../etc", "--out", str(tmp_path)]) == 2
    assert not (tmp_path / "reports").exists()


def test_report_and_config_exclude_each_other(capsys):
    for options in ([], ["--config=test", "--report=test"]):
        assert main.main(options) == 2
    assert "--report" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.ci
def test_a_saved_grid_ends_with_a_report(tmp_path, capsys):
    options = ["--no-wandb", "--save", "--out", str(tmp_path)]
    for setting in (
        "n_samples=300",
        "threads=1",
        "random_seed=[0,1]",
        "dim=[32,64]",
        "early_stop_nsamples=64",
    ):
        options += ["--set", setting]
    assert main.main(["--config=test-synth", *options]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^dim=64: (better|worse|cannot tell)", out, re.MULTILINE)
    html = (tmp_path / "reports" / "test-synth" / "report.html").read_text()
    assert "<h2>Samples</h2>" in html
    [part] = document_of(html)["parts"]
    assert {mean["loss"] for mean in part["means"]} == {"val", "train"}
    rows = rows_of(tmp_path / "reports" / "test-synth" / "results.csv")
    assert [row["dim"] for row in rows] == ["32", "64", "32", "64"] or [row["dim"] for row in rows] == [
        "32",
        "32",
        "64",
        "64",
    ]
    assert all(float(row["flops"]) > 0 for row in rows)
    assert main.main(["--report=test-synth", "--out", str(tmp_path)]) == 0
    assert rows_of(tmp_path / "reports" / "test-synth" / "results.csv") == sorted(
        rows, key=lambda row: row["timestamp"]
    )


def test_the_report_after_a_grid_shows_the_saved_runs_of_earlier_calls_too(tmp_path, capsys):
    earlier = fake_grid(tmp_path, **SMALL)
    other = fake_run(tmp_path, "elsewhere", 50, DEFAULT.changed(random_seed=8))  # by a Namer of one's own
    fake_run(tmp_path, "other", 51, DEFAULT)
    now = fake_run(tmp_path, "demo", 52, DEFAULT.changed(random_seed=9))
    outcomes = [
        Outcome(Ending.FINISHED, values={"n_params": 1}, folder=now),
        Outcome(Ending.FINISHED, values={"n_params": 1}, folder=other),
        Outcome(Ending.FAILED, "OSError: disk", {"wall_seconds": 1.0}),
        Outcome(Ending.INTERRUPTED),
    ]
    grid = [Run(DEFAULT.changed(random_seed=seed), {}, "demo") for seed in (9, 8, 10, 11)]
    page = report_grid("demo", grid, outcomes, tmp_path)
    listed = [run["id"] for run in document_of(page.html)["runs"]]
    assert len(set(listed)) == len(listed)
    assert "unsaved run" in listed[-1]
    rows = rows_of(tmp_path / "reports" / "demo" / "results.csv")
    assert [row["folder"] for row in rows] == [*map(str, [*earlier, other, now]), ""]
    assert rows[-1]["status"] == "failed: OSError: disk"
    assert rows[-1]["random_seed"] == "10"


@pytest.mark.slow
@pytest.mark.ci
def test_failed_runs_of_a_grid_are_in_its_report(tmp_path, monkeypatch, capsys):
    real = train_run.fit

    def fails_for_rotary(trainer, lm_trainer, *rest):
        if lm_trainer.model.model_params.positions == "rotary":
            raise RuntimeError("out of <b>memory</b>")
        return real(trainer, lm_trainer, *rest)

    monkeypatch.setattr(train_run, "fit", fails_for_rotary)
    options = ["--no-wandb", "--save", "--out", str(tmp_path), "--set", "threads=1", "--set", "n_samples=300"]
    options += [
        "--set",
        "early_stop_nsamples=64",
        "--set",
        "random_seed=[0,1]",
        "--set",
        'positions=["sin","rotary"]',
    ]
    assert main.main(["--config=test-synth", *options]) == 1
    assert "positions=rotary: cannot tell: its runs failed or diverged" in capsys.readouterr().out
    html = (tmp_path / "reports" / "test-synth" / "report.html").read_text()
    assert "failed: RuntimeError: out of &lt;b&gt;memory&lt;/b&gt;" in html


@pytest.mark.parametrize(
    "axes", [{}, {"positions": ["learned", "rotary"]}, {"lr": [1e-4, 1e-3, 1e-2]}, {"random_seed": [0, 1]}]
)
def test_small_grids_of_any_shape_report(tmp_path, axes):
    fake_grid(tmp_path, **axes)
    html = (
        model_explorer.report("demo", out=str(tmp_path)).html.partition("<body>")[2].partition("<script")[0]
    )
    assert not re.search(r"\bnan\b|\binf\b", html, re.IGNORECASE)


def test_the_table_of_runs_goes_from_the_lowest_loss_to_those_without_one(tmp_path):
    folders = fake_grid(tmp_path, **SMALL)
    for folder, loss in zip(folders[:4], (math.nan, math.inf, None, 0.25), strict=True):
        change(folder, val_loss=loss)
    listed = [run["id"] for run in document_of(model_explorer.report("demo", out=str(tmp_path)).html)["runs"]]
    assert len(listed) == 16
    assert listed[0] == folders[3].name
    assert set(listed[-3:]) == {folder.name for folder in folders[:3]}


@pytest.mark.parametrize("said", [None, 3.5, ""])
def test_a_run_without_a_sample_shows_none(tmp_path, said):
    for folder in fake_grid(tmp_path, **SMALL):
        change(folder, sample=said if isinstance(said, str) or said is None else None, further=said)
    assert "<pre>" not in model_explorer.report("demo", out=str(tmp_path)).html.partition("<script")[0]


def test_a_report_of_runs_that_all_failed(tmp_path):
    for folder in fake_grid(tmp_path, **SMALL):
        change(folder, val_loss=math.nan, stopped="diverged: at once")
    html = model_explorer.report("demo", out=str(tmp_path)).html
    assert "16 failed or diverged" in html


def test_one_run_says_what_to_try_next(tmp_path):
    fake_grid(tmp_path)
    html = model_explorer.report("demo", out=str(tmp_path)).html
    for command in ("--seed=[1,2,3] --noise", "--set lr=[0.000333,0.001,0.003]"):
        assert f"<code>{command}</code>" in html
    fake_grid(tmp_path / "more", random_seed=[1, 2, 3], lr=[1e-3, 3e-3])
    html = model_explorer.report("demo", out=str(tmp_path / "more")).html
    assert "--noise" not in html
    assert "--set lr=" not in html


def test_the_answer_names_winner_difference_and_certainty(tmp_path):
    fake_grid(tmp_path, **SMALL)
    html = model_explorer.report("demo", out=str(tmp_path)).html
    answer = re.sub("<.*?>", "", html.partition("<p class=answer>")[2].partition("</p>")[0])
    pattern = r"positions=rotary at lr=0.003 has the best final loss: [\d.]+ \(95 % interval [\d.]+ to [\d.]+\), -[\d.]+ from the "
    pattern += r"baseline \(95 % interval -[\d.]+ to [+-][\d.]+, p [\d.]+\)\. Verdict: \w+"
    assert re.match(pattern, answer)
    fake_grid(tmp_path / "few", positions=["rotary", "learned"], random_seed=[1, 2, 3])
    html = model_explorer.report("demo", out=str(tmp_path / "few")).html
    assert "It is the baseline: no variant has a better mean." in html


@pytest.mark.slow
def test_ten_thousand_runs_report_in_a_minute(tmp_path):
    dims = [8 * i for i in range(4, 54)]
    fake_grid(
        tmp_path,
        n_points=20,
        dim=dims,
        n_layers=list(range(1, 9)),
        lr=[1e-4, 3e-4, 1e-3, 3e-3, 1e-2],
        random_seed=[0, 1, 2, 3, 4],
    )
    started = time.process_time()
    html = model_explorer.report("demo", out=str(tmp_path)).html
    assert time.process_time() - started < 60
    assert len(html) < 5e6


@pytest.mark.parametrize("axes", [{}, SMALL], ids=["1 run", "16 runs"])
def test_without_the_libraries_of_charts_only_the_page_is_missing(tmp_path, monkeypatch, capsys, axes):
    monkeypatch.setitem(sys.modules, "altair", None)
    for name in ("charts", "page_data", "page"):
        monkeypatch.delitem(sys.modules, f"explore.compare.{name}", raising=False)
    fake_grid(tmp_path, **axes)
    assert model_explorer.report("demo", out=str(tmp_path)) is None
    assert sorted(path.name for path in (tmp_path / "reports" / "demo").iterdir()) == [
        "report.md",
        "results.csv",
    ]
    shown = capsys.readouterr().out
    assert "no report.html: " in shown
    assert "pip install altair vl-convert-python" in shown


def test_no_command_loads_the_libraries_of_charts_before_a_page_is_written():
    code = "import sys, main, model_explorer, explore.compare.report; print({'altair', 'vl_convert'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_baseline_is_the_first_variant_of_the_grid_whatever_was_saved_before(tmp_path, capsys):
    """A single run with a changed field, saved before the grid, is no baseline of the grid."""
    fake_run(tmp_path, "demo", 0, DEFAULT.changed(positions="sin"))
    params = [
        DEFAULT.changed(positions=kind, random_seed=seed) for seed in range(3) for kind in ("none", "rotary")
    ]
    folders = [fake_run(tmp_path, "demo", 10 - i, one) for i, one in enumerate(params)]  # not in this order
    outcomes = [Outcome(Ending.FINISHED, values={"n_params": 1}, folder=folder) for folder in folders]
    report_grid("demo", [Run(one, {}, "demo") for one in params], outcomes, tmp_path)
    page = (tmp_path / "reports" / "demo" / "report.md").read_text()
    [baseline] = [line for line in page.splitlines() if line.endswith("| baseline |")]
    assert "positions=none" in baseline
    assert "includes 1 saved run that this grid does not have" in capsys.readouterr().out


def test_the_baseline_of_a_saved_report_is_the_first_variant_of_the_config(tmp_path, monkeypatch):
    monkeypatch.setattr(report_module, "CONFIGS", tmp_path)
    fake_grid(tmp_path, positions=["rotary", "none"], random_seed=[0, 1, 2])

    def baseline() -> str:
        model_explorer.report("demo", out=str(tmp_path))
        page = (tmp_path / "reports" / "demo" / "report.md").read_text()
        [line] = [line for line in page.splitlines() if line.endswith("| baseline |")]
        return line

    assert "positions=rotary" in baseline(), "saved first"
    (tmp_path / "demo.txt").write_text(
        'ModelParams\npositions = ["none", "rotary"]\nTrainParams\nrandom_seed = [0, 1, 2]\n'
    )
    assert "positions=none" in baseline()
