"""Make the pictures of README: `python3 -m docs.pictures`. It takes two minutes and needs chromium.

A grid trains in a terminal, of which a picture is taken halfway. Then its report and an attention page of its last run
are opened in a browser.
"""

import fcntl
import html
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from io import BytesIO
from itertools import groupby
from pathlib import Path

import pyte
from PIL import Image
from selenium import webdriver

import model_explorer
from common.repository import REPOSITORY
from docs.browser import browser

PICTURES = REPOSITORY / "docs" / "pictures"
CONFIG = "test-synth"
OPTIONS = [
    f"--config={CONFIG}",
    "--no-wandb",
    "--save",
    "--jobs=2",
    "--seed=[1,2,3]",
    "--set=dim=[16,64]",
]
COLUMNS, LINES = 110, 10  # of the terminal
WIDTH = 1000  # of a picture, in pixels
SECONDS = 2.0  # until a page has drawn itself
MAX_WIDTH = 1200
COLORS = 64  # of a picture
HEX = re.compile("[0-9a-f]{6}")
STYLE = """body { margin: 0; background: #1e1e1e; color: #d4d4d4 }
pre { margin: 12px; font: 14px/1.25 "DejaVu Sans Mono", monospace }"""


def main(folder: Path, options: Sequence[str] = ()) -> None:
    """Write terminal.png, report.png and attention.png to `folder`. `options` are added to those of the grid."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, browser(Path(temporary, "profile")) as driver:
        out = Path(temporary, "out")
        terminal = Path(temporary, "terminal.html")
        terminal.write_text(terminal_page([*OPTIONS, *options], out), encoding="utf-8")
        take_picture(driver, terminal, folder / "terminal.png", height=18 * LINES + 24)
        take_picture(driver, out / "reports" / CONFIG / "report.html", folder / "report.png", height=1250)

        lm, *_ = model_explorer.get_model_by_timestamp("latest", out=str(out))
        model_explorer.attention_html(lm, "hello::hello", filename="hello", out=str(out))
        take_picture(driver, out / "attentions" / "hello.html", folder / "attention.png", height=560)


def terminal_page(options: Sequence[str], out: Path) -> str:
    """Run main.py in a terminal, and return as HTML what it shows once half of the runs are done."""
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(screen)
    stream.feed(f"$ python3 main.py {shlex.join(options)}\r\n".encode())
    page = ""
    for output in terminal_output([sys.executable, "main.py", *options, f"--out={out}"]):
        stream.feed(output)
        if not page and any(re.match("3 of 6 done, 2 running.* left", line) for line in screen.display):
            page = f"<style>{STYLE}</style><pre>{screen_html(screen)}</pre>"
    if not page:
        raise RuntimeError("the grid was never seen half done:\n" + "\n".join(screen.display))
    return page


def terminal_output(command: Sequence[str]) -> Iterator[bytes]:
    """Run a command in a terminal of LINES x COLUMNS characters, and yield what it writes."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color"}
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=REPOSITORY, env=environment
    )
    os.close(theirs)
    with suppress(OSError):  # Linux says so that the process has closed the terminal
        while output := os.read(ours, 65536):
            yield output
    os.close(ours)
    process.wait()


def screen_html(screen: pyte.Screen) -> str:
    """Return the lines of a terminal, with colors and bold text, as HTML."""
    lines = []
    for row in range(LINES):
        cells = [screen.buffer[row][column] for column in range(COLUMNS)]
        parts = groupby(cells, key=lambda cell: (cell.fg, cell.bold))
        lines.append("".join(part_html("".join(cell.data for cell in part), *style) for style, part in parts))
    return "\n".join(lines)


def part_html(text: str, color: str, bold: bool) -> str:
    value = {"default": "inherit", "brown": "olive"}.get(
        color, f"#{color}" if HEX.fullmatch(color) else color
    )
    return f'<span style="color: {value}; font-weight: {700 if bold else 400}">{html.escape(text)}</span>'


def take_picture(driver: webdriver.Chrome, page: Path, picture: Path, height: int) -> None:
    """Open `page` in a window that is WIDTH pixels wide and save the picture, with few colors."""
    size = {"width": WIDTH, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.get(page.as_uri())
    time.sleep(SECONDS)
    picture.write_bytes(compressed(driver.get_screenshot_as_png()))
    print(f"saved {picture}, {picture.stat().st_size / 1000:.0f} kB")


def compressed(png: bytes) -> bytes:
    """Return a PNG with few colors, at most MAX_WIDTH pixels wide."""
    image = Image.open(BytesIO(png)).convert("RGB")
    image.thumbnail((MAX_WIDTH, image.height))
    file = BytesIO()
    image.quantize(COLORS).save(file, "PNG", optimize=True)
    return file.getvalue()


if __name__ == "__main__":
    main(PICTURES, sys.argv[1:])
