"""Run: one training of a grid, with its place in the config, its size, and how this call begins it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from data.held_out import HeldOut
from train.grid.config_text import Place
from train.grid.params import Params

StepKind = Literal["new", "finished", "continued", "again", "elsewhere"]


class RunSize(NamedTuple):
    """The size of a run, known before it trains."""

    n_params: int = 0
    n_steps: int | None = 0  # None: as many as fit into max_seconds
    n_tokens: int | None = 0  # estimated: rows to be trained on, times their mean length
    state_size: int | None = None  # numbers that generation keeps of a full row; None: unknown
    n_active: int = 0  # parameters that a token passes


class DataFacts(NamedTuple):
    """Facts about the data of a run that planning needs."""

    n_tokens: int = 0  # in the vocabulary
    n_rows: int = 0  # to train on
    n_val_rows: int = 0
    row_length: float = 0.0  # real tokens in a training row, in the mean
    content: str = ""  # hash of the text
    folders: tuple[Path, ...] = ()  # folders of the cache that hold it
    reads: frozenset[str] | None = None  # fields read while the data was made; None: unknown
    held_out: HeldOut = HeldOut()


class SizeMatch(NamedTuple):
    """The group of runs whose sizes `Grid match` makes equal, and what came of it."""

    what: str  # "params" or "flops"
    group: str  # equal for the runs of a group
    place: Place
    size: float = 0.0  # of this run, in parameters or FLOPs
    target: float = 0.0  # of the first run of the group


@dataclass(frozen=True)
class Step:
    """The way in which a call begins a run. It depends on the folders that earlier calls left."""

    what: StepKind
    folder: Path | None = None  # of the earlier attempt
    why: str = ""  # the reason, if the earlier attempt failed
    replaced: tuple[Path, ...] = ()  # partial folders of the same run, removed once it has ended

    @property
    def trains(self) -> bool:
        """True if this call trains the run."""
        return self.what not in ("finished", "elsewhere")

    @property
    def resumes_in(self) -> Path | None:
        """The folder in which the run continues, or None if it begins."""
        return self.folder if self.what == "continued" else None


NEW = Step("new")


@dataclass(frozen=True)
class Run:
    """One training of a grid. Reading the config fills in the first fields, planning the others."""

    params: Params
    places: dict[str, Place]  # where its fields are set
    config: str  # the name of the file
    variant: str | None = None  # its name, where the grid has variants
    number: int = 0  # from 1, in the whole grid
    name: str = ""  # the values that distinguish it from the others
    identity: str = ""  # a hash that equal runs share
    size: RunSize = field(default_factory=RunSize)
    data: DataFacts = field(default_factory=DataFacts)
    first_step: Step = NEW
    match: SizeMatch | None = None  # where the grid matches sizes
    metrics: tuple[str, ...] = ()  # registered metrics that claims about the run name

    @property
    def length(self) -> str:
        """The length of the run as text, such as "1,500 steps" or "30 s"."""
        if self.size.n_steps is None:
            return f"{self.params.train.max_seconds:,.6g} s"
        return f"{self.size.n_steps:,} steps"


class OwnFile(NamedTuple):
    """A file of the user's own, outside the repository, that registers parts; see train/own_parts.py."""

    path: str
    source: bytes

    @property
    def name(self) -> str:
        return Path(self.path).name


class Call(NamedTuple):
    """Options of the command line that hold for all runs of a grid."""

    out: Path  # root of all outputs
    save: bool
    wandb: bool
    wandb_entity: str | None
    wandb_group: str
    gpu_id: int | None
    command: list[str]
    resume: str | None = None  # "same" code or "anyway"; None: every run is new
    fail_fast: bool = False
    jobs: int = 1  # runs side by side
    cluster: str | None = None  # address of a Ray cluster, or "--slurm=" and options of sbatch
    parts: tuple[OwnFile, ...] = ()  # files of the user's own that workers load, too

    @property
    def cache(self) -> Path:
        return self.out / "cache"
