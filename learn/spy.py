"""Which operators really run, however they were called: as methods, functions of torch.nn or through torch.ops."""

import sys
from contextlib import ExitStack
from types import FrameType

from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Parts of names of operators that do a student's work, and what they are.
READY_MADE = {
    "_norm": "a ready-made normalisation",
    "gelu": "a ready-made GELU",
    "embedding": "a ready-made embedding",
    "scaled_dot_product": "ready-made attention",
    "safe_softmax": "ready-made attention",  # what scaled_dot_product_attention does where it has no kernel
    "multi_head_attention": "ready-made attention",
    "transformer_encoder": "a ready-made layer",
    "nll_loss": "a ready-made loss",
    "cross_entropy": "a ready-made loss",
    "log_softmax": "a ready-made loss",
}
PLAIN = {"linalg_vector_norm", "vector_norm", "linalg_norm"}  # lengths of vectors are arithmetic


class Spy:
    """Inside, collects the names of all operators that run, and whose Python code does.

    Two modes look on. Dispatch sees what is computed in the end, functional calls what was asked for: attention of
    torch.nn.functional, for one, ends in products and a softmax like anyone's.
    """

    def __init__(self) -> None:
        self.seen: dict[str, None] = {}  # names in the order of their first use
        self.code: set[tuple[str, str]] = set()  # file, and the class or function at its top level
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

    def cheats(self) -> dict[str, str]:
        """Operators that did the student's work, and what they are."""
        return {
            name: what
            for name in self.seen
            if name not in PLAIN
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


class Called(TorchFunctionMode):
    def __init__(self, seen: dict[str, None]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if name := getattr(func, "__name__", None):  # a property's has none
            self.seen[name] = None
        return func(*args, **(kwargs or {}))
