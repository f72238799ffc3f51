"""Write a course as a notebook: its readme, then for each part a cell with its stub and a cell with its check."""

import ast
import json
import sys
import warnings
from pathlib import Path
from typing import Any

from learn.outline import Outline, choose, definitions
from learn.say import print_verdict

HEAD = """\
import sys

sys.path.insert(0, {root!r})
from learn.notebook import check
"""


def write_notebook(outline: Outline, file: Path) -> None:
    """Write a course as a notebook.

    Raise FileExistsError if the file exists, and SyntaxError if the student's file is not valid Python.
    """
    notebook = as_notebook(outline)
    with file.open("x", encoding="utf-8") as opened:
        json.dump(notebook, opened, indent=1)


def as_notebook(outline: Outline) -> dict[str, Any]:
    """Return the notebook in Jupyter's format, version 4.5."""
    text = outline.student.read_text(encoding="utf-8")
    tree = ast.parse(text)
    imports = [segment(text, node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    cells = [
        markdown_cell(outline.readme.read_text(encoding="utf-8")),
        markdown_cell(ast.get_docstring(tree) or ""),
        code(HEAD.format(root=str(outline.student.parents[1]))),
        code("\n".join(imports)),
    ]
    for name, node in definitions(outline.student).items():
        cells += [code(segment(text, node)), code(f'check("{outline.course}.{name}")')]
    numbered = [{"id": f"cell-{i}"} | cell for i, cell in enumerate(cells)]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": numbered, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def segment(text: str, node: ast.AST) -> str:
    """Return the source of a node."""
    return ast.get_source_segment(text, node) or ""


def markdown_cell(text: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {}, "source": text.strip()}


def code(text: str) -> dict[str, Any]:
    return {"cell_type": "code", "metadata": {}, "source": text, "outputs": [], "execution_count": None}


def check(what: str) -> None:
    """Check a part, such as "gpt2.Block", or a course, and print the verdicts.

    The parts are those defined by the notebook cells that have run.
    """
    from learn.checking.course import NOTEBOOK, get_course, judge_module

    try:
        [(outline, part)] = choose(what)
    except ValueError as error:
        print(error)
        return
    warnings.filterwarnings("ignore", message="IProgress")  # a library asks for widgets
    course, mine = get_course(outline.course), sys.modules["__main__"]
    before = dict(vars(mine))
    try:
        for verdict in judge_module(course, mine, NOTEBOOK, part):
            print_verdict(outline.course, verdict)
    finally:  # undo the borrowing of parts
        for name in {*course.parts, *(part for _, part in course.uses)} & {*vars(mine)}:
            if name in before:
                setattr(mine, name, before[name])
            else:
                delattr(mine, name)
