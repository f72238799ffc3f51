"""The processes of a run with devices > 1: Lightning starts main.py anew for each but the first. The one that workers come from."""

import logging
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import threading
import time

from train.logs import log


def rank() -> int:
    """The number of this process. Process 0 is the one the user started; it alone prints and writes."""
    return int(os.environ.get("LOCAL_RANK", 0))


def silence_rank() -> None:
    """Say nothing but what goes wrong, and end when the first process ends, however that comes."""
    log.setLevel(logging.ERROR)
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()


def let_rank0_report() -> None:
    """Wait before this process says what went wrong: if the first one failed too it says so itself, and this one ends with it."""
    if rank() > 0:
        time.sleep(3)


def start_server_of_workers() -> None:
    """The process from which workers of --jobs are forked: it imports what they need, once, while this one does so too."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(["lightning", "train.launch.sweep"])
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which it inherits: Ctrl-C is for this process
    multiprocessing.forkserver.ensure_running()
    signal.signal(signal.SIGINT, before)


def end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
