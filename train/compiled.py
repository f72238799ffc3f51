"""torch.compile for training steps: one graph for all batches, cached on disk, with the uncompiled model to fall back on.

Shape suffixes:  B batch  T position
"""

import copy
import hashlib
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.utils import counters

from common.text import first_line
from data.batch import Batch
from model.lm import LM
from train.logs import log
from train.train_params import TrainParams

# Draw dropout as the uncompiled model does, so that a seed means the same for both.
COMPILE_OPTIONS: dict[str, Any] = {"options": {"fallback_random": True}}
MAX_MORE_GRAPHS = 5  # of a run, besides the first
FALLBACK = "training runs uncompiled: the results are the same, but steps take longer"

latest_params: list[object] = []  # what the compiled code in this process was made for


class CompiledForward:
    """The compiled forward pass of an LM, to be called in place of `lm.forward` in training.

    It takes any number of rows and positions. If torch cannot compile the code of a later step, a warning says so, and
    the uncompiled code runs from there on.
    """

    def __init__(self, lm: LM, has_ones: bool = False) -> None:
        self.has_ones = has_ones  # batches regularly have a single row or position
        self.uncompiled = lm._call_impl  # forward with the hooks of nn.Module
        self.forward = torch.compile(lm._call_impl, **COMPILE_OPTIONS)

    def __call__(self, x_BT: Tensor, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.run_compiled(x_BT, *args, **kwargs)
        except TorchDynamoException as error:
            self.give_up(first_line(error))
            return self.uncompiled(x_BT, *args, **kwargs)

    def run_compiled(self, x_BT: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the forward pass. Raise TorchDynamoException if torch cannot compile it."""
        # For a dimension of 1 torch would compile another graph.
        if 1 in x_BT.shape and not self.has_ones:
            return self.uncompiled(x_BT, *args, **kwargs)
        named = {name: of_any_size(value) for name, value in kwargs.items()}
        return self.forward(*map(of_any_size, (x_BT, *args)), **named)

    def give_up(self, why: str) -> None:
        """Run the uncompiled code from now on."""
        log.warning(f"compile=True: {why}; {FALLBACK}")
        self.forward = self.uncompiled


def of_any_size(value: Any) -> Any:
    """Return a tensor whose first two dimensions torch compiles as variables; other values are returned unchanged."""
    if not isinstance(value, Tensor):
        return value
    value = value.contiguous()  # torch would compile views of another layout anew
    torch._dynamo.maybe_mark_dynamic(value, list(range(min(2, value.dim()))))
    return value


def graphs_so_far() -> int:
    """Return the number of graphs that torch has compiled in this process."""
    return counters["stats"]["unique_graphs"]


def compile_forward(lm: LM, batch: Batch, train: TrainParams, cache: Path) -> CompiledForward | None:
    """Compile the forward and backward pass of `lm`, log how long that took, and return the compiled forward pass.

    Return None, after a warning, if torch cannot compile the model. Only a copy of the model is run, on `batch`, but the
    caller has to restore the random state. Runs with the same graph share its code, in a folder of `cache`; a process
    waits for another one that compiles for the same params.
    """
    folder = cache / "compiled"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
    made_for = [lm.model_params, train.precision, str(lm.device), torch.get_num_threads()]
    if is_new := made_for != latest_params:
        # Otherwise torch would treat a field that differs from an earlier run as one that varies during this run.
        torch._dynamo.reset()
        latest_params[:] = made_for
    start, before = time.perf_counter(), count_compilations()
    has_ones = 1 in batch["x_indices"][:, 1:].shape
    try:
        with FileLock(folder / f"{hashlib.sha256(repr(made_for).encode()).hexdigest()[:20]}.lock"):
            run_copy(lm, batch, train, has_ones)
        new = count_compilations() - before
        if is_new and not new["stats", "unique_graphs"]:
            raise RuntimeError("torch found nothing that it can compile")
    except Exception as error:  # of a compiler, or of the user's code, which then fails uncompiled as well
        log.warning(f"compile=True: {first_line(error)}; {FALLBACK}")
        forget_graphs()
        return None
    log.info(f"{compilations_in_words(new)} in {time.perf_counter() - start:.1f} s")
    if new["stats", "unique_graphs"] and not is_new:
        forget_graphs()
    return CompiledForward(lm, has_ones)


def run_copy(lm: LM, batch: Batch, train: TrainParams, has_ones: bool) -> None:
    """Run the compiled forward pass, and the backward pass, of a copy of `lm`. Raise an error if torch cannot compile them."""
    if any(isinstance(module, nn.RNNBase) for module in lm.modules()):
        raise RuntimeError("torch cannot compile recurrent modules such as nn.GRU")
    twin = copy.deepcopy(lm, {id(lm.tokenizer): lm.tokenizer})
    twin._compiled_call_impl = CompiledForward(twin, has_ones).run_compiled
    losses, _ = twin.get_losses(batch, train)
    torch.as_tensor(sum(losses.values())).backward()


def forget_graphs() -> None:
    """Let the next run compile anew: with 8 versions of the code in a process, torch would silently stop compiling."""
    latest_params.clear()


def count_compilations() -> "Counter[tuple[str, str]]":
    """Return torch's counts of what it has compiled in this process, by kind and name."""
    return Counter({(kind, name): n for kind, counts in counters.items() for name, n in counts.items()})


def compilations_in_words(new: "Counter[tuple[str, str]]") -> str:
    """Return a phrase for the log: the number of graphs, whether they were cached, and where the code is split."""
    n, breaks = new["stats", "unique_graphs"], [name for kind, name in new if kind == "graph_break"]
    if not n:
        return "the compiled code of an earlier run was found"
    words = f"compiled {n} graph{'s' * (n > 1)}"
    words += "" if new["inductor", "fxgraph_cache_miss"] else " from the cache"
    if breaks:
        words += f", because of code that torch cannot trace ({'; '.join(map(first_line, breaks))}),"
    if n_fused := new["inductor", "fuse_attention"]:
        # torch does not count this for code from the cache.
        words += f", with torch's fused kernel for attention ({n_fused} times),"
    return words
