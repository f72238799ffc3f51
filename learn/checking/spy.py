"""Record the operators that run, whether called as methods, by torch.nn or through torch.ops."""

import sys
from contextlib import ExitStack
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

import torch
from torch.nn.utils import clip_grad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from common.repository import REPOSITORY

# Parts of operator names that would do the student's work, with a description.
READY_MADE = {
    "_norm": "a ready-made normalization",
    "gelu": "a ready-made GELU",
    "embedding": "a ready-made embedding",
    "scaled_dot_product": "ready-made attention",
    "safe_softmax": "ready-made attention",  # scaled_dot_product_attention without a kernel
    "multi_head_attention": "ready-made attention",
    "transformer_encoder": "a ready-made layer",
    "nll_loss": "a ready-made loss",
    "cross_entropy": "a ready-made loss",
    "log_softmax": "a ready-made loss",
    "_fused_adam": "a ready-made optimizer",
}
# Norms of vectors are arithmetic.
VECTOR_NORMS = {"linalg_vector_norm", "vector_norm", "linalg_norm", "_foreach_norm"}
COMPILED = ("tokenizers", "tiktoken", "sentencepiece")  # packages that compute outside Python


PLACES = {
    **{REPOSITORY / name: f"{name}/" for name in ("model", "data", "train", "explore")},
    Path(torch.optim.__file__).parent: "torch.optim",
    Path(clip_grad.__file__): "torch.nn.utils",
    **{
        Path(spec.origin).parent: package
        for package in ("transformers", *COMPILED)
        if (spec := find_spec(package)) and spec.origin
    },
}


@cache
def ready_made_place(file: str) -> str | None:
    """Return the place in `PLACES`, or "the checks", that a file belongs to, or None."""
    path = Path(file)
    if path.name == "references.py" and path.is_relative_to(REPOSITORY / "learn" / "courses"):
        return "the checks"
    return next((place for folder, place in PLACES.items() if folder in (path, *path.parents)), None)


class Spy:
    """Recorder of all operators that run in its `with` block, and of the files whose Python code runs.

    Two modes are needed. `Computed` records the operators that finally run, `Called` the functions that are called. The
    attention of torch.nn.functional may end in matrix products and a softmax, as the student's does.
    """

    def __init__(self) -> None:
        self.seen: dict[str, None] = {}  # names in the order of their first use
        self.code: set[tuple[str, str]] = set()  # file, and the class or function at its top level
        self.compiled: set[tuple[str, str]] = set()  # package, and function
        self.modes = ExitStack()

    def __enter__(self) -> "Spy":
        self.modes.enter_context(Computed(self.seen))
        self.modes.enter_context(Called(self.seen))
        self.modes.callback(sys.setprofile, sys.getprofile())
        sys.setprofile(self.on_event)
        return self

    def __exit__(self, *_: object) -> None:
        self.modes.close()

    def on_event(self, frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            self.code.add((frame.f_code.co_filename, frame.f_code.co_qualname.split(".")[0]))
        elif event == "c_call":
            module = (
                getattr(argument, "__module__", None) or type(getattr(argument, "__self__", None)).__module__
            )
            if module.split(".")[0] in COMPILED:
                self.compiled.add((module.split(".")[0], getattr(argument, "__name__", "a function")))

    def work_of_others(self) -> list[tuple[str, str]]:
        """Return (place, class or function) for all code in `PLACES` and in compiled packages that ran."""
        ran = [(place, name) for file, name in self.code if (place := ready_made_place(file))]
        return sorted(ran) + sorted(self.compiled)

    def cheats(self) -> dict[str, str]:
        """Return the operators that did the student's work, each with its description."""
        return {
            name: what
            for name in self.seen
            if name not in VECTOR_NORMS
            for key, what in READY_MADE.items()
            if key in name
        }


class Computed(TorchDispatchMode):
    def __init__(self, seen: dict[str, None]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen[func.overloadpacket.__name__] = None
        return func(*args, **(kwargs or {}))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler at the first call, which takes seconds


class Called(TorchFunctionMode):
    def __init__(self, seen: dict[str, None]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if name := getattr(func, "__name__", None):  # properties have no name
            self.seen[name] = None
        return func(*args, **(kwargs or {}))
