"""The wording of the code: how docstrings begin, and names that say nothing to a stranger."""

import ast
import re

import pytest

from common.repository import REPOSITORY
from tests.test_layout import FILES

BANNED_BEGINNINGS = {"What", "Whether", "Of", "Else", "Those", "How"}
# Names that were replaced, because they said nothing about the thing or meant something else elsewhere.
BANNED_NAMES = {
    "pour", "quick", "doubt_about", "continuations", "Choice", "Hidden", "sketch", "begin_with", "give_way", "Say",
    "Board", "Going", "Luggage", "bring_home", "left_here", "speak_of_home", "looking", "held", "learned_by_heart",
    "Judgement", "judged", "soundness", "forecast",
}  # fmt: skip
BANNED_PREFIXES = ("MOST_", "LARGEST_", "LEAST_")
DEFINITIONS = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def definitions(tree: ast.AST):
    return [node for node in ast.walk(tree) if isinstance(node, DEFINITIONS)]


@pytest.mark.parametrize("file", FILES)
def test_docstrings_begin_with_a_verb_or_a_noun(file):
    found = []
    for node in [FILES[file], *definitions(FILES[file])]:
        docstring = ast.get_docstring(node)
        if docstring and re.split(r"[\s,:]", docstring, maxsplit=1)[0] in BANNED_BEGINNINGS:
            found.append(docstring.splitlines()[0])
    assert not found


@pytest.mark.parametrize("file", FILES)
def test_names_describe_the_thing(file):
    names = {node.name for node in definitions(FILES[file])}
    names |= {
        node.id
        for node in ast.walk(FILES[file])
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    if not file.startswith("learn/"):
        assert not names & BANNED_NAMES
    assert not {name for name in names if name.startswith(BANNED_PREFIXES)}


def test_banned_names_and_beginnings_are_detected():
    tree = ast.parse('def pour():\n    """Whether it pours."""\nMOST_ROWS = 3')
    [function] = definitions(tree)
    assert function.name in BANNED_NAMES
    assert ast.get_docstring(function).split()[0] in BANNED_BEGINNINGS


def test_us_spelling():
    british = re.compile(
        r"(?i)\b\w*(optimis(?!m|t)|normalis|initialis|colour|behaviour|neighbour|recognis)\w*"
    )
    found = {
        f"{file}: {match[0]}"
        for file in FILES
        for match in british.finditer((REPOSITORY / file).read_text(encoding="utf-8"))
    }
    assert not found


SIMPLE_STATEMENTS = (
    ast.Assign | ast.AnnAssign | ast.Return | ast.Expr | ast.AugAssign | ast.Assert | ast.Raise
)


def torn_statements(source: str) -> list[str]:
    """Return the statements that would stand on one line, but for a comment that stands after their code."""
    lines, torn = source.splitlines(), []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, SIMPLE_STATEMENTS) and node.lineno < node.end_lineno:
            parts = [re.sub(r"  # .*", "", line) for line in lines[node.lineno - 1 : node.end_lineno]]
            has_comment = parts != lines[node.lineno - 1 : node.end_lineno]
            ends_in_comment = parts[-1] != lines[node.end_lineno - 1]
            is_list = not ends_in_comment and re.search(r",\s*\n\s*[])}]", "\n".join(parts))
            is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            if has_comment and not (is_list or is_text) and node.col_offset + len(ast.unparse(node)) <= 110:
                torn.append(parts[0])
    return torn


@pytest.mark.parametrize("file", FILES)
def test_no_comment_tears_a_statement_apart(file):
    assert torn_statements((REPOSITORY / file).read_text(encoding="utf-8")) == []


def test_a_torn_statement_is_found():
    assert torn_statements("x = (\n    1  # one\n)\ny = [\n    1,  # one\n]\nz = 1  # one\n") == ["x = ("]
    assert torn_statements("x = {\n    1,\n    2,\n}  # two\n") == ["x = {"]
