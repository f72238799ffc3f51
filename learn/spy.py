"""Which operators really run: a dispatch mode sees them however they were called, functional and torch.ops included."""

from torch.utils._python_dispatch import TorchDispatchMode

# Parts of names of aten operators that do a student's work, and what they are.
READY_MADE = {
    "_norm": "a ready-made normalisation",
    "gelu": "a ready-made GELU",
    "embedding": "a ready-made embedding",
    "scaled_dot_product": "ready-made attention",
    "multi_head_attention": "ready-made attention",
    "transformer_encoder": "a ready-made layer",
    "nll_loss": "a ready-made loss",
    "cross_entropy": "a ready-made loss",
    "log_softmax": "a ready-made loss",
}
PLAIN = ("linalg_vector_norm", "weight_norm")  # norms of vectors are arithmetic


class Spy(TorchDispatchMode):
    """Inside, collects the names of all operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))

    def cheats(self) -> dict[str, str]:
        """Operators that did the student's work, and what they are."""
        return {
            name: what
            for name in sorted(self.seen - set(PLAIN))
            for key, what in READY_MADE.items()
            if key in name
        }
