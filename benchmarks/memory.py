"""Compare the peak memory of reading and tokenizing a text with that of a text ten times as large.

    python -m benchmarks.memory

Each size runs in its own process, one after the other. Target: ten times the text takes less than 1.3 times the memory.
"""

import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

LINES = 20_000  # of the smaller text, about 100 characters each
TOKENIZERS = ("char", "custom")


def write_corpus(folder: Path, n_lines: int) -> None:
    """Write `n_lines` lines of made-up words whose frequencies follow Zipf's law, as in real text."""
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(5000)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    folder.mkdir(parents=True)
    with (folder / "data.txt").open("w", encoding="utf-8") as file:
        for _ in range(n_lines):
            file.write(" ".join(rng.choices(words, weights, k=16)) + "\n")


def tokenize(name: str, source: str, cache: Path) -> None:
    """Read and tokenize a text as before a first run, and print the peak memory of this process in MB."""
    from data.data_params import DataParams
    from data.dataloader import LMDataModule
    from data.tokenizer import TokenizerSpec

    data = LMDataModule(DataParams(dataset_name=name), TokenizerSpec(source, 1000, False), 128, cache=cache)
    next(iter(data.train_dataloader(16)))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def peak_memory(root: Path, name: str, source: str) -> float:
    command = [sys.executable, "-m", "benchmarks.memory", name, source, str(root / "cache")]
    environment = {"WHATIF_DATA": str(root), "PATH": "/usr/bin:/bin"}
    return float(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_corpus(root / "small", LINES)
        write_corpus(root / "large", 10 * LINES)
        for source in TOKENIZERS:
            small, large = peak_memory(root, "small", source), peak_memory(root, "large", source)
            print(
                f"{source}: {small:.0f} MB, ten times the text {large:.0f} MB, ratio {large / small:.3f} (below 1.3)"
            )


if __name__ == "__main__":
    if sys.argv[1:]:
        tokenize(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
    else:
        main()
