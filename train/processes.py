"""The processes of a run with devices > 1: Lightning starts main.py anew for each but the first."""

import logging
import os
import threading
import time

from train.logs import log


def rank() -> int:
    """The number of this process. Process 0 is the one the user started; it alone prints and writes."""
    return int(os.environ.get("LOCAL_RANK", 0))


def follow() -> None:
    """Say nothing but what goes wrong, and end when the first process ends, however that comes."""
    log.setLevel(logging.ERROR)
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()


def give_way() -> None:
    """Wait before this process says what went wrong: if the first one failed too it says so itself, and this one ends with it."""
    if rank() > 0:
        time.sleep(3)


def end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
