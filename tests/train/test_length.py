"""The length of a run in every unit, shares of the run, the metrics that end it, and the size of its updates."""

import json
import math
import signal
from itertools import count

import pytest
import torch

import main
from data.data_params import DataParams
from explore.load import find_run, runs
from tests.train.killed import forked, killed_at
from tests.train.little_run import CALL, save_run
from tests.train.test_trainer import TINY, equal, train, train_whole, weights
from train.data import make_data
from train.grid.expand import GridError, read_grid
from train.launch.plan import prepare
from train.length import RunCosts, RunLength, count_steps, mean_row_length
from train.metrics import Condition, metric_and_sign
from train.saving.outcome import Ending
from train.saving.run_folder import read_params
from train.schedules import Schedule, schedules
from train.stats import Stats
from train.train_params import LENGTHS, TrainParams

# Fields that TrainParams did not have when a run could have two lengths.
NEW_FIELDS = {*LENGTHS, "stop_when", "patience_metric"} - {"epochs", "early_stop_nsamples"}
SMALL = DataParams(dataset_name="maskedcopy", n_samples=50, task_args={"max_length": 8})
COSTS = RunCosts(tokens_per_row=7.5, n_params=200, flops_per_row=40)


class Time:
    """A stopwatch that a test moves."""

    seconds = 0.0


def steps_by_hand(rows: float, n_rows: int, per_step: int) -> int:
    """Take rows from epoch after epoch, step by step, until there are enough."""
    steps, taken, left = 0, 0, 0
    while taken < rows:
        left = left or n_rows
        taken, left, steps = taken + min(per_step, left), left - min(per_step, left), steps + 1
    return steps


@pytest.mark.parametrize(
    ("length", "rows"),
    [
        ({"early_stop_nsamples": 1}, 1),
        ({"early_stop_nsamples": 100}, 100),
        ({"early_stop_nsamples": 333}, 333),
        ({"max_tokens": 1000.0}, 1000 / 7.5),
        ({"tokens_per_parameter": 20.0}, 20 * 200 / 7.5),
        ({"max_flops": 1e4}, 1e4 / 40),
        ({"epochs": 3}, 300),
        ({}, 100),
    ],
)
@pytest.mark.parametrize("accumulate", [1, 4])
def test_steps_are_those_of_counting_rows(length, rows, accumulate):
    params = TrainParams(batch_size=8, accumulate_grad_batches=accumulate, **length)
    assert count_steps(params, 100, COSTS) == steps_by_hand(math.ceil(rows), 100, 8 * accumulate)


def test_steps_and_seconds_need_no_rows():
    assert count_steps(TrainParams(max_steps=17), 100) == 17
    assert count_steps(TrainParams(max_seconds=17), 100) is None


def test_a_run_has_one_length():
    for name in LENGTHS[1:]:
        with pytest.raises(ValueError, match=f"epochs=2 and {name}=3.* are 2 lengths of one run"):
            TrainParams(epochs=2, **{name: 3})


def grid(tmp_path, text: str, **options: str) -> list:
    (tmp_path / "trial.txt").write_text(text)
    return read_grid([tmp_path / "trial.txt"], {f"--set {k}={v}": f"{k}={v}" for k, v in options.items()})


def test_two_lengths_in_a_config_are_refused_at_their_lines(tmp_path):
    with pytest.raises(GridError) as caught:
        grid(tmp_path, "TrainParams\nepochs = 2\nlr = 1e-3\nmax_steps = [10, 20]\n")
    [first, second] = caught.value.errors
    where = f"{tmp_path.name}/trial.txt:2 and {tmp_path.name}/trial.txt:4"
    assert first.startswith(
        f"{where}: epochs=2 and max_steps=10 are 2 lengths of one run; set one of epochs, "
    )
    assert second.startswith(f"{where}: epochs=2 and max_steps=20")


def test_lengths_of_different_units_are_one_axis(tmp_path):
    text = "TrainParams\nepochs = [1, None]\nmax_tokens = [None, 1e6]\nGrid\ntogether = [('epochs', 'max_tokens')]\n"
    lengths = [run.params.train.lengths for run in grid(tmp_path, text)]
    assert lengths == [{"epochs": 1}, {"max_tokens": 1e6}]


def test_a_length_on_the_command_line_replaces_that_of_the_config(tmp_path):
    found = grid(tmp_path, "TrainParams\nepochs = [2, 3]\n", max_steps="[10,20]")
    assert [run.params.train.lengths for run in found] == [{"max_steps": 10}, {"max_steps": 20}]


@pytest.mark.parametrize("share", [0.05, 0.1, 0.25, 0.3, 0.7, 1 / 3])
@pytest.mark.parametrize("n_steps", [3, 7, 10, 100, 1000])
def test_shares_of_a_run_come_due_at_equal_distances_and_as_often_as_they_fit(share, n_steps):
    length = RunLength(n_steps)
    due = [step for step in range(1, n_steps + 1) if length.is_due(share, step)]
    targets = [k * share * n_steps for k in range(1, int(1 / share + 1e-9) + 1)]
    assert due == sorted({math.ceil(target - 1e-6) for target in targets})


def test_whole_numbers_count_steps():
    length = RunLength(100)
    assert [step for step in range(101) if length.is_due(30, step)] == [0, 30, 60, 90]


@pytest.mark.parametrize("name", list(schedules))
def test_a_share_as_warm_up_is_as_many_steps(name):
    shares = Schedule(TrainParams(lr_schedule=name, warmup_steps=0.25), 200)
    steps = Schedule(TrainParams(lr_schedule=name, warmup_steps=50), 200)
    assert [shares(step) for step in range(200)] == [steps(step) for step in range(200)]


@pytest.mark.parametrize("warmup", [0, 20, 0.2])
@pytest.mark.parametrize("name", ["cosine", "linear", "wsd"])
def test_by_time_a_schedule_is_that_of_as_many_equal_steps(name, warmup):
    """At a constant pace, schedules by time and by steps agree but for one step in 100."""
    params = TrainParams(lr_schedule=name, warmup_steps=warmup, max_seconds=10.0)
    length = RunLength(None, 10.0, Time())
    by_time, by_steps = Schedule(params, length), Schedule(params, 101)
    for step in range(101):
        length.training_time.seconds = step / 10
        assert by_time(step) == pytest.approx(by_steps(step), abs=0.051)
        assert length.share_after(step) == pytest.approx(step / 100)
    assert length.is_time_up


def test_by_time_the_share_is_measured_once_a_step():
    length = RunLength(None, 10.0, Time())
    length.training_time.seconds = 2.4
    assert length.share_after(1) == 0.24
    length.training_time.seconds = 2.6
    assert (length.share_after(1), length.is_due(0.25, 1)) == (0.24, False)
    assert (length.share_after(2), length.is_due(0.25, 2)) == (0.26, True)
    again = RunLength(None, 10.0, Time())
    again.load_state_dict(length.state_dict())
    assert (again.share_after(2), again.is_due(0.25, 2)) == (0.26, True), "a resumed run is where it was"


def test_data_is_repeated_in_another_order_until_the_length_is_reached(tmp_path):
    run, outcome = train_whole(tmp_path, data=SMALL, max_steps=15)
    n_rows = make_data(SMALL, TINY, tmp_path).n_rows("train")
    per_epoch = math.ceil(n_rows / 8)
    assert (run.global_step, outcome.ending) == (15, Ending.FINISHED)
    assert run.n_samples == 2 * n_rows + (15 - 2 * per_epoch) * 8
    same = train(tmp_path, data=SMALL, epochs=2, lr_schedule="constant")
    assert equal(
        weights(same), weights(train(tmp_path, data=SMALL, max_steps=2 * per_epoch, lr_schedule="constant"))
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("length", "column", "goal"),
    [
        ({"max_tokens": 3000.0}, "trained_tokens", lambda values: 3000),
        ({"tokens_per_parameter": 1.5}, "trained_tokens", lambda values: 1.5 * values["n_params"]),
        ({"max_flops": 3e8}, "flops", lambda values: 3e8),
        ({"early_stop_nsamples": 300}, "trained_samples", lambda values: 300),
    ],
    ids=["tokens", "tokens a parameter", "FLOPs", "rows"],
)
def test_the_results_show_the_length_that_was_asked_for(length, column, goal, tmp_path):
    _, outcome = train_whole(tmp_path, batch_size=4, **length)
    assert outcome.values[column] == pytest.approx(goal(outcome.values), rel=0.03)


def test_the_mean_length_of_rows_is_that_of_all_rows(tmp_path):
    data = make_data(SMALL, TINY, tmp_path)
    rows = data.rows("train")
    assert mean_row_length(data) == sum(len(rows[i].ids) - 1 for i in range(len(rows))) / len(rows)


@pytest.mark.slow
def test_a_dry_run_counts_the_steps_that_are_trained(tmp_path):
    text = "DataParams\ndataset_name = 'copy'\nn_samples = 300\nModelParams\ndim = 16\nn_layers = 1\nn_heads = 2\n"
    for field, value in (("max_tokens", 2e4), ("max_flops", 1e9), ("tokens_per_parameter", 2.0)):
        [run] = grid(
            tmp_path, text + f"TrainParams\nbatch_size = 8\n{field} = {value}\nfreeze = ('embed.*',)\n"
        )
        [planned] = prepare([run], CALL._replace(out=tmp_path))
        data, train_params, model = run.params
        trained, _ = train_whole(tmp_path, data=data, model=model, **vars_of(train_params))
        assert trained.global_step == planned.size.n_steps
        assert trained.n_tokens == pytest.approx(planned.size.n_tokens, rel=0.02)


def vars_of(params: TrainParams) -> dict:
    default = TrainParams()
    return {name: value for name, value in vars(params).items() if value != getattr(default, name, None)}


def test_a_run_of_a_time_ends_when_it_is_over_with_the_schedule(tmp_path):
    run, outcome = train_whole(tmp_path, data=SMALL, max_seconds=0.5, hyperparams_log_freq=1, val_every=0.5)
    stats = run.stats.train_stats
    assert outcome.ending is Ending.FINISHED
    assert 0.5 <= run.train_seconds < 1.5
    assert stats["stat/lr"][-1].v < 0.2e-2 < 0.8e-2 < stats["stat/lr"][1].v
    assert run.n_samples > 50, "the data is repeated"
    assert len(stats["stat/val_loss:main"]) in (2, 3)


@pytest.mark.slow
def test_the_seconds_of_a_run_survive_a_kill(tmp_path, monkeypatch):
    (tmp_path / "trial.txt").write_text(
        "DataParams\ndataset_name = 'copy'\nn_samples = 400\nTrainParams\nmax_seconds = 3.0\nthreads = 1\n"
        "hyperparams_log_freq = 1\nwarmup_steps = 0.1\nModelParams\ndim = 16\nn_layers = 1\nn_heads = 2\n"
    )
    monkeypatch.setattr(main, "CONFIGS", tmp_path)
    words = ["--config=trial", "--no-wandb", "--resume", "--out", str(tmp_path / "out")]
    assert forked(lambda: killed_at("optimizer", 60, lambda: main.main(words))) == -signal.SIGKILL
    assert forked(lambda: main.main(words)) == 0
    table = runs(str(tmp_path / "out"))
    stats = Stats.load(find_run(table.index[0], str(tmp_path / "out")) / "stats.json").train_stats
    seconds = [stat.v for stat in stats["stat/train_seconds"]]
    assert seconds == sorted(seconds)
    assert [stat.s for stat in stats["stat/train_seconds"]] == list(range(len(seconds))), "no step twice"
    assert 2.5 < seconds[-1] < 3.5
    rates = [stat.v for stat in stats["stat/lr"]]
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


@pytest.mark.parametrize("options", [["--jobs=2"], ["--ray"]])
def test_time_is_not_shared_with_other_runs(options, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("train.launch.sweep.find_spec", lambda name: True)
    words = ["--config=test-synth", "--no-wandb", "--dry-run", "--out", str(tmp_path), *options]
    assert main.main([*words, "--set", "max_seconds=5", "--set", "n_samples=200"]) == 2
    assert (
        "--set max_seconds=5: max_seconds=5.0 measures a machine that one run has for itself"
        in capsys.readouterr().err
    )


def test_intervals_count_optimizer_steps(tmp_path):
    run = train(
        tmp_path,
        data=SMALL,
        max_steps=12,
        accumulate_grad_batches=2,
        batch_size=4,
        hyperparams_log_freq=3,
        val_every=0.5,
    )
    assert [stat.s for stat in run.stats.train_stats["stat/train_seconds"]] == [0, 3, 6, 9]
    assert [stat.s for stat in run.stats.train_stats["stat/val_loss:main"]] == [6, 12]


def test_a_run_that_was_saved_with_two_lengths_can_still_be_opened(tmp_path):
    folder = save_run(tmp_path)
    sections = json.loads((folder / "params.json").read_text())
    train_fields = {name: value for name, value in sections["train"].items() if name not in NEW_FIELDS}
    sections["train"] = train_fields | {"epochs": 2, "early_stop_nsamples": 300}
    (folder / "params.json").write_text(json.dumps(sections))
    assert read_params(folder, {}).train.lengths == {"early_stop_nsamples": 300}


# What ends a run


@pytest.mark.parametrize(
    ("text", "values", "holds"),
    [
        ("val_accuracy >= 0.99", {"val_accuracy": 0.99}, True),
        ("val_accuracy >= 0.99", {"val_accuracy": 0.98}, False),
        ("val_accuracy >= 0.99", {}, False),
        ("val_accuracy >= 0.99", {"val_accuracy": math.nan}, False),
        ("val_loss:balance < 1 and step > 10", {"val_loss:balance": 0.5, "step": 11}, True),
        (
            "val_accuracy[long-2] > 0.5 or max(val_loss, 1) < 1",
            {"val_accuracy[long-2]": 0.6, "val_loss": 3},
            True,
        ),
        ("1 / (val_loss - 1) > 0", {"val_loss": 1.0}, False),
    ],
)
def test_conditions_on_metrics(text, values, holds):
    assert Condition(text)(values) is holds


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("val_accuracy", "no comparison"),
        ("1 > 0", "names no metric"),
        ("val_loss = 3", "syntax error.*to compare write =="),
        ("__import__('os')", "no function"),
        ("(lambda: 1)()", "not allowed"),
    ],
)
def test_what_is_no_condition_is_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        Condition(text)


def test_the_direction_of_metrics():
    assert metric_and_sign("val_loss:balance") == ("val_loss:balance", 1)
    assert metric_and_sign("val_accuracy[long]") == ("val_accuracy[long]", -1)
    assert metric_and_sign("max my_stat") == ("my_stat", -1)
    with pytest.raises(ValueError, match="write 'max my_stat' or 'min my_stat'"):
        metric_and_sign("my_stat")


def test_a_run_stops_at_the_first_validation_where_its_condition_holds(tmp_path):
    fields = {"data": SMALL, "max_steps": 200, "val_every": 5, "lr_schedule": "constant"}
    run, outcome = train_whole(tmp_path, **fields, stop_when="train_loss < 1")
    losses = {stat.s: stat.v for stat in run.stats.train_stats["stat/train_loss:main"]}
    validated = [stat.s for stat in run.stats.train_stats["stat/val_loss:main"]]
    assert validated == list(range(5, run.global_step + 1, 5))
    assert [losses[step - 1] < 1 for step in validated] == [False] * (len(validated) - 1) + [True]
    assert outcome.stopped == "early stop: train_loss < 1"
    assert outcome.values["weights"] == "last"


def test_patience_waits_for_the_metric_that_it_is_given(tmp_path):
    fields = {
        "data": SMALL,
        "max_steps": 300,
        "val_every": 5,
        "patience": 3,
        "lr": 0.03,
        "lr_schedule": "constant",
    }
    run = train(tmp_path, **fields, patience_metric="val_accuracy")
    values = [stat.v for stat in run.stats.train_stats["stat/val_accuracy"]]
    assert run.stopped.startswith("early stop")
    best = values.index(max(values))
    assert len(values) == best + 4, "three validations without a gain"
    assert run.stats.train_stats["stat/best_val_accuracy"][0].v == max(values)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("stop_when", "val_acuracy > 0.9", "stop_when='val_acuracy > 0.9': there is no metric 'val_acuracy'; did you mean 'val_accuracy'?"),
        ("stop_when", "val_accuracy", "stop_when='val_accuracy': it is no comparison, as val_accuracy >= 0.99 is"),
        ("patience_metric", "max val_bleu", "patience_metric='max val_bleu': there is no metric 'val_bleu'; did you mean "),
        ("patience_metric", "val_bleu", "patience_metric='val_bleu': it is not known whether a higher or a lower value is better"),
    ],
)  # fmt: skip
def test_unknown_metrics_are_refused_before_training(field, value, said, tmp_path, capsys):
    words = [
        "--config=test-synth",
        "--no-wandb",
        f"--out={tmp_path}",
        "--set=n_samples=200",
        "--set=patience=2",
    ]
    assert main.main([*words, "--set", f"{field}={value}"]) == 2
    assert f"--set {field}={value}: {said}" in capsys.readouterr().err


@pytest.mark.slow
def test_metrics_of_a_users_own_are_known(tmp_path, monkeypatch):
    from train.trainer import LMTrainer

    hook = LMTrainer.on_before_optimizer_step
    calls = count()

    def with_stat(self, optimizer):
        self.log_stat("my_stat", float(next(calls)))
        hook(self, optimizer)

    monkeypatch.setattr(LMTrainer, "on_before_optimizer_step", with_stat)
    words = [
        "--config=test-synth",
        "--no-wandb",
        f"--out={tmp_path}",
        "--set=n_samples=200",
        "--set=max_steps=20",
    ]
    words += ["--set", "val_every=1", "--set", "threads=1", "--save"]
    assert main.main([*words, "--set", "stop_when=my_stat > 3 and val_exact_match >= 0"]) == 0
    table = runs(str(tmp_path))
    assert list(table.stopped) == ["early stop: my_stat > 3 and val_exact_match >= 0"]
    assert 0 < table.steps.iloc[0] < 20


# The size of updates


def test_the_ratio_of_update_to_weight_is_that_of_the_weights_before_and_after(tmp_path):
    fields = {"data": SMALL, "optimizer": "sgd", "lr_schedule": "constant", "hyperparams_log_freq": 2}
    before, after = (weights(train(tmp_path, max_steps=n, **fields)) for n in (2, 3))
    run = train(tmp_path, max_steps=3, **fields)
    stats = run.stats.train_stats["stat/update_ratio:decoder.layers.0"]
    own = [name for name in before if name.startswith("decoder.layers.0.")]
    norm = lambda tensors: math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))  # noqa: E731
    expected = norm([after[name] - before[name] for name in own]) / norm([before[name] for name in own])
    assert [stat.s for stat in stats] == [0, 2]
    assert stats[-1].v == pytest.approx(expected, rel=1e-4)
    assert [stat.s for stat in run.stats.train_stats["stat/weight_norm:decoder.layers.0"]] == [0, 2]


def test_measuring_updates_changes_no_weight_and_copies_none_between_entries(tmp_path, monkeypatch):
    clones = []
    clone = torch.Tensor.clone
    monkeypatch.setattr(
        torch.Tensor,
        "clone",
        lambda t, **o: (clones.append(1) if isinstance(t, torch.nn.Parameter) else None, clone(t, **o))[1],
    )
    often = weights(train(tmp_path, data=SMALL, max_steps=8, hyperparams_log_freq=1, dropout=0.1))
    n_often, n_params = len(clones), len(often)
    clones.clear()
    once = weights(train(tmp_path, data=SMALL, max_steps=8, hyperparams_log_freq=100, dropout=0.1))
    assert equal(often, once)
    assert (n_often, len(clones)) == (8 * n_params, n_params)


@pytest.mark.slow
def test_a_run_may_stop_by_an_evaluation_set(tmp_path, capsys):
    sets = "eval_sets={'long': {'n_samples': 20, 'task_args': {'min_length': 9, 'max_length': 10}}}"
    fields = ["n_samples=300", "max_steps=20", "val_every=2", sets, "stop_when=val_loss[long] < 100"]
    words = [
        "--config=test-synth",
        "--no-wandb",
        "--save",
        f"--out={tmp_path}",
        *(f"--set={one}" for one in fields),
    ]
    assert main.main(words) == 2
    assert (
        "evaluation sets are evaluated at the end of a run only, unless eval_every is set"
        in capsys.readouterr().err
    )
    assert main.main([*words, "--set=eval_every=2"]) == 0
    assert list(runs(str(tmp_path), all=True).steps) == [4]
