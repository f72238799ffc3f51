"""The generated part of docs/reproductions.md: each published result with what was expected and what was seen.

It follows from the configs in configs/reproduce and the kept runs alone, so a test can hold the page equal to them.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, groupby

from explore.compare.against import Decision
from explore.compare.claims import ClaimVerdict
from explore.compare.reproduction_figures import figure_of, panels_of
from explore.compare.reproductions import NOT_RUN, Reproduction, counts_of

FIGURES = "figures/reproductions"  # relative to docs/
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
END_OF_TITLE = re.compile(r" \(|(?<=[.?!:]) ")


def page_part(found: Sequence[Reproduction]) -> str:
    """Return the Markdown about these configs: the counts, what does not reproduce, and a section for each topic."""
    minutes = sum(one.expectations.minutes or 0 for one in found)
    lines = [f"**{counts_of(found)}.** All of them take {minutes / 60:.1f} hours on two CPU cores.", ""]
    lines += [*overview(found), ""]
    failures = [
        (one, verdict) for one in found if one.date for verdict in one.verdicts if is_failure(verdict)
    ]
    if failures:
        lines += ["These claims do not reproduce at this size:", ""]
        lines += [
            f"- [{title_of(one)}](#{anchor_of(title_of(one))}): {escaped(verdict.name)}"
            for one, verdict in failures
        ]
        lines.append("")
    for topic, group in groupby(found, lambda one: one.expectations.topic):
        lines += [f"## {topic}", ""]
        for one in group:
            lines += [*section_of(one), ""]
    return "\n".join(lines).rstrip()


def overview(found: Sequence[Reproduction]) -> Iterator[str]:
    """Yield the lines of a table with the number of verdicts in each topic."""
    yield "| topic | configs | claims | hold | fail | cannot be told |"
    yield "|---|---|---|---|---|---|"
    for topic, group in groupby(found, lambda one: one.expectations.topic):
        configs = list(group)
        n_claims = sum(len(one.expectations.claims) for one in configs)
        decisions = [verdict.decision for one in configs if one.date for verdict in one.verdicts]
        counts = [decisions.count(kind) for kind in (Decision.NO_WORSE, Decision.WORSE, Decision.CANNOT_TELL)]
        cells = [f"[{topic}](#{anchor_of(topic)})", len(configs), n_claims, *counts]
        yield f"| {' | '.join(map(str, cells))} |"


def section_of(one: Reproduction) -> Iterator[str]:
    """Yield the lines about a config."""
    expected = one.expectations
    yield from (f"### {title_of(one)}", "", with_links(escaped(rest_of_header(one))), "")
    command = f"`python3 main.py --reproduce={one.name} --jobs=2`"
    when = f"{len(one.rows)} runs, the last on {one.date}" if one.date else NOT_RUN
    yield from (f"Source: {with_links(escaped(expected.source))}. {command} ({when}).", "")
    yield from ("| claim | expected | seen | verdict |", "|---|---|---|---|")
    for verdict in one.verdicts:
        verdict_text = verdict.verdict if one.date else NOT_RUN
        cells = [
            escaped(verdict.name),
            as_code(verdict.expected),
            as_code(verdict.seen),
            escaped(verdict_text),
        ]
        yield f"| {' | '.join(cells)} |"
    if one.date:
        for verdict in one.verdicts:
            if sentence := sentence_about_verdict(verdict):
                yield from ("", sentence)
        if panels_of(one.expectations.claims, one.rows):
            yield from ("", f"![{title_of(one)}]({FIGURES}/{one.name}.svg)")


def sentence_about_verdict(verdict: ClaimVerdict) -> str:
    """Return a plain sentence about a claim that fails or cannot be told, or "" about one that holds."""
    name = escaped(verdict.name)
    if is_failure(verdict):
        return f'**"{name}" does not reproduce at this size**: {as_code(verdict.seen)} was seen.'
    if verdict.decision == Decision.CANNOT_TELL:
        seen = (
            "" if verdict.seen == "-" else f": {as_code(verdict.seen)} was seen over {verdict.n_seeds} seeds"
        )
        return f'Whether "{name}" holds at this size cannot be told{seen}.'
    return ""


def is_failure(verdict: ClaimVerdict) -> bool:
    return verdict.decision == Decision.WORSE


def title_of(one: Reproduction) -> str:
    """Return the first sentence of the header, without what stands in parentheses."""
    return END_OF_TITLE.split(one.header, maxsplit=1)[0].rstrip(".:") or one.name


def rest_of_header(one: Reproduction) -> str:
    """Return the header without its title, and without the parentheses that follow the title."""
    rest = one.header[len(END_OF_TITLE.split(one.header, maxsplit=1)[0]) :].strip()
    if not rest.startswith("("):
        return rest
    depths = accumulate((char == "(") - (char == ")") for char in rest)
    end = next((i for i, depth in enumerate(depths) if depth == 0), len(rest))
    return rest[1:end] + rest[end + 1 :]


def anchor_of(title: str) -> str:
    """Return the anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def escaped(text: str) -> str:
    """Return a text with the characters escaped that Markdown would take for markup."""
    return re.sub(r"([*<|])", r"\\\1", text)


def as_code(text: str) -> str:
    """Return a text as code in a cell of a table, and a dash as it is."""
    return text if text == "-" else f"`{text.replace('|', escaped('|'))}`"


def with_links(text: str) -> str:
    return ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def figures(found: Sequence[Reproduction]) -> Mapping[str, str]:
    """Return the SVG files of the page, by their names."""
    made = {f"{one.name}.svg": figure_of(one.expectations.claims, one.rows) for one in found}
    return {name: text for name, text in made.items() if text}
