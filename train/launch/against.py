"""--against: train a grid with the code of a git ref, to compare it with the code of the working tree.

Both sides share the environment and the caches. All that they know of each other is what run folders hold.
"""

import ast
import json
import math
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from common.repository import REPOSITORY
from data.corpora import data_folder
from train.grid.config_text import located
from train.grid.expand import GridError, field_defaults
from train.grid.params import SECTION_OF, SECTIONS
from train.grid.run import Call, Run
from train.logs import log
from train.processes import INTERRUPTED, rank
from train.saving.code import OWN, Code
from train.saving.outcome import Outcome
from train.saving.run_folder import PARTIAL, read_about, read_json, run_folders

T = TypeVar("T")
# Runs main.py of the working directory with the configs in this script's folder. It ends with its parent process.
LAUNCHER = """
import os, pathlib, sys, threading, time
sys.path.insert(0, os.getcwd())
import main
main.CONFIGS = pathlib.Path(__file__).parent

def end_with(parent):
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)

if __name__ == "__main__":
    threading.Thread(target=end_with, args=[os.getppid()], daemon=True).start()
    sys.exit(main.main())
"""


class Baseline(NamedTuple):
    """The code of a git ref, exported to a folder."""

    ref: str  # as typed
    subject: str  # of its commit
    root: Path
    code: Code
    defaults: Mapping[str, object]  # of its params, by field; `...` in place of one that is no literal

    def config(self, name: str) -> str:
        """Return the config name under which this code trains the runs of the config `name`."""
        return f"{name}@{self.root.name[:10]}"

    @property
    def named(self) -> str:
        return f"{self.ref} ({self.subject})" if self.subject else self.ref


def export(ref: str, out: Path) -> Baseline:
    """Export the code of a git ref to `out`/code/TREE, unless it is there. The git repository does not change.

    Raise GridError if there is no such ref, or if it does not hold this project.
    """
    tree = git_output("rev-parse", "--verify", "--end-of-options", f"{ref}:./", ref=ref).decode().strip()
    subject = git_output("log", "-1", "--format=%s", "--end-of-options", ref, "--", ref=ref)
    root = out / "code" / tree
    if not root.exists():
        unpack(git_output("archive", "--format=tar", tree, ref=ref), root)
    try:
        code = Code.read(root)
        defaults = {name: value for section in SECTIONS for name, value in defaults_at(root, section)}
    except SyntaxError as error:
        raise GridError([f"--against={ref}: {error.filename}:{error.lineno}: {error.msg}"]) from None
    except OSError as error:
        raise GridError([f"--against={ref}: this commit has no {error.filename}"]) from None
    return Baseline(ref, subject.decode(errors="replace").strip(), root, code, defaults)


def unpack(archive: bytes, root: Path) -> None:
    """Unpack a tar archive to `root`, which appears once it is complete, even if other calls do the same."""
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent) as folder:
        with tarfile.open(fileobj=BytesIO(archive)) as file:
            file.extractall(Path(folder, root.name), filter="data")
        try:
            Path(folder, root.name).rename(root)
        except OSError:
            if not root.exists():  # another call was not faster
                raise


def git_output(*args: str, ref: str) -> bytes:
    """Return the output of git in this repository. Raise GridError if it fails."""
    try:
        return subprocess.run(["git", "-C", str(REPOSITORY), *args], capture_output=True, check=True).stdout
    except FileNotFoundError:
        raise GridError(["--against needs git, which is not installed"]) from None
    except subprocess.CalledProcessError as error:
        reason = error.stderr.decode(errors="replace").strip().removeprefix("fatal: ")
        unknown = "there is no such commit, branch or tag" if "single revision" in reason else reason
        raise GridError([f"--against={ref}: {unknown}"]) from None


def defaults_at(root: Path, section: str) -> list[tuple[str, object]]:
    """Return the fields of a section of params, and their defaults, from the code at `root`."""
    path = root / Path(*SECTIONS[section].__module__.split(".")).with_suffix(".py")
    [params_class] = [
        node
        for node in ast.parse(path.read_bytes(), str(path)).body
        if isinstance(node, ast.ClassDef) and node.name == section
    ]
    annotated = [node for node in params_class.body if isinstance(node, ast.AnnAssign)]
    fields = [node for node in annotated if "ClassVar" not in ast.unparse(node.annotation)]
    return [(node.target.id, literal(node.value)) for node in fields if isinstance(node.target, ast.Name)]


def literal(node: ast.expr | None) -> object:
    """Return the value of an expression, or `...` if it is no literal."""
    with suppress(ValueError):
        return ... if node is None else ast.literal_eval(node)
    return ...


def chosen_fields(runs: Sequence[Run], baseline: Baseline) -> list[dict[str, object]]:
    """Return, for each of `runs`, the fields that the baseline's run gets from it: the same ones for all.

    A field that no run sets keeps the default of each code. Raise GridError for a field that the baseline's code lacks,
    unless it is at its default.
    """
    errors, chosen = [], set[str]()
    for run in runs:
        values = run.params.flat()
        changed = {name for name in values if values[name] != field_defaults()[name]}
        for name in sorted(changed - baseline.defaults.keys()):
            message = f"{name}={values[name]!r}, but the code of {baseline.ref} has no field {name!r}"
            errors.append(located(message, run.places))
        chosen |= changed | run.places.keys()
    if errors:
        raise GridError(errors)
    known = [name for name in SECTION_OF if name in chosen and name in baseline.defaults]
    return [{name: run.params.flat()[name] for name in known} for run in runs]


def saved_outcomes(
    baseline: Baseline, runs: Sequence[Run], config: str, out: Path, *, any_text: bool = False
) -> list[Outcome | None]:
    """Return, for each of `runs`, how its latest saved run with the baseline's code ended. None if there is none.

    Such a run has the identity of `run` and the baseline's code, or `train_baseline` trained it: then the fields decide.
    `any_text` ignores whether its text and the user's own files were the same.
    """
    by_identity = {run.identity: i for i, run in enumerate(runs)}
    wanted = [{**baseline.defaults, **fields} for fields in chosen_fields(runs, baseline)]
    found: list[Outcome | None] = [None] * len(runs)
    option = f"--config={baseline.config(config)}"
    for folder in sorted(run_folders(out), key=lambda path: path.name):
        try:
            about = {} if folder.name.endswith(PARTIAL) else read_about(folder)
            place = by_identity.get(about.get("identity", ""))
            if place is not None and about["code"] != baseline.code.hashes(runs[place].params.flat()):
                place = None
            if place is None and option in about.get("command", []):
                saved = saved_fields(folder)
                place = next((i for i, fields in enumerate(wanted) if is_part(fields, saved)), None)
                if place is not None and not any_text and not is_current(about, baseline, runs[place]):
                    place = None
        except ValueError:  # a damaged folder, or one of an older version
            continue
        if place is not None:
            outcome = Outcome.from_row(about["summary"], folder)
            found[place] = found[place] if outcome.interrupted else outcome
    return found


def is_current(about: Mapping[str, Any], baseline: Baseline, run: Run) -> bool:
    """Return True if a saved run used the text of `run`, and the parts of the user's own files as they are now."""

    def own_parts(code: Mapping[str, str]) -> dict[str, str]:
        return {name: value for name, value in code.items() if name.startswith(OWN)}

    code = baseline.code.hashes(run.params.flat())
    return about.get("content") == run.data.content and own_parts(about["code"]) == own_parts(code)


def saved_fields(folder: Path) -> dict[str, object]:
    sections = read_json(folder / "params.json").values()
    return {
        name: value for section in sections if isinstance(section, dict) for name, value in section.items()
    }


def is_part(fields: Mapping[str, object], saved: Mapping[str, object]) -> bool:
    """Return True if a saved run has these fields. A field of value `...` may have any."""
    known = {name: value for name, value in fields.items() if value is not ...}
    return json.loads(json.dumps(known)) == {name: saved.get(name) for name in known}


def train_baseline(
    baseline: Baseline, runs: Sequence[Run], config: str, call: Call, options: Sequence[str]
) -> int:
    """Train `runs` with the baseline's code in a process of its own. Return its exit code.

    `options` are further options of its command line. Ctrl-C is passed on to it, and it ends if this process does.
    """
    name = baseline.config(config)
    environment = os.environ | {"WHATIF_DATA": str(data_folder() or "")}
    with tempfile.TemporaryDirectory(prefix="whatif-") as folder:
        text = config_text(chosen_fields(runs, baseline))
        file = Path(folder, f"{name}.txt")  # the name may begin with a folder, as in reproduce/sort
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        launcher = Path(folder, "baseline.py")
        launcher.write_text(LAUNCHER, encoding="utf-8")
        command = [sys.executable, str(launcher), f"--config={name}", "--save", f"--out={call.out}", *options]
        process = subprocess.Popen(command, cwd=baseline.root, env=environment, process_group=0)
        before = signal.signal(signal.SIGINT, lambda *_: process.send_signal(signal.SIGINT))
        try:
            return process.wait()
        finally:
            signal.signal(signal.SIGINT, before)
            process.kill()  # nothing, unless this process fails


def config_text(runs: Sequence[Mapping[str, object]]) -> str:
    """Return the text of a config of exactly these runs, which set the same fields.

    Fields that vary are axes if the runs are their product. Else each run is a variant.
    """
    values = {name: distinct(run[name] for run in runs) for name in runs[0]}
    varied = [name for name, found in values.items() if len(found) > 1]
    points = distinct({name: run[name] for name in varied} for run in runs)
    is_product = len(points) == math.prod(len(values[name]) for name in varied)
    lines = []
    for section in SECTIONS:
        own = [name for name in values if SECTION_OF[name] == section]
        lines += [section, *(f"{name} = {values[name][0]!r}" for name in own if name not in varied)]
        lines += [f"{name} = {values[name]!r}" for name in own if name in varied and is_product]
    if not is_product:
        variants = {", ".join(f"{name} {value}" for name, value in own.items()): own for own in points}
        lines += ["Grid", f"variants = {variants!r}"]
    return "\n".join(lines) + "\n"


def distinct(values: Iterable[T]) -> list[T]:
    """Return the different values, in order. They need not be hashable."""
    found: list[T] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found


def baseline_outcomes(
    baseline: Baseline, runs: Sequence[Run], config: str, call: Call, options: Sequence[str]
) -> list[Outcome]:
    """Return how each of `runs` ended with the baseline's code. Train those that are not saved yet.

    Return an empty list if some failed, and in the further processes of a run. Raise KeyboardInterrupt after Ctrl-C.
    """
    if rank() > 0:
        return []
    found = find_saved(baseline, runs, config, call.out)
    missing = [run for run, outcome in zip(runs, found, strict=True) if outcome is None]
    if missing:
        code = train_baseline(baseline, missing, config, call, options)
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        found = saved_outcomes(baseline, runs, config, call.out, any_text=True)
        log.info("with your code:")
    ended = [outcome for outcome in found if outcome is not None]
    if len(ended) < len(runs):
        n_failed = len(runs) - len(ended)
        log.error(
            f"{n_failed} of {len(runs)} runs failed with the code of {baseline.ref}: nothing is compared"
        )
        return []
    return ended


def find_saved(baseline: Baseline, runs: Sequence[Run], config: str, out: Path) -> list[Outcome | None]:
    """Return what `saved_outcomes` does, and log how many runs are saved."""
    found = saved_outcomes(baseline, runs, config, out)
    n_missing = found.count(None)
    to_train = f", {n_missing} to train" if n_missing else ""
    log.info(
        f"with the code of {baseline.named}: {len(runs) - n_missing} of {len(runs)} runs are saved{to_train}"
    )
    return found
