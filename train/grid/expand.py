"""Read config texts, report all their errors together, and expand them into runs.

Configs are Python literals; nothing in them is executed.
"""

import functools
import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from common.repository import REPOSITORY
from common.text import nearest
from data.data_params import DataParams
from model.model_params import ModelParams
from train.grid.claims import Expectations, check_claims, read_expectations
from train.grid.config_text import (
    VARIANT,
    Config,
    Errors,
    Place,
    Setting,
    located,
    read_config,
    read_options,
    refusal,
)
from train.grid.params import SECTION_OF, SECTIONS, Params, Section
from train.grid.rules import Rule, Rules, read_rules
from train.grid.run import Run, SizeMatch
from train.logs import log
from train.train_params import LENGTHS, TrainParams

__all__ = [
    "CONFIGS",
    "GridError",
    "Place",
    "Run",
    "axes",
    "check_grid",
    "comment_at_top",
    "config_files",
    "expand_grid",
    "located",
    "read_grid",
]

CONFIGS = REPOSITORY / "configs"
MAX_ERRORS = 20  # shown in one message
WIDTHS = {"dim", "dim_ff"}  # fields that `match` may change
MAX_GRID_POINTS = 1_000_000  # in one config, skipped ones included


class GridError(ValueError):
    """All errors of a grid, one per line."""

    def __init__(self, errors: Iterable[str]) -> None:
        self.errors = list(dict.fromkeys(errors))
        hidden = len(self.errors) - MAX_ERRORS
        super().__init__("\n".join(self.errors[:MAX_ERRORS] + [f"... and {hidden} more"] * (hidden > 0)))


def config_files(name: str, folder: Path) -> list[Path]:
    """Return `name`.txt and every `name`-*.txt of `folder`, sorted. Raise GridError if there are none.

    A name in a folder of `folder`, such as reproduce/copy, stands for that file alone.
    """
    inside, _, name = name.rpartition("/")
    folder = folder / inside
    is_known = not inside or inside.isidentifier()
    stems = sorted(path.stem for path in folder.glob("*.txt")) if is_known else []
    chosen = [stem for stem in stems if stem == name or (not inside and stem.startswith(f"{name}-"))]
    if not chosen:
        names = {part for stem in stems for part in (stem, stem.split("-")[0])}
        hint = "".join(f"did you mean {near!r}? " for near in nearest(name, names))
        raise GridError([f"--config={name}: no such config in {folder}; {hint}there are: {', '.join(stems)}"])
    return [folder / f"{stem}.txt" for stem in chosen]


def comment_at_top(file: Path) -> str:
    """Return the comment with which a config begins, as one line."""
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return " ".join(
        line.lstrip("# ").strip() for line in itertools.takewhile(lambda line: line.startswith("#"), lines)
    )


class FileOfGrid(NamedTuple):
    """The runs of one config file, with the errors that its text alone shows."""

    config: Config
    runs: list[Run]
    errors: Errors
    expectations: Expectations = Expectations()


def read_grid(
    files: list[Path],
    options: Mapping[str, str] | None = None,
    each: Callable[[Params], list[Params]] = lambda params: [params],
    problems: Callable[[list[Run]], Iterable[tuple[str, dict[str, Place]]]] = lambda runs: (),
    defaults: Callable[..., dict[str, object]] = lambda **chosen: {},
) -> list[Run]:
    """Return the runs of all `files`. Raise GridError with all errors together.

    `options`, `each` and `defaults` are those of expand_grid(), `problems` and the result those of check_grid().
    """
    return check_grid(expand_grid(files, options, each, defaults), problems)


def expand_grid(
    files: list[Path],
    options: Mapping[str, str] | None = None,
    each: Callable[[Params], list[Params]] = lambda params: [params],
    defaults: Callable[..., dict[str, object]] = lambda **chosen: {},
) -> list[FileOfGrid]:
    """Return each file with its runs, without asking whether they can be trained. This takes no torch.

    - options: settings of the command line, which replace those of every file, {as typed: "key=value"}.
    - each: returns the runs of one grid point.
    - defaults: called with the fields that a grid point sets; returns values for other fields, in place of the
      defaults of their classes.

    Raise GridError with all errors of the text if it has a syntax error or a name that does not exist. Other errors
    are left to check_grid(), which adds those that it finds itself.
    """
    on_command_line = Errors()
    chosen = read_options(options or {}, on_command_line)
    read = []
    for file in files:
        errors = Errors(on_command_line.fields)
        config = read_config(file, errors)
        config = without_replaced_length(config, chosen)
        rules = read_rules(config, chosen, errors)
        runs = Expansion(config, rules, errors, each, defaults).runs(config.settings | chosen)
        expectations = read_expectations(config, errors)
        if runs and not errors.lines:
            check_claims(expectations.claims, runs, errors)
        read.append(FileOfGrid(config, runs, errors, expectations))
    # Errors of the command line come first, and once.
    read.insert(0, FileOfGrid(Config("", {}, {}), [], on_command_line))
    if any(part.errors.is_misread for part in read):
        raise GridError(line for part in read for line in part.errors.lines)
    return read


def check_grid(
    read: list[FileOfGrid],
    problems: Callable[[list[Run]], Iterable[tuple[str, dict[str, Place]]]] = lambda runs: (),
    known: Iterable[str] = (),
) -> list[Run]:
    """Return the runs of all files. Raise GridError with all errors together: of the text, and of the runs.

    `problems` yields further errors of a file's runs, as (message, places of the settings). `known` are errors found
    elsewhere, reported with the others.
    """
    lines, notes = [*known], []
    for config, runs, errors, _ in read:
        errors.notes += other_meanings(config, runs)
        for message, places in problems(runs) if runs else ():
            errors.add_located(message, places)
        lines += errors.lines
        notes += errors.notes
    if lines:
        raise GridError(lines)
    for note in notes:
        log.warning(note)
    return [run for part in read for run in part.runs]


def without_replaced_length(config: Config, options: Mapping[str, Setting]) -> Config:
    """Return `config` without the length of its runs if the command line sets one, whichever field that is."""
    if not any(name in options for name in LENGTHS):
        return config
    return config._replace(
        settings={k: s for k, s in config.settings.items() if k not in LENGTHS or k in options}
    )


# Fields with another meaning in other projects: {field: (schedule it suggests, our field for that, note)}.
OTHER_MEANINGS = {
    "patience": (
        "plateau",
        "lr_plateau_patience",
        "patience stops training and keeps the best weights; to choose how soon lr_schedule='plateau' lowers lr, set "
        "lr_plateau_patience",
    ),
    "lr_cycle_steps": (
        "cosine",
        None,
        "lr_cycle_steps has no effect on lr_schedule='cosine', which falls once over the whole run; for cycles set "
        "lr_schedule='cyclic'",
    ),
}


def other_meanings(config: Config, runs: Iterable[Run]) -> Iterator[str]:
    """Yield a note for each field set in the config that has another meaning in other projects and no effect here."""
    settings, schedules = config.settings, {run.params.train.lr_schedule for run in runs}
    for name, (schedule, ours, note) in OTHER_MEANINGS.items():
        if name in settings and schedule in schedules and ours not in settings:
            yield f"{settings[name].place}: {note}"


class Expansion:
    """Expands one config into grid points and their runs. Errors are collected in `errors`."""

    def __init__(
        self,
        config: Config,
        rules: Rules,
        errors: Errors,
        each: Callable[[Params], list[Params]],
        defaults: Callable[..., dict[str, object]],
    ) -> None:
        self.source = Place(config.source, 0)
        self.rules = rules
        self.errors = errors
        self.each = each
        self.defaults = defaults
        self.built: dict[str, Any] = {}  # params by their values as text: most points share them
        self.rules_with_errors: list[Rule] = []
        self.used: set[str] = set()  # skip conditions that left out a point

    def runs(self, settings: Mapping[str, Setting]) -> list[Run]:
        """Return the full product of all axes: variants vary slowest, then the axis named first."""
        runs: list[Run] = []
        n_points = 0
        for variant in self.rules.variants:
            own = {k: s for k, s in {**settings, **variant.settings}.items() if s.values and k in SECTION_OF}
            places = {key: setting.place for key, setting in own.items()}
            places |= {key: rule.place for key, rule in self.rules.derive.items()}
            before, outside = len(runs), self.axes_outside_match(own, variant.settings)
            for chosen in self.points(own):
                n_points += 1
                new = self.runs_of(chosen, variant.name, places)
                if self.rules.match is not None:
                    group = repr((self.source, [(name, chosen[name]) for name in outside]))
                    match = SizeMatch(self.rules.match.what, group, self.rules.match.place)
                    new = [replace(run, match=match) for run in new]
                runs += new
            if len(runs) == before and variant.name is not None and self.rules.skip:
                self.errors.notes.append(f"{self.source}: skip leaves no run of variant {variant.name!r}")
        if not self.errors.lines:
            self.report_useless_skips(runs, n_points)
        return runs

    def axes_outside_match(
        self, settings: Mapping[str, Setting], of_variant: Mapping[str, Setting]
    ) -> list[str]:
        """Return the fields whose values make groups of their own where `match` makes the runs of a group equal in size.

        These are the axes of the data and of training, and those that set a size themselves: dim, dim_ff, and what
        advances together with them. Fields that variants set make no groups.
        """
        groups = {name: group.fields for group in self.rules.together for name in group.fields}
        outside = []
        for name, setting in settings.items():
            axis = groups.get(name, [name])
            is_of_model = any(SECTION_OF.get(field) == ModelParams.__name__ for field in axis)
            is_outside = not is_of_model or not WIDTHS.isdisjoint(axis)
            if setting.is_list and name not in of_variant and is_outside:
                outside.append(name)
        return outside

    def report_useless_skips(self, runs: list[Run], n_points: int) -> None:
        """Add an error if `skip` leaves no run, and a note for each condition that leaves out no point."""
        for rule in self.rules.skip:
            if not runs:
                self.errors.add(rule.place, f"skip leaves none of {n_points:,} points")
                return
            if rule.expression.text not in self.used:
                self.errors.notes.append(f"{rule.place}: skip {rule.expression.text!r} leaves out no point")

    def points(self, settings: Mapping[str, Setting]) -> Iterator[dict[str, object]]:
        """Yield the settings of each point. The fields of a `together` group form one axis, at the place of the first."""
        groups = {name: group.fields for group in self.rules.together for name in group.fields}
        self.check_together(settings)
        axes: list[list[dict[str, object]]] = []
        taken: set[str] = set()
        for key in settings:
            if key not in taken:
                names = [name for name in groups.get(key, [key]) if name in settings]
                taken.update(names)
                columns = zip(*(settings[name].values for name in names), strict=False)
                axes.append([dict(zip(names, values, strict=True)) for values in columns])
        if (n_points := math.prod(map(len, axes))) > MAX_GRID_POINTS:
            self.errors.add(
                self.source, f"{n_points:,} points are too many; at most {MAX_GRID_POINTS:,} are allowed"
            )
            return
        for parts in itertools.product(*axes):
            yield {key: value for part in parts for key, value in part.items()}

    def check_together(self, settings: Mapping[str, Setting]) -> None:
        """Add an error unless the fields of each `together` group are lists of one length.

        A group is ignored in a variant that sets none of its fields, if another variant sets one.
        """
        for fields, place in self.rules.together:
            found = {name: settings[name] for name in fields if name in settings}
            if self.errors.fields.intersection(fields) or (not found and self.set_by_a_variant(fields)):
                continue
            for name in fields:
                if name not in found:
                    self.errors.add(place, f"{name!r} is in together, but no list is set for it", name)
                elif not found[name].is_list and found[name].place.line:
                    self.errors.add(
                        found[name].place, f"{name!r} is in together ({place}): it needs a list", name
                    )
            if len({len(setting.values) for setting in found.values()}) > 1:
                lengths = ", ".join(f"{k} has {len(s.values)} ({s.place})" for k, s in found.items())
                self.errors.add(place, f"fields in together need lists of equal length: {lengths}", fields[0])

    def set_by_a_variant(self, fields: list[str]) -> bool:
        return any(variant.settings.keys() & set(fields) for variant in self.rules.variants)

    def runs_of(self, chosen: dict[str, object], variant: str | None, places: dict[str, Place]) -> list[Run]:
        """Return the runs of one point, or none if it is skipped or has an error."""
        try:
            if (point := self.complete(chosen, variant)) is None:
                return []
            own = self.defaults(**point) | point
        except ValueError as error:
            self.errors.add_located(str(error), places)
            return []
        try:
            params = Params(
                self.build(DataParams, own), self.build(TrainParams, own), self.build(ModelParams, own)
            )
            return [Run(made, places, Path(self.source.source).stem, variant) for made in self.each(params)]
        except ValidationError as error:
            for problem in error.errors():
                self.errors.add_located(problem["msg"].removeprefix("Value error, "), places)
        except ValueError as error:
            self.errors.add(Place("run_all in main.py", 0), str(error))
        return []

    def complete(self, chosen: dict[str, object], variant: str | None) -> dict[str, object] | None:
        """Return a point with its derived fields, or None if it is skipped or an expression fails."""
        derive = self.rules.derive
        if not derive and not self.rules.skip:
            return chosen
        known = {VARIANT: variant} | field_defaults() | self.defaults(**chosen) | chosen
        late = [rule for rule in self.rules.skip if derive.keys() & set(rule.expression.names)]
        if self.skipped([rule for rule in self.rules.skip if rule not in late], known):
            return None
        for key, rule in derive.items():
            if not self.derived(key, rule, known):
                return None
        return None if self.skipped(late, known) else chosen | {key: known[key] for key in derive}

    def skipped(self, rules: list[Rule], known: dict[str, object]) -> bool:
        """Return True if a skip condition holds. All are evaluated, so that unused ones can be reported."""
        hit = False
        for rule in rules:
            try:
                outcome = rule.expression(known)
                if not isinstance(outcome, bool):
                    raise ValueError(f"gives {outcome!r:.80}{rule.expression.at(known)}, not True or False")
            except ValueError as error:
                self.add_rule_error(rule, f"skip {rule.expression.text!r}: {error}")
                outcome = True
            if outcome:
                self.used.add(rule.expression.text)
            hit = hit or outcome
        return hit

    def add_rule_error(self, rule: Rule, message: str, key: str = "") -> None:
        """Add an error for the first point at which a rule fails. It likely fails at others too, which are not reported."""
        if rule not in self.rules_with_errors:
            self.rules_with_errors.append(rule)
            self.errors.add(rule.place, message, key)

    def derived(self, key: str, rule: Rule, known: dict[str, object]) -> bool:
        """Add a derived field to the `known` values of a point.

        Return False, and add an error, if the field has no valid value.
        """
        text, section = rule.expression.text, SECTION_OF[key]
        try:
            value = known[key] = rule.expression(known)
        except ValueError as error:
            self.add_rule_error(rule, f"derive {key!r} = {text!r}: {error}", key)
            return False
        if reason := refusal(SECTIONS[section], key, value):
            hint = "; // gives whole numbers" if isinstance(value, float) and "integer" in reason else ""
            at = f"which {text!r} gives{rule.expression.at(known)}"
            self.add_rule_error(
                rule, f"{section} cannot have {key} = {value!r:.80}, {at}: {reason}{hint}", key
            )
        return reason is None

    def build(self, params_class: type[Section], values: Mapping[str, object]) -> Section:
        """Return `params_class` made from those of `values` that are its fields."""
        name = params_class.__name__
        own: dict[str, Any] = {key: value for key, value in values.items() if SECTION_OF[key] == name}
        if (made_from := f"{name}{own}") not in self.built:
            self.built[made_from] = params_class(**own)
        return self.built[made_from]


@functools.cache
def field_defaults() -> dict[str, object]:
    return {
        key: value for cls in SECTIONS.values() for key, value in vars(cls()).items() if key in SECTION_OF
    }


def axes(runs: Iterable[tuple[Hashable, Params]]) -> list[str]:
    """Return the fields that differ between runs (group, params) of the same group, in the order of their sections."""
    values: dict[str, dict[Hashable, set[str]]] = {}
    seen: dict[tuple[Hashable, int], object] = {}  # many runs share params, which are read only once
    for group, params in runs:
        for part in params:
            if (group, id(part)) not in seen:
                seen[group, id(part)] = part
                for key, value in vars(part).items():
                    if key in SECTION_OF:
                        values.setdefault(key, {}).setdefault(group, set()).add(repr(value))
    return [key for key, of_key in values.items() if any(len(of_group) > 1 for of_group in of_key.values())]
