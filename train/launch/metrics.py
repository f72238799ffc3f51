"""Find the metrics that a run records, before it trains, to refuse unknown names in `stop_when` and `patience_metric`."""

from collections.abc import Iterator

from common.text import did_you_mean, first_line
from train.grid.params import Texts
from train.grid.run import Call, Run
from train.metrics import STEP, Condition, metric_and_sign, typed_name
from train.train_params import TrainParams

ALWAYS = {STEP, "train_loss", "val_loss", "val_accuracy"}  # recorded by every run


def metric_problems(runs: list[Run], call: Call) -> Iterator[tuple[Run, str]]:
    """Yield each run with an error message for a name that is none of its metrics.

    A name that not every run records is looked up in a trial of one training step and one validation batch.
    """
    recorded: dict[str, set[str] | str] = {}
    text = Texts()
    for run in runs:
        data, train, model = run.params
        for field, name in metrics_named(train):
            if name in ALWAYS:
                continue
            if (key := f"{text(data)} {text(model)} {text(train)}") not in recorded:
                recorded[key] = metrics_in_trial(run, call)
            known, shown = recorded[key], f"{field}={getattr(train, field)!r}"
            if isinstance(known, str):
                yield run, f"{shown}: the metrics of this run are unknown, as a training step fails: {known}"
            elif name.endswith("]") and name in known and data.eval_every is None:
                yield (
                    run,
                    f"{shown}: evaluation sets are evaluated at the end of a run only, unless eval_every is set",
                )
            elif name not in known:
                yield run, f"{shown}: there is no metric {name!r}; {did_you_mean(name, sorted(known))}"


def metrics_named(train: TrainParams) -> Iterator[tuple[str, str]]:
    """Yield (field, metric) for every metric that the params name."""
    if train.stop_when is not None:
        yield from (("stop_when", name) for name in Condition(train.stop_when).names.values())
    if train.patience is not None:
        yield "patience_metric", metric_and_sign(train.patience_metric)[0]


def metrics_in_trial(run: Run, call: Call) -> set[str] | str:
    """Return the names of the metrics that a run records, or the error that keeps it from training."""
    try:
        return ALWAYS | {typed_name(name) for name in statistics_in_trial(run, call)}
    except Exception as error:  # it is the user's own code
        return first_line(error)


def statistics_in_trial(run: Run, call: Call) -> set[str]:
    """Train one step like `run`, validate on one batch, and return the names of the statistics."""
    # These modules import Lightning, which is slow, and few grids name such a metric.
    from model.lm import LM
    from train.data import make_data
    from train.evaluation import Evaluation, of_set
    from train.launch.estimate import step_params
    from train.pretrained import saved_tokenizer
    from train.probe import own_randomness
    from train.run import cpu_threads, lightning_trainer
    from train.stats import Stats
    from train.trainer import LMTrainer

    data_params, train, model = run.params
    stats, names = Stats(), set[str]()
    with own_randomness(), cpu_threads(train.threads):
        data = make_data(data_params, model, call.cache, tokenizer=saved_tokenizer(model, call.out))
        lm = LM(model, tokenizer=data.tokenizer, dropout=train.dropout)
        trial = LMTrainer(lm, data, step_params(train), stats, 1)
        trainer = lightning_trainer(trial.train_params, 1, call.gpu_id)
        trainer.fit(trial, data.train_dataloader(train.batch_size))
        evaluation = Evaluation(lm.cpu().eval(), data)
        evaluation.add(next(iter(data.val_dataloader(train.batch_size))), train)
        names.update(result := evaluation.result())
        for name in data.eval_sets:
            names.update(of_set(name, result))
    return names | stats.train_stats.keys()
