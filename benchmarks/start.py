"""Measure how long a call takes to start: the first line, and the first training step against Lightning's import.

    python -m benchmarks.start [--rounds 5]

Three processes take turns: `import lightning.pytorch` alone, `main.py --config=test-synth` until its first training step,
and the same until its first line. The cache of the data is filled beforehand. Targets: the step at most 1.0 s after the
import alone (the median of the differences in a round), the line at most 0.5 s after the command.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time

from common.repository import REPOSITORY

IMPORT = "import lightning.pytorch"
# Ends the process when the first training step has ended.
STEP = """
import os, sys, time
import main

sys.argv = ["main.py", *sys.argv[1:]]

class Ends:
    def find_spec(self, name, path=None, target=None):
        if name == "train.run":  # imported last: wrap the trainer's hook as soon as it exists
            sys.meta_path.remove(self)
            from train.trainer import LMTrainer

            hook = LMTrainer.on_train_batch_end

            def ended(self, *args):
                hook(self, *args)
                os._exit(0)

            LMTrainer.on_train_batch_end = ended

sys.meta_path.insert(0, Ends())
main.main(sys.argv[1:])
sys.exit("no step was trained")
"""


def seconds_of(code: str, *options: str) -> float:
    """Return the seconds that a Python process with this code takes."""
    started = time.perf_counter()
    command = [sys.executable, "-c", code, *options]
    subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def seconds_to_first_line(*options: str) -> float:
    """Return the seconds from the start of main.py to its first line."""
    started = time.perf_counter()
    command = [sys.executable, "main.py", *options]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        seconds = time.perf_counter() - started
        process.kill()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as out:
        options = ["--config=test-synth", "--no-wandb", "--out", out]
        seconds_of(STEP, *options)  # fills the cache
        measured = [
            (seconds_of(IMPORT), seconds_of(STEP, *options), seconds_to_first_line(*options))
            for _ in range(rounds)
        ]
    alone, steps, lines = zip(*measured, strict=True)
    later = [step - one for one, step in zip(alone, steps, strict=True)]
    print(
        f"import lightning.pytorch alone {statistics.median(alone):.2f} s, first step {statistics.median(steps):.2f} s"
    )
    verdict = "met" if statistics.median(later) <= 1.0 else "NOT met"
    print(f"first step after the import alone: {statistics.median(later):.2f} s (target 1.0 s: {verdict})")
    verdict = "met" if statistics.median(lines) <= 0.5 else "NOT met"
    print(f"first line: {statistics.median(lines):.2f} s (target 0.5 s: {verdict})")


if __name__ == "__main__":
    main()
