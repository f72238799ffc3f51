"""README's pictures: they are there, and their script makes them."""

import re

import pytest
from PIL import Image

from common.repository import REPOSITORY
from docs import pictures
from docs.browser import browser

SHOWN = re.findall(r"!\[.+\]\((.+\.png)\)", (REPOSITORY / "README.md").read_text(encoding="utf-8"))
MAX_BYTES = 150_000


def test_readme_shows_each_picture():
    assert sorted(SHOWN) == sorted(str(path.relative_to(REPOSITORY)) for path in pictures.PICTURES.iterdir())
    assert len(SHOWN) == 3
    assert all((REPOSITORY / path).stat().st_size < MAX_BYTES for path in SHOWN)


@pytest.mark.slow
def test_the_script_makes_each_picture(tmp_path):
    try:
        with browser(tmp_path / "profile"):
            pass
    except FileNotFoundError as error:
        pytest.skip(str(error))
    pictures.main(tmp_path / "made", ["--set=n_samples=4000"])
    for path in SHOWN:
        with (
            Image.open(REPOSITORY / path) as shown,
            Image.open(tmp_path / "made" / (REPOSITORY / path).name) as made,
        ):
            assert made.size == shown.size
            assert len(made.getcolors()) >= 10, "the page was not drawn yet"


def test_colors_and_bold_text_of_a_terminal_become_html():
    screen = pictures.pyte.Screen(pictures.COLUMNS, pictures.LINES)
    pictures.pyte.Stream(screen).feed("plain \x1b[1;32mdone\x1b[0m <i>")
    first = pictures.screen_html(screen).splitlines()[0]
    assert '<span style="color: green; font-weight: 700">done</span>' in first
    assert "&lt;i&gt;" in first
