"""Code as an axis: which runs of a table the same code trained, and what changed from one version to the next."""

from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher, unified_diff
from functools import cache
from pathlib import Path
from textwrap import shorten
from typing import NamedTuple

from explore.compare.variants import CODE, RunRow
from train.grid.params import measured_column
from train.saving.code import differing_files, read_kept_text

MAX_SUBJECT = 50  # characters of a commit's subject in a label
MAX_FILES = 2  # files named in a label


class CodeOfRun(NamedTuple):
    """The code that trained a run, as about.json records it."""

    hashes: Mapping[str, str] = {}  # empty for a run that was saved without them
    subject: str = ""  # of the commit; empty outside git
    is_edited: bool = True  # the files differed from the commit
    text_id: str = ""  # name of the kept text of all files
    out: Path = Path()  # output root, where the text is kept

    def text(self) -> dict[str, str] | None:
        """Return the text of all files that the run could import, or None if it was not kept."""
        return read_kept_text(self.out, self.text_id)

    @classmethod
    def of(cls, about: Mapping[str, object], folder: Path) -> "CodeOfRun":
        """Return the code of the run in `folder`, from its about.json."""
        hashes, edited = about.get("code"), about.get("edited", True)
        out = next((path.parent for path in folder.parents if path.name == "saved-models"), folder)
        subject, text_id = str(about.get("subject", "")), str(about.get("code_text", ""))
        return cls(hashes if isinstance(hashes, dict) else {}, subject, bool(edited), text_id, out)


def with_code_labels(rows: Sequence[RunRow]) -> list[RunRow]:
    """Return rows with a label in place of each CodeOfRun. Other values in the column `code` stay."""
    column = measured_column(CODE)
    recorded = [code for row in rows if isinstance(code := row.get(column), CodeOfRun)]
    labels = iter(code_labels(recorded))
    return [row | {column: next(labels)} if isinstance(row.get(column), CodeOfRun) else row for row in rows]


def code_versions(rows: Sequence[RunRow], labelled: Sequence[RunRow]) -> dict[str, CodeOfRun]:
    """Return the versions of the code by label, each as the first run with it recorded it.

    `labelled` are the rows that `with_code_labels` returns for `rows`.
    """
    column = measured_column(CODE)
    versions: dict[str, CodeOfRun] = {}
    for row, other in zip(rows, labelled, strict=True):
        if isinstance(code := row.get(column), CodeOfRun) and code.hashes:
            versions.setdefault(str(other[column]), code)
    return versions


def code_labels(codes: Sequence[CodeOfRun]) -> list[str]:
    """Return a label for the code of each run: equal for the same code, different for different code.

    The label is the commit's subject if the tree was clean. Otherwise it says how the code differs from that of the first
    run: "attention.py +1 -1". Runs without a record of their code are "unknown".
    """
    versions: list[CodeOfRun] = []  # the first run of each, with the hashes of all its runs
    version_of: dict[tuple[tuple[str, str], ...], int] = {}  # by the hashes of a run
    for code in codes:
        key = tuple(code.hashes.items())
        if key not in version_of:
            same = (i for i, version in enumerate(versions) if is_version(version, code))
            version_of[key] = i = next(same, len(versions))
            if i == len(versions):
                versions.append(code)
            versions[i] = versions[i]._replace(hashes={**versions[i].hashes, **code.hashes})
    first = next((version for version in versions if version.hashes), None)
    labels: list[str] = []
    for version in versions:
        label = "unknown" if first is None or not version.hashes else label_of(version, first)
        n_equal = sum(other == label or other.startswith(f"{label} (") for other in labels)
        labels.append(f"{label} ({n_equal + 1})" if n_equal else label)
    return [labels[version_of[tuple(code.hashes.items())]] for code in codes]


def is_version(version: CodeOfRun, code: CodeOfRun) -> bool:
    """Return True if `code` is the same as that of `version`. Code without hashes is only the same as its like."""
    return bool(version.hashes) == bool(code.hashes) and not differing_files(version.hashes, code.hashes)


def label_of(code: CodeOfRun, first: CodeOfRun) -> str:
    """Return the label of a version of the code, compared with the first one."""
    if code.subject and (not code.is_edited or code is first):
        subject = shorten(code.subject, MAX_SUBJECT, placeholder=" ...")
        return f"{subject} (edited)" if code.is_edited else subject
    if code is first:
        return "first"
    files = differing_files(first.hashes, code.hashes)
    then, now = first.text(), code.text()
    if then is None or now is None:
        return ", ".join(Path(file).name for file in files[:MAX_FILES]) + " changed"
    counts = {file: changed_lines(then.get(file, ""), now.get(file, "")) for file in files}
    named = [f"{Path(file).name} +{added} -{removed}" for file, (added, removed) in counts.items()]
    more = f" and {len(named) - MAX_FILES} more" if len(named) > MAX_FILES else ""
    return ", ".join(named[:MAX_FILES]) + more


@cache
def changed_lines(then: str, now: str) -> tuple[int, int]:
    """Return the numbers of added and of removed lines."""
    matcher = SequenceMatcher(None, then.splitlines(), now.splitlines(), autojunk=False)
    changes = [change for change in matcher.get_opcodes() if change[0] != "equal"]
    return sum(d - c for _, _, _, c, d in changes), sum(b - a for _, a, b, _, _ in changes)


def changes_between(one: CodeOfRun, other: CodeOfRun) -> str:
    """Return the unified diff between the code of two runs. If a text was not kept, return the names of changed files."""
    diff = diff_between(one, other)
    return f"changed: {', '.join(differing_files(one.hashes, other.hashes))}" if diff is None else diff


def diff_between(one: CodeOfRun, other: CodeOfRun) -> str | None:
    """Return the unified diff between the files that the two runs can import. None if a text was not kept."""
    then, now = one.text(), other.text()
    if then is None or now is None:
        return None
    lines: list[str] = []
    for file in sorted(name for name in then | now if then.get(name) != now.get(name)):
        before, after = (side.get(file, "").splitlines() for side in (then, now))
        lines += unified_diff(before, after, f"a/{file}", f"b/{file}", lineterm="")
    return "\n".join(lines)
