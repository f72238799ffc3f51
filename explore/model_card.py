"""Model cards: what a model is, how it was trained and how good it is, as the README.md of its repository."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.corpora import is_hub_name
from data.data_params import DataParams
from explore.compare.metrics import is_number, number_text
from explore.compare.verdicts import interval
from model.lm import LM, n_params
from model.model_params import ModelParams
from train.grid.claims import SEED
from train.grid.params import Params
from train.saving.outcome import Ending, ending_of
from train.saving.run_folder import PARTIAL, find_run, output_root, read_about, read_params, run_folders
from train.saving.timestamps import TIMESTAMP
from train.train_params import TrainParams

CARD = "README.md"
LICENSE = "# license: mit   <- choose one, such as mit, apache-2.0 or cc-by-4.0, and remove all but `license: ...` from this line"
NUMBERS_OF_CARD = {  # final numbers, by what a reader calls them; those of evaluation sets and of lm_eval follow
    "val_loss": "validation loss (nats per token)",
    "bits_per_byte": "validation loss (bits per byte)",
    "val_accuracy": "accuracy on scored tokens",
    "val_exact_match": "exact match",
}


class RunOfModel(NamedTuple):
    """A saved run."""

    about: Mapping[str, Any]
    params: Params

    @classmethod
    def read(cls, folder: Path) -> "RunOfModel":
        """Read the run in `folder`. Raise ValueError if it is damaged."""
        about = read_about(folder)
        return cls(about, read_params(folder, about))

    @property
    def summary(self) -> Mapping[str, Any]:
        return self.about["summary"]


def write_card(lm: LM, folder: str | Path, out: str | None = None) -> None:
    """Write the card of a model to README.md in `folder`, unless there is one: somebody may have completed it."""
    path = Path(folder, CARD)
    if not path.exists():
        path.write_text(model_card(lm, out), encoding="utf-8")


def model_card(lm: LM, out: str | None = None) -> str:
    """Return the card of a model as Markdown, with the metadata of the hub at its top and a line for the license to fill in.

    A model of a saved run is found by its name, in the output root `out` (`--out`). Of other models only the architecture
    is known.
    """
    run = run_of_model(lm, out)
    names = [] if run is None else dataset_names(run.params)
    masked = lm.model_params.hides_tokens
    head = ["library_name: transformers", f"pipeline_tag: {'fill-mask' if masked else 'text-generation'}"]
    head += ["tags:", "- whatif", LICENSE]
    if on_hub := [name for name in names if is_hub_name(name)]:
        head += ["datasets:", *(f"- {name.partition('@')[0]}" for name in on_hub)]
    made = "converted" if run is None else f"trained on {', '.join(names)}"
    body = [
        f"# {lm.name or 'A language model'}",
        f"A language model of {n_params(lm):,} parameters, {made} with whatif.",
    ]
    body += ["## Use", usage(masked, lm.tokenizer.bos is not None and run is not None)]
    if run is not None:
        body += ["## Training", training_of(run), "## Results", results_of_model(lm, run, output_root(out))]
    fields = vars(lm.model_params) if run is None else run.params.flat()
    body += ["## Fields", "All other fields have their default values.", table_of_fields(fields)]
    if run is not None:
        body += ["## Code", code_of_model(run.about)]
    body += ["## License", "To be filled in, here and at the top of this file."]
    return "\n".join(["---", *head, "---", ""]) + "\n" + "\n\n".join(body) + "\n"


def run_of_model(lm: LM, out: str | None) -> RunOfModel | None:
    """Return the saved run that a model is named after, or None if there is none in the output root."""
    found = TIMESTAMP.match(lm.name)
    try:
        return RunOfModel.read(find_run(found[0], out)) if found else None
    except ValueError:  # such as a run under another root
        return None


def dataset_names(params: Params) -> list[str]:
    """Return the task or text of a run, or the texts of a mixture."""
    name = params.data.dataset_name
    return [name] if isinstance(name, str) else [*name]


def usage(masked: bool, wants_bos: bool) -> str:
    kind = "AutoModelForMaskedLM" if masked else "AutoModelForCausalLM"
    lines = [
        "```python",
        f"from transformers import {kind}, AutoTokenizer",
        "",
        'name = "..."  # of this repository, or a folder that holds it',
        f"model, tokenizer = {kind}.from_pretrained(name), AutoTokenizer.from_pretrained(name)",
        "```",
    ]
    note = "\n\nIn training every text began with `tokenizer.bos_token`. The tokenizer does not add it."
    return "\n".join(lines) + note * wants_bos


def training_of(run: RunOfModel) -> str:
    """Return how long a run trained, as a sentence."""
    steps, tokens = (run.summary.get(name) for name in ("steps", "trained_tokens"))
    length = f"{steps:,} steps" if is_number(steps) else "an unknown number of steps"
    seen = f" on {tokens:,} tokens" if is_number(tokens) else ""
    return f"{length}{seen}, with `{SEED} = {run.params.train.random_seed}`."


def results_of_model(lm: LM, run: RunOfModel, root: Path) -> str:
    """Return a table of the run's final numbers, with mean and 95 % interval over its seeds if there are several."""
    runs = [other.summary for other in runs_of_all_seeds(run, root)]
    further = [name for name in run.summary if "[" in name and not name.startswith("left_out[")]
    rows = [["", "this model", "mean over seeds", "95 % interval", "seeds"], ["---"] * 5]
    for name in (*NUMBERS_OF_CARD, *further):
        if is_number(value := run.summary.get(name)):
            values = [found for other in runs if is_number(found := other.get(name))]
            rows.append([NUMBERS_OF_CARD.get(name, name), number_text(value), *over_seeds(values)])
    n_columns = 5 if len(runs) > 1 else 2
    table = "\n".join(f"| {' | '.join(cells[:n_columns])} |" for cells in rows)
    at_end = "These are the numbers of the run's last step, not those of this model.\n\n"
    return at_end * (", step" in lm.name) + table


def over_seeds(values: Sequence[float]) -> list[str]:
    """Return mean, 95 % interval and number of seeds as text."""
    low, high = interval(np.array(values))
    shown = "unknown" if math.isnan(low) else f"{number_text(low)} to {number_text(high)}"
    return [number_text(float(np.mean(values))), shown, str(len(values))]


def runs_of_all_seeds(run: RunOfModel, root: Path) -> Iterator[RunOfModel]:
    """Yield the run and all others that differ from it only in their seed, the last one for each seed."""
    found: dict[int, RunOfModel] = {}
    for folder in sorted(run_folders(root), key=lambda folder: folder.name):
        try:
            other = None if folder.name.endswith(PARTIAL) else RunOfModel.read(folder)
        except ValueError:  # a damaged folder
            continue
        if other is not None and is_same_but_seed(other, run):
            found[other.params.train.random_seed] = other
    yield from (found | {run.params.train.random_seed: run}).values()


def is_same_but_seed(one: RunOfModel, other: RunOfModel) -> bool:
    fields, others = ({**run.params.flat(), SEED: None} for run in (one, other))
    has_diverged = ending_of(one.summary.get("stopped")) is Ending.DIVERGED
    return fields == others and one.about["code"] == other.about["code"] and not has_diverged


def table_of_fields(values: Mapping[str, object]) -> str:
    """Return a table of the fields that differ from their defaults."""
    defaults = Params(DataParams(), TrainParams(), ModelParams()).flat()
    rows = []
    for name, value in values.items():
        if name in defaults and value != defaults[name]:
            shown = repr(value).replace("|", "\\|")
            rows.append(f"| `{name}` | `{shown}` |")
    return "\n".join(["| field | value |", "|---|---|", *rows])


def code_of_model(about: Mapping[str, Any]) -> str:
    """Return the commit and the versions of packages with which a run was trained, as sentences."""
    commit, subject = about.get("commit"), about.get("subject")
    edited = ", with changes that are not in a commit" * bool(about.get("edited"))
    where = f"Commit `{commit}`" + (f" ({subject})" if subject else "") if commit else "The commit is unknown"
    versions = ", ".join(f"{name} {number}" for name, number in about.get("versions", {}).items())
    return f"{where}{edited}.\n\n{versions}."
