"""Find what a run records, before it trains, to refuse unknown names in `stop_when`, `patience_metric` and claims."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from common.text import did_you_mean, first_line
from train.final_metrics import final_metrics
from train.grid.claims import TIME_TO, Claim, Expectations, Pick, fields_and_variant
from train.grid.params import SECTION_OF, Texts
from train.grid.run import Call, Run
from train.metrics import STEP, Condition, metric_and_sign, typed_name
from train.train_params import TrainParams

COLUMNS = {"val_loss", "val_accuracy"}  # of every run
ALWAYS = {STEP, "train_loss", *COLUMNS}  # recorded by every run


def metric_problems(runs: list[Run], call: Call) -> Iterator[tuple[Run, str]]:
    """Yield each run with an error message for a name that is none of its metrics.

    A name that not every run records is looked up in a trial of one training step and one validation batch.
    """
    recorded: dict[str, Recorded | str] = {}
    text = Texts()
    for run in runs:
        data, train, model = run.params
        for field, name in metrics_named(train):
            if name in ALWAYS:
                continue
            if (key := f"{text(data)} {text(model)} {text(train)}") not in recorded:
                recorded[key] = recorded_in_trial(run, call)
            found, shown = recorded[key], f"{field}={getattr(train, field)!r}"
            if isinstance(found, str):
                yield run, f"{shown}: the metrics of this run are unknown, as a training step fails: {found}"
            elif name.endswith("]") and name in found.statistics and data.eval_every is None:
                yield (
                    run,
                    f"{shown}: evaluation sets are evaluated at the end of a run only, unless eval_every is set",
                )
            elif name not in found.statistics:
                yield (
                    run,
                    f"{shown}: there is no metric {name!r}; {did_you_mean(name, sorted(found.statistics))}",
                )


def metrics_named(train: TrainParams) -> Iterator[tuple[str, str]]:
    """Yield (field, metric) for every metric that the params name."""
    if train.stop_when is not None:
        yield from (("stop_when", name) for name in Condition(train.stop_when).names.values())
    if train.patience is not None:
        yield "patience_metric", metric_and_sign(train.patience_metric)[0]


def with_metrics(runs: Sequence[Run], expected: Mapping[str, Expectations]) -> list[Run]:
    """Return the runs with the registered metrics that claims of their config name."""
    named = {
        config: tuple(dict.fromkeys(c for _, pick, c in columns_named(one) if c in final_metrics))
        for config, one in expected.items()
    }
    return [replace(run, metrics=named.get(run.config, ())) for run in runs]


def columns_named(expectations: Expectations) -> Iterator[tuple[Claim, Pick, str]]:
    """Yield the columns that claims name, each with its claim and its pick."""
    for claim in expectations.claims:
        for pick in claim.picks.values():
            yield from ((claim, pick, column) for column in pick.columns)


def claim_problems(
    runs: Sequence[Run], expected: Mapping[str, Expectations], call: Call, harness_tasks: Collection[str] = ()
) -> Iterator[str]:
    """Yield an error message for every name in claims that no column of their runs will have.

    As for conditions, names that not every run has are looked up in a trial of one step. `harness_tasks` are those of
    --lm-eval: their metrics, such as `acc[blimp]`, are columns once the runs are trained.
    """
    recorded: dict[int, Recorded | str] = {}
    for config, expectations in expected.items():
        for claim, pick, column in columns_named(expectations):
            time = TIME_TO.fullmatch(column)
            name = time[2] if time else column
            where = f"{claim.place}: claim {claim.name!r}: `{pick.text}`"
            picked = [run for run in runs if run.config == config and pick.takes(fields_and_variant(run))]
            if not picked:
                yield f"{where} picks no run, since match has chosen other sizes; name another field"
                continue
            known = ALWAYS if time else {*COLUMNS, *final_metrics}
            if not time and name.partition("[")[2].rstrip("]") in harness_tasks:
                continue
            if name in known or (name in SECTION_OF and pick.function):
                continue
            run = picked[0]
            if run.number not in recorded:
                recorded[run.number] = recorded_in_trial(run, call)
            found = recorded[run.number]
            if isinstance(found, str):
                yield f"{where}: the columns of this run are unknown, as a training step fails: {found}"
            elif name not in (known := found.statistics if time else found.columns):
                # If no name is like it, all are listed: the results first.
                names = sorted({*known, *final_metrics}, key=lambda one: (not one.startswith("val_"), one))
                hint = did_you_mean(name, names)
                yield f"{where}: there is no {'statistic' if time else 'column'} {name!r}; {hint}"


class Recorded(NamedTuple):
    """Names of what a run records."""

    statistics: set[str]  # as people type them: val_loss, val_loss:balance
    columns: set[str]  # of `runs()`: its final numbers


def recorded_in_trial(run: Run, call: Call) -> Recorded | str:
    """Return the names of what a run records, or the error that keeps it from training."""
    try:
        return trial_of(run, call)
    except Exception as error:  # it is the user's own code
        return first_line(error)


def trial_of(run: Run, call: Call) -> Recorded:
    """Train one step like `run`, validate on one batch, and return the names of what this records."""
    # These modules import Lightning, which is slow, and few grids name such a metric.
    from model.lm import LM
    from train.callbacks import Clock
    from train.data import make_data
    from train.evaluation import make_evaluation, of_set
    from train.launch.estimate import step_params
    from train.pretrained import saved_tokenizer
    from train.probe import own_randomness
    from train.run import cpu_threads, final_values, lightning_trainer
    from train.stats import Stats
    from train.trainer import LMTrainer

    data_params, train, model = run.params
    stats = Stats()
    with own_randomness(), cpu_threads(train.threads):
        data = make_data(data_params, model, call.cache, tokenizer=saved_tokenizer(model, call.out))
        lm = LM(model, tokenizer=data.tokenizer, dropout=train.dropout)
        trial = LMTrainer(lm, data, step_params(train), stats, 1)
        trainer = lightning_trainer(trial.train_params, 1, call.gpu_id)
        trainer.fit(trial, data.train_dataloader(train.batch_size))
        evaluation = make_evaluation(lm.cpu().eval(), data)
        evaluation.add(next(iter(data.val_dataloader(train.batch_size))), train)
        trial.result = evaluation.result()
        trial.n_samples, trial.n_tokens = int(trial.n_samples), int(trial.n_tokens)
        for name in (*data.parts, *data.eval_sets):
            trial.eval_result |= of_set(name, trial.result)
        columns = set(final_values(trial, lm, Clock()))
    names = trial.result.keys() | trial.eval_result.keys() | stats.train_stats.keys()
    return Recorded(ALWAYS | {typed_name(name) for name in names}, columns)
