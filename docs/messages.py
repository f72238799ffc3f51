"""Print every message that users can see, with its place, so that all of them can be read in one go.

`python3 -m docs.messages [FOLDER ...]` looks in these folders, by default in all of the product.
"""

import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from common.repository import REPOSITORY

PRODUCT = (
    "main.py",
    "gpt2.py",
    "model_explorer.py",
    "common",
    "data",
    "model",
    "train",
    "explore",
    "learn",
    "whatif",
)
# Calls whose arguments are shown. Texts that are raised, yielded or returned by checks are shown, too.
SHOWN_BY = {
    "print",
    "info",
    "warning",
    "error",
    "warn",
    "log_once",
    "add",
    "add_located",
    "add_argument",
    "refusal",
}
MIN_WORDS = 3


def text_of(node: ast.JoinedStr | ast.Constant) -> str:
    """Return the text of a string or f-string. Expressions in it stand in braces."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    return "".join(
        "{" + ast.unparse(part.value) + "}" if isinstance(part, ast.FormattedValue) else str(part.value)
        for part in node.values
        if isinstance(part, ast.FormattedValue | ast.Constant)
    )


def is_shown(node: ast.AST) -> bool:
    if isinstance(node, ast.Raise | ast.Yield | ast.Return):
        return True
    if not isinstance(node, ast.Call):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return name in SHOWN_BY or name.endswith("Error")


def messages(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of each text of several words that is raised, yielded, returned, logged or printed."""
    seen = set()
    for node in filter(is_shown, ast.walk(tree)):
        inside = {
            id(part) for text in ast.walk(node) if isinstance(text, ast.JoinedStr) for part in ast.walk(text)
        }
        for text in ast.walk(node):
            is_text = isinstance(text, ast.JoinedStr) or (
                isinstance(text, ast.Constant) and isinstance(text.value, str) and id(text) not in inside
            )
            if is_text and id(text) not in seen and len(text_of(text).split()) >= MIN_WORDS:
                seen.add(id(text))
                yield text.lineno, text_of(text)


def product_files(names: Iterable[str] = PRODUCT) -> list[Path]:
    """Return the Python files among these files and folders of the project."""
    paths = [REPOSITORY / name for name in names]
    return [file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*.py")))]


def main(names: list[str]) -> None:
    for file in product_files(names or PRODUCT):
        for line, text in messages(ast.parse(file.read_text(encoding="utf-8"))):
            print(f"{file.relative_to(REPOSITORY)}:{line}: {text}")


if __name__ == "__main__":
    main(sys.argv[1:])
