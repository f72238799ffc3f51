"""The log: messages on the console, beside progress bars, and in log files. A message is text, or a table for rich."""

import contextlib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import rich
import rich.status
from rich.console import Console, ConsoleRenderable
from rich.markup import escape
from rich.text import Text

log = logging.getLogger("whatif")
MAX_TRACEBACK = 10_000  # characters of a traceback that are logged
MAX_TABLE_WIDTH = 2_000  # characters of a line of a table in a file or a pipe
# Control characters except newline and tab, marks of writing direction, and surrogates.
UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    r"""Return `text` with control characters as escapes, such as `\x1b`, so that it cannot control a terminal."""
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def shorten_traceback(text: str) -> str:
    """Return `text` with its middle left out if it has over MAX_TRACEBACK characters."""
    n_hidden = len(text) - MAX_TRACEBACK
    if n_hidden <= 0:
        return text
    half = MAX_TRACEBACK // 2
    return f"{text[:half]}\n... {n_hidden:,} characters left out ...\n{text[-half:]}"


def record_as_text(record: logging.LogRecord) -> str:
    return as_plain_text(record.getMessage() if isinstance(record.msg, str) else record.msg)


def as_plain_text(message: str | ConsoleRenderable) -> str:
    """Return a text or a table as plain text. Tables are as wide as needed."""
    if isinstance(message, str):
        return printable(message)
    console = Console(width=MAX_TABLE_WIDTH, color_system=None)
    with console.capture() as captured:
        console.print(message, soft_wrap=isinstance(message, Text))
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


class ConsoleHandler(logging.Handler):
    """Handler that prints above a running display. On a terminal, errors are red and warnings yellow."""

    def emit(self, record: logging.LogRecord) -> None:
        if not (console_state.hides_details and vars(record).get("is_detail")):
            print_message(
                record.getMessage() if isinstance(record.msg, str) else record.msg, style_of(record.levelno)
            )


def print_message(message: str | ConsoleRenderable, style: str = "") -> None:
    """Print a text or a table. On a terminal it has a style, and fits the width.

    In a pipe, tables keep their full width. A text with options of a command is not broken, so that it can be copied.
    """
    console = rich.get_console()
    if not console.is_terminal:
        print(as_plain_text(message), file=console.file, flush=True)
    elif isinstance(message, str):
        is_command = " --" in message
        text = Text(printable(message), style=style, overflow="ignore")
        console.print(text, soft_wrap=is_command, crop=False)
    else:
        console.print(message)


def link_to(path: Path, before: str = "") -> Text:
    """Return the path as a link that a terminal may open."""
    return Text.assemble(
        before, (printable(str(path)), f"link {path.absolute().as_uri()}"), overflow="ignore"
    )


def style_of(level: int) -> str:
    """Return the style of a message of this level."""
    return "red" if level >= logging.ERROR else "yellow" if level >= logging.WARNING else ""


class FileFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"{self.formatTime(record, '%Y-%m-%d %H:%M:%S')} {record_as_text(record)}"


class FileHandler(logging.FileHandler):
    """File handler that stops writing without an error when the disk is full."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


class LossyStream:
    """Wrapper of a console stream that never raises: text that its terminal, pipe or disk refuses is dropped."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):  # ValueError: the stream is closed
            try:
                self.stream.write(text)
            except UnicodeEncodeError as error:
                self.stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self.stream.flush()

    def __getattr__(self, name: str) -> object:
        return getattr(self.stream, name)


def protect_console() -> None:
    """Make all later writes to stdout and stderr lossy, so that none raises, not even the last flush of Python."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started Python
            stream = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
        if not isinstance(stream, LossyStream):
            setattr(sys, name, LossyStream(stream))


class ConsoleState:
    """Changes that a live display makes to the console while it stands there."""

    hides_details = False  # records with `is_detail` are not shown
    notify: Callable[[str], None] | None = None  # shows a line of text in the display


console_state = ConsoleState()
DETAIL = {"is_detail": True}  # `extra` of log lines that a display of several runs leaves out


def say_at_once(text: str) -> None:
    """Write a line to stderr from a signal handler, which may have interrupted a write to the log."""
    if console_state.notify is not None:
        console_state.notify(text)
        return
    with contextlib.suppress(OSError):
        os.write(2, f"\n{text}\n".encode())


def log_to_console() -> None:
    protect_console()
    log.setLevel(logging.INFO)
    log.propagate = False
    log.handlers = [ConsoleHandler()]


class Status:
    """A line with a spinner at the bottom of a terminal that says what the program is doing. Nothing elsewhere.

    `with status("reading the text sotu"):` shows it inside the block. A block inside of another one replaces its text.
    """

    def __init__(self) -> None:
        self.text = ""
        self.spinner: rich.status.Status | None = None

    @contextmanager
    def __call__(self, text: str) -> Iterator[None]:
        before, is_outermost = self.text, self.spinner is None
        console = rich.get_console()
        try:
            if is_outermost and console.is_terminal and log.isEnabledFor(logging.INFO):
                self.spinner = console.status("")
                self.spinner.start()
            self.show(text)
            yield
        finally:
            if is_outermost and self.spinner is not None:
                self.spinner.stop()
                self.spinner = None
            self.show(before)

    def show(self, text: str) -> None:
        """Replace the text of the innermost block."""
        self.text = text
        if self.spinner is not None:
            self.spinner.update(escape(printable(text)))


status = Status()


@contextmanager
def log_to_file(path: Path | None) -> Iterator[None]:
    """Log to `path` as well inside the block. None logs nowhere else."""
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = FileHandler(path, encoding="utf-8")
    handler.setFormatter(FileFormatter())
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()
