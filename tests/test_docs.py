"""The pages in docs/: their generated parts follow from the code."""

from pathlib import Path

import pytest

from docs.generate import DOCS, generated
from tests.test_layout import FILES

PAGES = sorted(DOCS.glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_generated_parts_are_up_to_date(page):
    text = page.read_text(encoding="utf-8")
    assert generated(text) == text, "run `python3 -m docs.generate`"


def test_the_map_of_the_code_names_every_file():
    text = (DOCS / "code.md").read_text(encoding="utf-8")
    for file in FILES:
        folder, name = str(Path(file).parent), Path(file).name
        if folder != "." and name != "__init__.py":
            table = text.partition(f"\n### `{folder}/`\n")[2].partition("\n### ")[0]
            assert f"\n| `{name}` | " in table, file
