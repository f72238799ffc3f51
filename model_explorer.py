"""Open and look at saved runs: `import model_explorer`, in a notebook or a terminal."""

from explore.load import get_model_by_timestamp, load_all, runs
from explore.plots import plot_metric, plot_metrics, show_lm_attns
from explore.verify import verify_stable_load

__all__ = [
    "get_model_by_timestamp",
    "load_all",
    "plot_metric",
    "plot_metrics",
    "runs",
    "show_lm_attns",
    "verify_stable_load",
]
