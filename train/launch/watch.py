"""--watch: a second process updates the page of a report while the runs of a grid train."""

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from common.repository import REPOSITORY
from train.logs import link_to, log

MAX_STOP_SECONDS = 10.0  # for the second process to end, before it is killed


@contextmanager
def report_watched(config: str, folder: Path, root: Path, options: Sequence[str] = ()) -> Iterator[None]:
    """Keep reports/{config}/report.html up to date inside the block, with the runs that train.

    `folder` is the folder of the report and `root` the output root. `options` of the command line, such as "--baseline=a",
    hold for the report. A second process with a low priority writes the page.
    """
    command = [
        sys.executable,
        str(REPOSITORY / "main.py"),
        f"--report={config}",
        "--watch",
        "--out",
        str(root),
        *options,
    ]
    log.info(link_to(folder / "report.html", "watch: "))
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors
        )
        try:
            yield
        finally:
            if process.poll():
                errors.seek(0)
                reason = errors.read().decode(errors="replace").strip().splitlines()
                log.warning(f"--watch ended early: {reason[-1] if reason else 'its process was killed'}")
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(MAX_STOP_SECONDS)
            process.kill()
            process.wait()
