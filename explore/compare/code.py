"""Code as an axis: which runs of a table the same code trained, and what changed from one version to the next."""

from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher, unified_diff
from functools import cache
from pathlib import Path
from textwrap import shorten
from typing import NamedTuple

from explore.compare.variants import CODE, RunRow
from train.grid.params import measured_column
from train.saving.code import read_kept_text, same_code

MAX_SUBJECT = 50  # characters of a commit's subject in a label
MAX_FILES = 2  # files named in a label


class CodeOfRun(NamedTuple):
    """The code that trained a run, as about.json records it."""

    hashes: Mapping[str, str] = {}  # empty for a run that was saved without them
    subject: str = ""  # of the commit; empty outside git
    is_edited: bool = True  # the files differed from the commit
    id: str = ""  # of the kept text of all files
    out: Path = Path()  # output root, where the text is kept

    @classmethod
    def of(cls, about: Mapping[str, object], folder: Path) -> "CodeOfRun":
        """Return the code of the run in `folder`, from its about.json."""
        hashes, edited = about.get("code"), about.get("edited", True)
        out = next((path.parent for path in folder.parents if path.name == "saved-models"), folder)
        subject, id = str(about.get("subject", "")), str(about.get("code_id", ""))
        return cls(hashes if isinstance(hashes, dict) else {}, subject, bool(edited), id, out)


def with_code_labels(rows: Sequence[RunRow]) -> list[RunRow]:
    """Return rows with a label in place of each CodeOfRun. Other values in the column `code` stay."""
    column = measured_column(CODE)
    recorded = [code for row in rows if isinstance(code := row.get(column), CodeOfRun)]
    labels = iter(code_labels(recorded))
    return [row | {column: next(labels)} if isinstance(row.get(column), CodeOfRun) else row for row in rows]


def code_diffs(rows: Sequence[RunRow], labelled: Sequence[RunRow]) -> dict[str, str]:
    """Return what changed from the first code to each other one, as diffs by label, if the text was kept.

    `labelled` are the rows that `with_code_labels` returns for `rows`.
    """
    column = measured_column(CODE)
    firsts: dict[str, CodeOfRun] = {}
    for row, other in zip(rows, labelled, strict=True):
        if isinstance(code := row.get(column), CodeOfRun) and code.hashes:
            firsts.setdefault(str(other[column]), code)
    first = next(iter(firsts.values()), CodeOfRun())
    diffs = {label: diff_between(first, code) for label, code in firsts.items()}
    return {label: diff for label, diff in diffs.items() if diff}


def code_labels(codes: Sequence[CodeOfRun]) -> list[str]:
    """Return a label for the code of each run: equal for the same code, different for different code.

    The label is the commit's subject if the tree was clean. Otherwise it says how the code differs from that of the first
    run: "attention.py +1 -1". Runs without a record of their code are "unknown".
    """
    firsts: list[CodeOfRun] = []  # one of each version
    known: list[dict[str, str]] = []  # all hashes of each version
    version_of: dict[tuple[tuple[str, str], ...], int] = {}
    versions = []
    for code in codes:
        key = tuple(code.hashes.items())
        if key not in version_of:
            same = (
                i
                for i, hashes in enumerate(known)
                if bool(hashes) == bool(key) and same_code(hashes, code.hashes)
            )
            version_of[key] = next(same, len(firsts))
            if version_of[key] == len(firsts):
                firsts.append(code)
                known.append({})
            known[version_of[key]].update(code.hashes)
        versions.append(version_of[key])
    labels: list[str] = []
    reference = next((i for i, hashes in enumerate(known) if hashes), 0)
    for code, hashes in zip(firsts, known, strict=True):
        label = label_of(code, hashes, firsts[reference], known[reference])
        n_equal = sum(other == label or other.startswith(f"{label} (") for other in labels)
        labels.append(f"{label} ({n_equal + 1})" if n_equal else label)
    return [labels[version] for version in versions]


def label_of(
    code: CodeOfRun, hashes: Mapping[str, str], first: CodeOfRun, hashes_of_first: Mapping[str, str]
) -> str:
    if not hashes:
        return "unknown"
    if code.subject and (not code.is_edited or code is first):
        subject = shorten(code.subject, MAX_SUBJECT, placeholder=" ...")
        return f"{subject} (edited)" if code.is_edited else subject
    if code is first:
        return "first"
    parts = {part for part in hashes if hashes_of_first.get(part, hashes[part]) != hashes[part]}
    files = sorted({part.partition(":")[0] for part in parts})
    then, now = read_kept_text(first.out, first.id), read_kept_text(code.out, code.id)
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


def diff_between(one: CodeOfRun, other: CodeOfRun) -> str | None:
    """Return the unified diff between the files that the two runs can import. None if a text was not kept."""
    then, now = read_kept_text(one.out, one.id), read_kept_text(other.out, other.id)
    if then is None or now is None:
        return None
    lines: list[str] = []
    for file in sorted(then | now):
        before, after = (side.get(file, "").splitlines() for side in (then, now))
        lines += unified_diff(before, after, f"a/{file}", f"b/{file}", lineterm="")
    return "\n".join(lines)
