"""A check in a separate process, with limits on its time and memory."""

import contextlib
import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

MAX_SECONDS = 4.0  # wall-clock time of a check, which may also sleep or wait for a processor
MAX_TRIAL_BYTES = 512 << 20  # memory of a check, beyond the memory of this process
Result = TypeVar("Result")


class TrialError(Exception):
    """A trial without a result. The message is the end of a sentence whose subject is the check."""


def in_trial(check: Callable[..., Result], *args: object, cpu_seconds: float) -> Result:
    """Return check(*args), computed in a forked process; raise TrialError if that process exceeds a limit or dies.

    `cpu_seconds` limits its CPU time. A limit in this process would not suffice: no signal handler runs before a call
    into C returns. The result must be picklable, the arguments need not be. A system that cannot fork has no limits.
    """
    if "fork" not in multiprocessing.get_all_start_methods():
        return check(*args)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=send_result, args=(sender, cpu_seconds, check, args), daemon=True)
    process.start()
    sender.close()
    is_late = False
    try:
        if receiver.poll(MAX_SECONDS):
            return receiver.recv()
        is_late = True
    except EOFError:
        pass
    finally:
        process.kill()
        process.join()
        receiver.close()
    if is_late or process.exitcode == -signal.SIGPROF:
        raise TrialError(f"takes more than {cpu_seconds} s, or does not end")
    raise TrialError(f"ends its process (exit code {process.exitcode})")


def send_result(
    sender: Connection, cpu_seconds: float, check: Callable[..., object], args: tuple[object, ...]
) -> None:
    """Limit this process, run the check, and send its result to the parent."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPROF):
        signal.signal(number, signal.SIG_DFL)
    limit_memory()
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    sender.send(check(*args))


def limit_memory() -> None:
    """Limit this process to MAX_TRIAL_BYTES more memory than it has now. Do nothing where /proc is missing."""
    import resource  # only where processes fork

    with contextlib.suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        most = pages * resource.getpagesize() + MAX_TRIAL_BYTES
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
