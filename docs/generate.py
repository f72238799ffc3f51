"""Write the parts of docs/ that follow from the code: `python3 -m docs.generate`. A test holds them true.

A page marks such a part by a line `<!-- generated: NAME -->` before it and `<!-- end -->` after it.
"""

import ast
import re
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PACKAGES = ("common", "data", "model", "train", "explore", "learn")

parts: dict[str, Callable[[], str]] = {}


def part(function: Callable[[], str]) -> Callable[[], str]:
    """Register a function that returns the Markdown of the part that is named like it."""
    parts[function.__name__] = function
    return function


@part
def files() -> str:
    """Return a table for each folder of the code: its files, and the first sentence of each."""
    folders: dict[Path, list[str]] = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py"), key=lambda path: (path.parent, path.name)):
            if path.name != "__init__.py":
                row = f"| `{path.name}` | {first_sentence(path)} |"
                folders.setdefault(path.parent.relative_to(ROOT), []).append(row)
    tables = [
        "\n".join([f"### `{folder}/`", "", "| file | |", "|---|---|", *rows])
        for folder, rows in folders.items()
    ]
    return "\n\n".join(tables)


def first_sentence(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return re.split(r"\n| +Shape suffixes:", docstring, maxsplit=1)[0].replace("|", "\\|")


def generated(page: str) -> str:
    """Return the text of a page with all its generated parts made anew. Raise KeyError for an unknown part."""
    return re.sub(
        r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)",
        lambda match: f"{match[1]}\n{parts[match[2]]()}\n\n{match[3]}",
        page,
        flags=re.DOTALL,
    )


def main() -> None:
    for path in sorted(DOCS.glob("*.md")):
        path.write_text(generated(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
