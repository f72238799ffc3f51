"""Weights as safetensors files, read as data. A model is built only if the file fits it."""

import itertools
import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from common.text import first_line
from model.inputs import Tokenizer
from model.lm import LM
from model.model_params import ModelParams
from train.logs import log
from train.saving.durable import replacing

MAX_TABLES = 2**32  # bytes of the buffers that a model computes itself
MAX_COPIES = 1_000  # layers that share their weights
MAX_LINE = 300  # characters of an error in one line
CHECKPOINT = re.compile(r"step-([0-9]{7,18})\.safetensors")


def unshared_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of `module` with every shared tensor once, under its first name."""
    first: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        first.setdefault(id(tensor), (name, tensor))
    return dict(first.values())


def load_lm(path: Path, params: ModelParams, tokenizer: Tokenizer) -> LM:
    """Load the model with the weights in `path`. It is built only after its sizes are found equal to those of the file.

    Raise ValueError if the file does not fit `params`.
    """
    regular_file(path)
    try:
        with safe_open(path, "pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        n_copies = min(params.n_layers, MAX_COPIES) if params.share else 1
        limit = (2 * len(found) + 100) * n_copies  # shared ones count each time
        with torch.device("meta"), at_most_parameters(limit):
            empty = LM(params, tokenizer)  # has shapes, but no memory, however large it is
        check_shapes(found, empty)
        if sum(table.nbytes for table in empty.buffers()) > MAX_TABLES:
            raise ValueError(f"max_seq_len={params.max_seq_len} needs tables of over {MAX_TABLES:,} bytes")
        lm = LM(params, tokenizer)
        tensors = load_file(path)
        if any(tensor.dtype == torch.float64 for tensor in tensors.values()):
            lm.double()
        lm.load_state_dict(tensors, strict=False)  # only second names of shared tensors are missing
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} does not hold a model that fits params.json: {one_line(error)}") from error
    return lm.eval()


@contextmanager
def at_most_parameters(n: int) -> Iterator[None]:
    """Raise ValueError once modules made inside have more than `n` parameters, or ten times as many submodules."""
    parameters, modules = itertools.count(1), itertools.count(1)

    def count(module: nn.Module, name: str, part: object) -> None:
        made, limit = (parameters, n) if isinstance(part, nn.Parameter) else (modules, 10 * n)
        if part is not None and next(made) > limit:
            raise ValueError("params.json asks for many more tensors than are saved")

    hooks = (
        register_module_parameter_registration_hook(count),
        register_module_module_registration_hook(count),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def check_shapes(found: dict[str, tuple[int, ...]], lm: LM) -> None:
    """Raise ValueError unless `found` are the names and shapes of the weights of `lm`."""
    expected = {name: tuple(tensor.shape) for name, tensor in unshared_state(lm).items()}
    for name in [*expected, *found]:
        if found.get(name) != expected.get(name):
            raise ValueError(
                f"{name!r:.80} is {found.get(name, 'absent')} in the file, but {expected.get(name, 'absent')} by params.json"
            )


def regular_file(path: Path) -> Path:
    """Return `path`. Raise ValueError if it is missing or not a regular file: a pipe could be read for ever."""
    try:
        is_file = path.is_file()
    except OSError as error:  # we may not read its folder
        raise ValueError(f"{path} cannot be read: {one_line(error)}") from error
    if not is_file:
        raise ValueError(f"{path} is not a file" if path.exists() else f"{path} is missing")
    return path


def one_line(error: BaseException | str) -> str:
    """Return the first line of an error's message, or of a text, without its middle if it is over MAX_LINE characters."""
    line = first_line(error)
    # The reason often stands at the end, behind a long path.
    return line if len(line) <= MAX_LINE else f"{line[: MAX_LINE // 2]} ... {line[5 - MAX_LINE // 2 :]}"


class Checkpoints:
    """Keeps the weights of a model during training.

    A thread writes them, so training waits only for a copy in memory.
    """

    def __init__(self, folder: Path, every: int | float) -> None:
        self.folder = folder
        self.every = every
        self.latest = -1  # the step of the weights kept last
        self.writer = ThreadPoolExecutor(max_workers=1)
        self.written: Future[None] = Future()  # done when the weights are on the disk
        self.written.set_result(None)
        self.has_warned = False

    def keep(self, lm: LM, step: int) -> None:
        """Keep the weights of this step, once. Warn, the first time, if they cannot be written."""
        if step != self.latest:
            self.wait()  # no more than one copy in memory
            tensors = {
                name: w.detach().to("cpu", copy=True).contiguous() for name, w in unshared_state(lm).items()
            }
            path = self.folder / f"step-{step:07}.safetensors"
            self.written, self.latest = self.writer.submit(self.write, path, tensors), step

    def wait(self) -> None:
        """Wait until the weights kept last are on the disk."""
        self.written.result()

    def write(self, path: Path, tensors: dict[str, Tensor]) -> None:
        try:
            write_weights(path, tensors)
        except OSError as error:
            if not self.has_warned:
                log.warning(
                    f"{error}. Training continues without the weights of this step, and of later steps that fail "
                    "in the same way. Free some space, or keep weights less often (checkpoint_every)."
                )
            self.has_warned = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error_type: type | None, *_: object) -> None:
        self.writer.shutdown()
        if error_type is None:
            self.wait()


def write_weights(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file. A kill at any moment leaves either all of it or nothing. Raise OSError on failure."""
    try:
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as partial:
            save_file(tensors, partial)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{path} cannot be written: {one_line(error)}") from error


def checkpoint_files(folder: Path) -> dict[int, Path]:
    """Return the kept weights in a run folder, {step: path}, in order of steps."""
    named = ((CHECKPOINT.fullmatch(path.name), path) for path in (folder / "checkpoints").glob("*"))
    return dict(sorted((int(match[1]), path) for match, path in named if match))


def weights_file(folder: Path, step: int | None = None) -> Path:
    """Return the path of a run's final weights, or of those kept at `step`. Raise ValueError if there are none."""
    if step is None:
        return folder / "model.safetensors"
    files = checkpoint_files(folder)
    if step not in files:
        nearest = ", ".join(map(str, sorted(files, key=lambda other: abs(other - step))[:3])) or "none at all"
        raise ValueError(f"the run {folder.name} kept no weights of step {step}; nearest: {nearest}")
    return files[step]
