"""Open and look at saved runs: `import model_explorer`, in a notebook or a terminal."""

from explore.compare.report import report, results
from explore.compare.slices import slices
from explore.compare.verdicts import compare
from explore.diff import diff
from explore.evals.evaluation import lm_eval
from explore.heatmap import heatmap
from explore.html import attention_film, attention_html, attention_pair
from explore.inspection.analysis import (
    ablate,
    activation_patching,
    at,
    direct_logit_attribution,
    logit_lens,
    run_until,
)
from explore.inspection.circuits import circuit_svd, composition_scores
from explore.inspection.scores import (
    detect_heads,
    head_scores,
    loss_by_position,
    loss_by_token,
    over_checkpoints,
)
from explore.load import checkpoints, get_model_by_timestamp, load_all, runs
from explore.model_card import model_card
from explore.plots import head_film, plot_expert_load, plot_metric, plot_metrics, show_lm_attns
from explore.scaling.coordinates import coord_check
from explore.scaling.fold import fold_residual
from explore.scaling.stability import stability
from explore.scaling.transfer import transfer_report
from explore.verify import verify_stable_load
from gpt2 import push_to_hub, to_hf
from train.own_parts import load_parts

__all__ = [
    "ablate",
    "activation_patching",
    "at",
    "attention_film",
    "attention_html",
    "attention_pair",
    "checkpoints",
    "circuit_svd",
    "compare",
    "composition_scores",
    "coord_check",
    "detect_heads",
    "diff",
    "direct_logit_attribution",
    "fold_residual",
    "get_model_by_timestamp",
    "head_film",
    "head_scores",
    "heatmap",
    "lm_eval",
    "load_all",
    "load_parts",
    "logit_lens",
    "loss_by_position",
    "loss_by_token",
    "model_card",
    "over_checkpoints",
    "plot_expert_load",
    "plot_metric",
    "plot_metrics",
    "push_to_hub",
    "report",
    "results",
    "run_until",
    "runs",
    "show_lm_attns",
    "slices",
    "stability",
    "to_hf",
    "transfer_report",
    "verify_stable_load",
]
