"""Run the notebooks and keep them with what they show: `python3 -m docs.notebooks`. It takes two minutes.

`notebooks/NAME.py` becomes `docs/notebooks/NAME.ipynb`, which GitHub shows and Jupyter opens.
"""

import os
from base64 import b64decode, b64encode
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

from common.repository import REPOSITORY
from docs.pictures import compressed

SOURCES = REPOSITORY / "notebooks"
KEPT = REPOSITORY / "docs" / "notebooks"
SECONDS = 300  # for a cell


def main(folder: Path = KEPT) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    folder.mkdir(parents=True, exist_ok=True)
    for source in sorted(SOURCES.glob("*.py")):
        kept = folder / f"{source.stem}.ipynb"
        text = nbformat.writes(made_small(run_notebook(source)))
        kept.write_text(text.replace(str(REPOSITORY), "."), encoding="utf-8")
        print(f"saved {kept}, {kept.stat().st_size / 1000:.0f} kB")


def run_notebook(source: Path, folder: Path = SOURCES) -> NotebookNode:
    """Return a notebook with the outputs of its cells, which run in `folder`. Raise CellExecutionError for an error."""
    notebook = jupytext.read(source)
    NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def made_small(notebook: NotebookNode) -> NotebookNode:
    """Remove the times at which cells ran, and compress figures."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            if png := output.get("data", {}).get("image/png"):
                output["data"]["image/png"] = b64encode(compressed(b64decode(png))).decode()
    return notebook


if __name__ == "__main__":
    main()
