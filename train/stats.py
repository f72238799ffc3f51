"""Statistics of a run: the log of its metrics, and the only file that imports wandb."""

import contextlib
import json
import os
import shlex
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple, Self

import psutil
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from common.text import first_line
from train.logs import log

START_SECONDS = 8  # for wandb's server to answer, before a run goes offline
FINISH_SECONDS = 25  # for the last uploads, before they are left to `wandb sync`
MAX_FINISH_SECONDS = 30.0  # for wandb to end a run, uploads included, before its process is killed
MAX_TAG = 64  # characters that wandb allows
MAX_KILL_SECONDS = 5.0  # for its process to end once it is killed


class Stat(NamedTuple):
    """A value of a metric."""

    s: int  # optimizer steps so far
    n: int  # training samples so far
    c: int  # counter over all metrics
    v: float


# Sections of wandb's page, by the beginning of a metric's name. All others are in "stat".
WANDB_SECTIONS = {
    "train": ("train_",),
    "val": ("val_", "best_"),
    "optim": ("lr", "tau", "eps"),
    "norms": ("grad_norm", "weight_norm", "norm", "update"),
}
WandbRow = dict[str, float | str]  # what wandb gets of one moment


SAVED = TypeAdapter(dict[str, list[Stat]])  # the content of a file of statistics


class Stats:
    """All metrics of a run. Logging never waits for the device: `drain` fetches tensors."""

    def __init__(self, tracker: "WandbTracker | None" = None) -> None:
        self._tracker = tracker
        self._pending: list[tuple[str, int, int | Tensor, float | Tensor]] = []
        self._drained: dict[str, list[Stat]] = {}
        self._count = 0

    def log(self, name: str, value: float | Tensor, *, step: int, n_samples: int | Tensor) -> None:
        """Log a number, or a tensor of one element on any device, as "stat/{name}". `n_samples` may be a tensor too.

        Raise ValueError for a tensor of several elements.
        """
        name = f"stat/{name}"
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise ValueError(f"{name} is a tensor of shape {tuple(value.shape)}; log numbers")
            value = value.detach().clone()  # a weight or a buffer changes later
        else:
            value = float(value)
        self._pending.append((name, step, n_samples, value))

    def show_text(self, name: str, text: str, *, step: int, n_samples: int) -> None:
        """Send a text, such as a sample, to the tracker. It is not kept here."""
        if self._tracker is not None:
            self._tracker.log({"step": step, "n_samples": n_samples, in_section(name): text})

    def drain(self) -> None:
        """Move what was logged since the last drain into train_stats, and pass it to the tracker."""
        pending, self._pending = self._pending, []
        values = _fetch([value for *_, value in pending])
        rows = _fetch([n_samples for _, _, n_samples, _ in pending])
        logged = []
        for (name, step, _, _), n_samples, value in zip(pending, rows, values, strict=True):
            stat = Stat(step, int(n_samples), self._count, value)
            self._count += 1
            self._drained.setdefault(name, []).append(stat)
            logged.append((name, stat))
        if self._tracker is not None:
            for row in _rows(logged):
                self._tracker.log(row)

    def latest(self, name: str) -> float | Tensor | None:
        """Return the value logged last as "stat/{name}", or None. Drains nothing; any thread may call this."""
        name = f"stat/{name}"
        pending = next((value for one, *_, value in reversed(self._pending) if one == name), None)
        if pending is None and (drained := self._drained.get(name)):
            return drained[-1].v
        return pending

    @property
    def train_stats(self) -> dict[str, list[Stat]]:
        """Values of every metric in the order in which they were logged. Drains first."""
        self.drain()
        return self._drained

    def state_dict(self) -> dict[str, Tensor]:
        """Return train_stats as tensors, one row per value, for a checkpoint."""
        return {
            name: torch.tensor([*values], dtype=torch.float64) for name, values in self.train_stats.items()
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from an earlier state. The tracker already has its values."""
        self._pending = []
        self._drained = {
            name: [Stat(int(s), int(n), int(c), v) for s, n, c, v in rows.tolist()]
            for name, rows in state.items()
        }
        self._count = sum(map(len, self._drained.values()))

    def save(self, path: Path) -> None:
        """Write train_stats as JSON in Python's dialect, which has NaN and Infinity."""
        path.write_text(json.dumps(self.train_stats))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Load a file written by `save`. Raise ValueError if it holds anything else."""
        stats = cls()
        try:
            stats._drained = SAVED.validate_json(path.read_bytes(), strict=True)
        except ValidationError as error:
            raise ValueError(f"{path} does not hold statistics: {error.errors()[0]['msg']}") from None
        stats._count = sum(len(values) for values in stats._drained.values())
        return stats


def _fetch(values: list[float | Tensor]) -> list[float]:
    """Return the values as floats, by one stacked transfer for each device and dtype."""
    kinds: dict[Any, dict[int, Tensor]] = defaultdict(dict)
    for i, value in enumerate(values):
        if isinstance(value, Tensor):
            kinds[value.device, value.dtype][i] = value.reshape(())
    fetched: dict[int, float] = {}
    for tensors in kinds.values():
        fetched.update(zip(tensors, torch.stack([*tensors.values()]).tolist(), strict=True))
    return [float(fetched.get(i, value)) for i, value in enumerate(values)]


def in_section(name: str) -> str:
    """Return the name of a metric in wandb, such as "val/val_loss:main" for "stat/val_loss:main"."""
    bare = name.removeprefix("stat/")
    found = (section for section, beginnings in WANDB_SECTIONS.items() if bare.startswith(beginnings))
    return f"{next(found, 'stat')}/{bare}"


def _rows(logged: list[tuple[str, Stat]]) -> Iterator[WandbRow]:
    """Yield all values of one moment as a row. A repeated name starts a new row, so that none is overwritten."""
    row: WandbRow = {}
    for metric, stat in logged:
        name, moment = in_section(metric), {"step": stat.s, "n_samples": stat.n}
        if row and (name in row or not moment.items() <= row.items()):
            yield row
            row = {}
        row |= moment | {name: stat.v}
    if row:
        yield row


class WandbTracker:
    """A run in wandb, made by start_wandb.

    A separate thread talks to wandb's process, so that training never waits for it, even if it hangs.
    """

    def __init__(self, run: Any) -> None:
        for section in (*WANDB_SECTIONS, "stat"):
            run.define_metric(f"{section}/*", step_metric="n_samples")
        self.id: str = run.id
        self.name: str | None = run.name  # offline there is none, unless we gave it one
        self.upload_command = f"wandb sync --include-online {shlex.quote(run.settings.sync_dir)}"
        self._run = run
        self._rows: SimpleQueue[WandbRow | None] = SimpleQueue()  # None: the run ends
        self._losses: set[str] = set()  # metrics whose lowest value is shown
        self._summary: Mapping[str, float | str | None] = {}
        self._failed = self._is_given_up = False
        self._ended = threading.Event()  # after Ctrl-C, Thread.join would not wait again
        threading.Thread(target=self._send, daemon=True).start()

    def log(self, row: WandbRow) -> None:
        """Send one row of values; never waits."""
        self._rows.put(row)

    def finish(
        self, failed: bool = False, summary: Mapping[str, float | str | None] = MappingProxyType({})
    ) -> None:
        """End the run, as failed or not, in MAX_FINISH_SECONDS. Values not uploaded by then stay in its folder.

        `summary` are the final numbers that wandb's table of runs shows.
        """
        self._failed, self._summary = failed, summary
        self._rows.put(None)
        try:
            if not self._ended.wait(MAX_FINISH_SECONDS):
                self._warn("its process does not answer.")
        finally:
            if not self._ended.is_set():  # also after Ctrl-C
                self._is_given_up = True
                _kill_service()
                self._ended.wait(MAX_KILL_SECONDS)

    def _send(self) -> None:
        """Send rows as they come, then end the run."""
        import wandb

        while (row := self._rows.get()) is not None and not self._is_given_up:
            with contextlib.suppress(Exception):  # wandb's own process died: `finish` warns
                self._show_lowest(row)
                self._run.log(row)
        try:
            self._run.summary.update({f"final/{name}": value for name, value in self._summary.items()})
            self._run.finish(exit_code=int(self._failed))
        except Exception as error:
            if not self._is_given_up:
                self._warn(_sentence(error))
        # Teardown of a dead process raises, or exits with its code. The next run starts a new one.
        with contextlib.suppress(Exception, SystemExit):
            wandb.teardown()
        self._ended.set()

    def _show_lowest(self, row: WandbRow) -> None:
        """Let wandb's table of runs show the lowest value of each loss beside the last one."""
        for name in row.keys() - self._losses:
            if "loss" in name:
                self._losses.add(name)
                self._run.define_metric(name, step_metric="n_samples", summary="min,last")

    def _warn(self, why: str) -> None:
        log.warning(f"wandb: upload incomplete, {why} Complete it by: {self.upload_command}")


def _kill_service() -> None:
    """Kill wandb's process. Python would wait for it at exit, too."""
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if child.name().startswith("wandb-core"):
                child.kill()
                child.wait(MAX_KILL_SECONDS)


def start_wandb(
    *,
    project: str,
    config: dict[str, object],
    folder: Path,  # wandb keeps its own folder "wandb" in it
    entity: str | None = None,
    group: str | None = None,
    run_name: str | None = None,  # None: wandb invents one, when online
    run_id: str | None = None,  # of a run that is resumed
    label: str = "",  # what distinguishes the run from the others of its grid: "dim 64, lr 0.001"
) -> WandbTracker | None:
    """Start a run in wandb: online if its server answers soon, else offline for a later upload.

    Return None without wandb. This takes at most START_SECONDS and a few more for wandb itself. It never prompts, never
    raises, and logs one line.
    """
    # Error reports contain code, and offline they delay the exit by 20 s.
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    try:
        import wandb

        wandb.setup(_settings(wandb))
        names: dict[str, Any] = {"project": project, "entity": entity, "group": group, "name": run_name}
        if label:
            names |= {"notes": label, "tags": tags_of(label)}
        if run_id is not None:
            names |= {"id": run_id, "resume": "allow"}
        start = partial(wandb.init, **names, config=config, dir=folder.absolute())
        try:
            run, why = start(), "as WANDB_MODE says."
        except Exception as error:  # no key, a wrong one, no network, a server that does not answer
            run, why = start(mode="offline"), _sentence(error)
            os.environ["WANDB_MODE"] = "offline"  # the other runs of a grid need not wait for it again
    except Exception as error:  # broken or missing: training does not depend on it
        log.warning(f"wandb: no tracking, {_sentence(error)}")
        return None
    if run.disabled:  # by the user's WANDB_MODE
        wandb.teardown()
        return None
    tracker = WandbTracker(run)
    how = f"offline, {why} Upload later by: {tracker.upload_command}" if run.offline else run.url
    log.info(f"wandb: {how}")
    return tracker


def tags_of(label: str) -> list[str]:
    """Return a tag for each value that distinguishes a run, as short as wandb wants them."""
    return [*dict.fromkeys(part[:MAX_TAG] for part in label.split(", ") if part)]


def _settings(wandb: ModuleType) -> Any:
    """Return settings of wandb with bounded waits and no output or prompts, that send only params and statistics."""
    return wandb.Settings(
        init_timeout=START_SECONDS,
        finish_timeout=FINISH_SECONDS,
        finish_timeout_raises=True,
        silent=True,  # this alone keeps it from asking for a key
        console="off",
        program="",
        host="",
        save_code=False,
        disable_git=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
    )


def _sentence(error: Exception) -> str:
    """Return the first line of an error, without the advice that wandb adds."""
    return f"{first_line(error).removesuffix('.')}."
