"""A plain run: how deep its calls are, what it imports, how much code it loads."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.marks import SLOW

ROOT = Path(__file__).resolve().parents[1]
PLAIN = ["--config=test-synth", "--no-wandb", "--set=n_samples=200", "--set=early_stop_nsamples=32"]
NOT_NEEDED = ("ray", "wandb", "datasets", "matplotlib", "statsmodels", "altair", "learn", "model.hf")
MAX_FRAMES = 9
# Run in a process of its own. Prints the frames of ours between main and LM.forward, then who of ours asks for what.
SCRIPT = f"""
import builtins, sys
root, options = sys.argv[1] + "/", sys.argv[2:]
sys.path.insert(0, sys.argv[1])
asked, frames = set(), []
plain_import = builtins.__import__

def noted_import(name, globals=None, locals=None, fromlist=(), level=0):
    file = (globals or {{}}).get("__file__") or ""
    names = [name, *(f"{{name}}.{{part}}" for part in fromlist or ())]
    if file.startswith(root) and "site-packages" not in file:
        for heavy in {NOT_NEEDED!r}:
            if any(f"{{one}}.".startswith(f"{{heavy}}.") for one in names):
                asked.add(f"{{file[len(root):]}} asks for {{heavy}}")
    return plain_import(name, globals, locals, fromlist, level)

builtins.__import__ = noted_import
import main
from model.lm import LM

forward = LM.forward

def noted_forward(self, *args, **options):
    stack, frame = [], sys._getframe(1)
    while frame is not None and not frames:
        file = frame.f_code.co_filename
        if file.startswith(root) and "site-packages" not in file:
            stack.append(f"{{file[len(root):]}}:{{frame.f_code.co_name}}")
        frame = frame.f_back
    if "train/trainer.py:training_step" in stack:
        frames.extend(stack)
    return forward(self, *args, **options)

LM.forward = noted_forward
assert main.main(options) == 0
print("\\nFRAMES", *frames)
print("ASKED", *sorted(asked), sep="\\n")
"""


pytestmark = SLOW  # it imports everything anew


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    command = [sys.executable, "-c", SCRIPT, str(ROOT), *PLAIN, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=out, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    _, _, noted = done.stdout.partition("\nFRAMES ")
    frames, _, asked = noted.partition("\nASKED\n")
    return frames.split(), asked.splitlines()


def test_few_of_our_frames_lie_between_main_and_the_model(plain_run):
    frames, _ = plain_run
    assert frames[-1] == "main.py:main"
    assert len(frames) - 1 <= MAX_FRAMES, frames


def test_a_plain_run_asks_for_nothing_that_it_does_not_need(plain_run):
    _, asked = plain_run
    assert asked == []
