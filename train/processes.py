"""Ranks of a run with devices > 1, for each of which Lightning starts main.py anew, and the server that forks workers."""

import gc
import importlib
import logging
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
import threading
import time

from train.logs import log

INTERRUPTED = 130  # exit code after Ctrl-C


def rank() -> int:
    """Return the number of this process. The user started process 0; it alone prints and writes."""
    return int(os.environ.get("LOCAL_RANK", 0))


def silence_rank() -> None:
    """Log only errors in this process, and end it when the first process ends for any reason."""
    log.setLevel(logging.ERROR)
    threading.Thread(target=exit_with_parent, args=(os.getppid(),), daemon=True).start()


def let_rank0_report() -> None:
    """Wait before this process logs an error. If the first process fails too, it logs the error and ends this one."""
    if rank() > 0:
        time.sleep(3)


def import_all(*modules: str) -> None:
    """Import modules that take seconds, without garbage collections, which would take a fifth of that time.

    Later collections skip all objects that exist then: modules stay until the process ends.
    """
    if all(module in sys.modules for module in modules):
        return
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for module in modules:
            importlib.import_module(module)
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def start_server_of_workers() -> None:
    """Start the process from which workers of --jobs are forked. It imports what they need while this process does so too."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(["train.launch.preload"])
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C is for this process
    multiprocessing.forkserver.ensure_running()
    signal.signal(signal.SIGINT, before)


def exit_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
