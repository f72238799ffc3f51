"""Measure by how much this process grows while something runs, with what its C library keeps of earlier tensors."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Growth:
    """The largest growth of the resident memory in bytes; None on systems that do not tell."""

    n_bytes: int | None = None


@contextmanager
def growth() -> Iterator[Growth]:
    """Yield a Growth that is known at the end of the block. Earlier free memory is given back to the system first."""
    measured, before = Growth(), None
    with suppress(OSError, AttributeError):  # another C library, or another system
        ctypes.CDLL(None).malloc_trim(0)
        CLEAR_REFS.write_text("5")  # the peak begins anew
        before = resident("VmRSS")
    try:
        yield measured
    finally:
        if before is not None:
            measured.n_bytes = resident("VmHWM") - before


def resident(field: str) -> int:
    """Return the resident bytes of this process: VmRSS now, VmHWM at most."""
    lines = STATUS.read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))
