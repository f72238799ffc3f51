"""Metrics of a trained model that no column has: functions of a model and its data, computed when a run ends.

    @metric
    def longest_word(lm, data):
        return float(...)

A claim in the Expect section of a config names one as it names a column. The runs of this config then have the column.
"""

from collections.abc import Callable, Iterable

import torch

from common.registry import Registry
from common.text import first_line
from data.dataloader import LMDataModule
from model.generation.sampling import eval_mode
from model.lm import LM
from train.logs import log
from train.probe import own_randomness

FinalMetric = Callable[[LM, LMDataModule], float]
final_metrics: Registry[FinalMetric] = Registry("metric")
metric = final_metrics.register


def values_of_metrics(names: Iterable[str], lm: LM, data: LMDataModule) -> dict[str, float | None]:
    """Return these metrics of a trained model by name. One that fails is None, with a warning: the run is not lost."""
    values: dict[str, float | None] = {}
    for name in names:
        try:
            with own_randomness(), eval_mode(lm), torch.no_grad():
                values[name] = float(final_metrics[name](lm, data))
        except Exception as error:  # it may be the user's own code
            log.warning(f"no {name}: {first_line(error)}")
            values[name] = None
    return values


final_metrics.add_lazy("fourier_share", "explore.claim_metrics")
final_metrics.add_lazy("sink_share", "explore.claim_metrics")
final_metrics.add_lazy("largest_sink_share", "explore.claim_metrics")
final_metrics.add_lazy("induction_score", "explore.claim_metrics")
final_metrics.add_lazy("largest_attention_score", "explore.claim_metrics")
final_metrics.add_lazy("mean_log_z", "explore.claim_metrics")
final_metrics.add_lazy("output_change", "explore.claim_metrics")
final_metrics.add_lazy("unigram_loss", "explore.claim_metrics")
final_metrics.add_lazy("bigram_loss", "explore.claim_metrics")
final_metrics.add_lazy("token_entropy", "explore.claim_metrics")
final_metrics.add_lazy("regression_error", "explore.regression_metrics")
final_metrics.add_lazy("ridge_error", "explore.regression_metrics")
final_metrics.add_lazy("dmmse_error", "explore.regression_metrics")
final_metrics.add_lazy("regression_error_on_new_maps", "explore.regression_metrics")
final_metrics.add_lazy("ridge_error_on_new_maps", "explore.regression_metrics")
final_metrics.add_lazy("last_regression_error", "explore.regression_metrics")
final_metrics.add_lazy("last_ridge_error", "explore.regression_metrics")
