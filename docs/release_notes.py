"""Print the release notes of a tag, which are the section of CHANGELOG.md for its version.

`python3 -m docs.release_notes v0.1.0` fails if pyproject.toml has another version, or if there is no such section.
"""

import re
import sys
import tomllib

from common.repository import REPOSITORY


def release_notes(tag: str, changelog: str, version: str) -> str:
    """Return the text below `## VERSION` or `## VERSION (DATE)`. Raise ValueError if the tag is not that of `version`."""
    if tag != f"v{version}":
        raise ValueError(f"the tag is {tag}, but pyproject.toml has version {version}: tag v{version}")
    section = rf"^## {re.escape(version)}(?: [^\n]*)?\n(.*?)(?=^## |\Z)"
    found = re.search(section, changelog, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"CHANGELOG.md has no section '## {version}': rename '## Unreleased'")
    return found[1].strip()


if __name__ == "__main__":
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    try:
        text = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
        print(release_notes(sys.argv[1], text, project["version"]))
    except ValueError as error:
        sys.exit(str(error))
