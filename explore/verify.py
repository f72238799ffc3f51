"""Checks that a saved run still behaves as when it was saved."""

import math

import torch

from data.dataloader import LMDataModule
from explore.load import find_run, open_run
from model.lm import LM
from train.evaluation import make_evaluation
from train.probe import leak_of
from train.saving.run_folder import output_root, read_about
from train.train_params import TrainParams

TOLERANCE = 1e-3  # relative: the number of threads and the machine may differ
TOLERANCE_MIXED = 2e-2  # relative: a mixed-precision run was validated in half precision, the check uses full


def verify_stable_load(timestamp: str, out: str | None = None) -> None:
    """Check that a saved run still behaves as when it was saved, and print the result of each check.

    The validation loss must equal the recorded one. Two passes over the same input must give the same logits. No logits
    may depend on other samples or, unless causal=False, on later tokens. `timestamp` and `out` are those of
    get_model_by_timestamp(). Raise ValueError at the first check that fails.
    """
    folder = find_run(timestamp, out)
    lm, dataset, _, params = open_run(folder, output_root(out))
    check_val_loss(lm, dataset, params["train"], read_about(folder)["summary"].get("val_loss"))
    batch = next(iter(dataset.val_dataloader(params["train"].batch_size)))
    x_BT = batch["x_indices"][:, :-1]
    check_deterministic(lm, x_BT)
    with torch.no_grad():
        diverged = bool(lm(x_BT).isnan().any())
    if diverged:
        print("logits are NaN: leaks cannot be checked")
    else:
        check_causal(lm)


def check_val_loss(lm: LM, dataset: LMDataModule, train_params: TrainParams, recorded: object) -> None:
    """Raise ValueError unless the validation loss is `recorded`, within the tolerance, or both are NaN."""
    if not isinstance(recorded, int | float):
        raise ValueError(f"no validation loss was recorded: the run's val_loss is {recorded!r:.60}")
    evaluation = make_evaluation(lm, dataset)
    for batch in dataset.val_dataloader(train_params.batch_size):
        evaluation.add(batch, train_params)
    now = evaluation.result()["val_loss:main"]
    tolerance = TOLERANCE_MIXED if train_params.precision.endswith("mixed") else TOLERANCE
    both_nan = math.isnan(now) and math.isnan(recorded)  # a run that diverged
    if not both_nan and not math.isclose(now, recorded, rel_tol=tolerance):
        raise ValueError(
            f"validation loss is {now:.6g} now and was {recorded:.6g} when the run was saved: "
            "the weights, the data or the code have changed"
        )
    print(f"validation loss {now:.6g}, recorded {recorded:.6g}: ok")


@torch.no_grad()
def check_deterministic(lm: LM, x_BT: torch.Tensor) -> None:
    if not torch.equal(lm(x_BT).nan_to_num(), lm(x_BT).nan_to_num()):
        raise ValueError("the same input gives different logits in a second pass")
    print("same logits in a second pass: ok")


def check_causal(lm: LM) -> None:
    if leak := leak_of(lm):
        raise ValueError(f"a prediction depends on something it must not see: {leak}")
    later = "later tokens or " if lm.model_params.causal else ""
    print(f"no logits depend on {later}other samples: ok")
