"""Compare the estimate of --dry-run with the time that small grids really take: estimate, real, ratio.

    python3 -m benchmarks.estimate [name ...]

Each grid is estimated, trained and estimated again, as other programs may slow the machine down meanwhile.
"""

import io
import re
import sys
from contextlib import redirect_stdout
from tempfile import TemporaryDirectory

import main
from explore.load import runs

SECONDS = {"s": 1, "min": 60, "h": 3600}
SYNTH = ["--config=test-synth", "n_samples=1600", "epochs=1"]
GRIDS = {
    "widths": [*SYNTH, "dim=[32,64,96,128]"],
    "depths": [*SYNTH, "n_layers=[1,2,4,6]"],
    "task": [*SYNTH, "dataset_name=long_addition", "task_args={}", "lr=[1e-3,3e-3]"],
    "text": ["--config=test-nlp", "dataset_name=sotu", "debug_crop=6", "dim=[32,64]", "epochs=1"],
    "batch sizes": [*SYNTH, "batch_size=[8,32,128]", "dim=64"],
}


def printed(words: list[str], *options: str) -> str:
    """Return what main.py prints. A word without dashes is a setting."""
    words = [word if word.startswith("--") else f"--set={word}" for word in words]
    shown = io.StringIO()
    with redirect_stdout(shown):
        exit_code = main.main([*words, "--set=threads=1", "--no-wandb", *options])
    if exit_code:
        raise RuntimeError(f"{words} ends with exit code {exit_code}")
    return shown.getvalue()


def compare() -> None:
    print(f"{'grid':12}{'estimate':>20}{'real':>10}{'ratio':>8}")
    for name in sys.argv[1:] or GRIDS:
        with TemporaryDirectory() as out:
            estimates = []
            for options in (["--dry-run"], ["--save"], ["--dry-run"]):
                shown = printed(GRIDS[name], *options, "--out", out)
                for number, unit in re.findall(r"^about ([\d.]+) (\w+) for", shown, re.MULTILINE):
                    estimates.append(float(number) * SECONDS[unit])
            real = runs(out=out)["wall_seconds"].sum()
        mean = sum(estimates) / len(estimates)
        both = " and ".join(f"{seconds:.1f} s" for seconds in estimates)
        print(f"{name:12}{both:>20}{real:>8.1f} s{mean / real:>8.2f}", flush=True)


if __name__ == "__main__":
    compare()
