"""Checks of a run's data before it starts: the task or the text, its arguments, and the tokenizer."""

import inspect
import math
import random
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from common.text import OWN_NAME, did_you_mean
from data.corpora import (
    corpus_names,
    data_folder_fault,
    is_corpus,
    is_local,
    log_once,
    own_folder,
    read_corpus,
)
from data.data_params import DataParams
from data.syntheticdata import MARKS, Sample, Task, tasks, text_without_marks
from data.task_rows import MAX_TRIED, check_fits, check_split, short_repr, split_sizes
from data.text_rows import too_few_documents
from data.tokenizer import OWN_SPECIALS, TokenizerSpec, check_spec
from data.trial import TrialError, in_trial

TRIED_SAMPLES = 100
ENOUGH_SECONDS = 1.0  # draw no further trial sample after this time
# CPU time for all trial samples of a task. A task that needs more is refused.
MAX_DRAWING_SECONDS = 2.0
MAX_LISTING_SECONDS = 3.5  # CPU time to list all rows of a finite task
TRIED_DRAWS = 20  # samples that test whether a task draws from its rng argument only


def data_problems(
    data_params: DataParams, tokenizer_spec: TokenizerSpec, max_seq_len: int, has_tokenizer: bool = False
) -> Iterator[str]:
    """Yield a sentence for each reason why the task, the text or the tokenizer cannot be used.

    The checks write nothing to the cache. `has_tokenizer` skips the check of `tokenizer_spec`.
    """
    if data_params.shares:
        yield from mixture_problems(data_params, tokenizer_spec, max_seq_len, has_tokenizer)
        return
    name, args = data_params.label, data_params.task_args
    if name in tasks:
        if (folder := own_folder(name)) is not None:
            log_once(f"dataset_name={name!r} is the built-in task, not your folder {folder}")
        if tokenizer_spec.source != "char":
            yield (
                f"tokenizer_source_name={tokenizer_spec.source!r} is for text, "
                f"but dataset_name={name!r} is a synthetic task; use 'char'"
            )
        yield from task_problems(tasks[name], data_params, max_seq_len)
        return
    if not has_tokenizer:
        yield from problem_of(f"tokenizer_source_name={tokenizer_spec.source!r}", check_spec, tokenizer_spec)
    if is_corpus(name):
        if args:
            yield f"task_args={short_repr(args)} is for synthetic tasks, but dataset_name={name!r} is text"
        yield from problem_of(f"dataset_name={name!r}", check_corpus, data_params)
    else:
        there_is = did_you_mean(name, sorted([*tasks, *corpus_names()]), list_all=True)
        yield f"dataset_name={name!r} is neither a task nor a text{data_folder_fault()}; {there_is}{OWN_NAME}"


def mixture_problems(
    data_params: DataParams, tokenizer_spec: TokenizerSpec, max_seq_len: int, has_tokenizer: bool
) -> Iterator[str]:
    """Yield a sentence for each reason why a mixture of texts cannot be used."""
    for name in data_params.shares:
        if name in tasks:
            yield f"dataset_name={{{name!r}: ...}}: a mixture is of texts, but {name!r} is a synthetic task"
            continue
        part = data_params.part_params(name)
        yield from data_problems(part, tokenizer_spec, max_seq_len, has_tokenizer)
        has_tokenizer = True  # it is checked once


def problem_of(about: str, check: Callable[..., object], *args: object) -> Iterator[str]:
    """Call `check(*args)`. If it raises an error, yield its message, after `about` unless it names the field of `about`.

    `about` is a setting such as "field=1".
    """
    try:
        check(*args)
    except ValueError as error:
        field = about[: about.index("=") + 1]
        yield str(error) if field in str(error) else f"{about}: {error}"
    except MemoryError:
        yield f"{about}: needs more memory than is available"
    # An unexpected error of a task, a corpus or a library: name the line for its author.
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        yield f"{about}: {type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"


def check_corpus(data_params: DataParams) -> None:
    """Raise ValueError if documents are too few or unreadable; read all only if they lie on this machine."""
    name = data_params.label
    own = read_corpus(name, data_params.debug_crop, data_params)
    if "train" not in own:
        raise ValueError(
            f"dataset_name={name!r} has no split 'train'; there are: {', '.join(own)}: set train_split"
        )
    shares = {"val": data_params.val_pct, "test": data_params.test_pct}
    least = 1 + sum(split not in own and pct > 0 for split, pct in shares.items())
    n = len(list(islice(own["train"], least)))
    if n < least:
        raise too_few_documents(n, data_params)
    if is_local(name):
        for documents in own.values():
            deque(documents, maxlen=0)


def task_problems(
    task: Task, data_params: DataParams, max_seq_len: int, *, is_split: bool = True
) -> Iterator[str]:
    """Yield a sentence for each problem of the arguments, of trial samples, or of the split, if there is one."""
    about = f"task_args={short_repr(data_params.task_args)} with dataset_name={task.name!r}"
    if wrong := list(args_problems(task, data_params)):
        yield from wrong
        if is_split:
            yield from problem_of(about, split_sizes, data_params, None)
        return
    try:
        cpu_seconds = MAX_LISTING_SECONDS if task.rows else MAX_DRAWING_SECONDS
        yield from in_trial(
            trial_problems, about, task, data_params, max_seq_len, is_split, cpu_seconds=cpu_seconds
        )
    except TrialError as error:
        yield f"{about}: {'listing all rows' if task.rows else 'drawing trial samples'} {error}"


def trial_problems(
    about: str, task: Task, data_params: DataParams, max_seq_len: int, is_split: bool = True
) -> list[str]:
    """Return a sentence for each problem of trial samples and their split; each contains `about`.

    Drawing may take very long, so call this function through `in_trial`.
    """
    until = time.monotonic() + ENOUGH_SECONDS
    problems: list[str] = []

    def check() -> None:
        trial = check_samples(task, data_params, until)
        problems.extend(problem_of(about, check_fits, trial.longest, data_params, max_seq_len))
        if is_split:
            problems.extend(problem_of(about, check_split, task, data_params, trial.n_rows, until))

    if wrong := list(problem_of(about, check)):
        return [*wrong, *(problem_of(about, split_sizes, data_params, None) if is_split else ())]
    return problems


class Trial(NamedTuple):
    """The facts about a task that its trial samples show."""

    longest: int  # tokens of the longest sample
    n_rows: int | None  # number of different samples of a finite task, else None


def check_samples(task: Task, data_params: DataParams, until: float = math.inf) -> Trial:
    """Return facts about trial samples; raise ValueError for a global random generator or an invalid token.

    Check all rows of a finite task, or up to TRIED_SAMPLES samples of another task. Stop drawing at `until`, a value of
    time.monotonic().
    """
    words, first, longest, n_rows = set[object](), list[Sample](), 0, 0
    if not task.rows:
        check_rng(task, data_params, until)
    spaced = isinstance(task.draw(random.Random(0), **data_params.task_args), str)
    for sample in trial_samples(task, data_params, until):
        words.update(sample)
        longest = max(longest, len(sample) - sum(map(sample.count, MARKS)))
        n_rows += 1
        if task.rows and n_rows <= MAX_TRIED:
            first.append(sample)
    check_tokens(
        {word for word in words - set(MARKS) if not (spaced and isinstance(word, str) and word.isspace())}
    )
    if not task.rows:
        return Trial(longest, None)
    return Trial(longest, n_rows if n_rows > MAX_TRIED else len(set(map(text_without_marks, first))))


def trial_samples(task: Task, data_params: DataParams, until: float) -> Iterator[Sample]:
    """Yield all rows of a finite task, or samples of another task until the time `until`, at least one."""
    if task.rows:
        yield from task.rows(**data_params.task_args)
        return
    for i in range(TRIED_SAMPLES):
        if i and time.monotonic() > until:
            return
        yield task.draw(random.Random(i), **data_params.task_args)


def check_rng(task: Task, data_params: DataParams, until: float = math.inf) -> None:
    """Raise ValueError if a sample depends on the global random state of Python, numpy or torch."""
    python, numpy, pytorch = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        for i in range(TRIED_DRAWS):
            if i and time.monotonic() > until:
                return
            drawn = []
            # Draw twice with the same rng argument and different global states.
            for state in (2 * i, 2 * i + 1):
                random.seed(state)
                np.random.seed(state)  # noqa: NPY002
                torch.default_generator.manual_seed(state)
                drawn.append(task.draw(random.Random(i), **data_params.task_args))
            if drawn[0] != drawn[1]:
                code = task.draw.__code__
                raise ValueError(
                    f"{code.co_filename}:{code.co_firstlineno}: dataset_name={data_params.dataset_name!r} draws other samples "
                    "from the same rng: draw from the rng argument only, not from the global state of random, numpy or torch"
                )
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(pytorch)


def check_tokens(tokens: Iterable[object]) -> None:
    """Raise ValueError unless every token is a string without spaces and not a special token."""
    for token in tokens:
        if not isinstance(token, str) or token.split() != [token] or token in OWN_SPECIALS:
            raise ValueError(
                f"{token!r} is not a valid token: a token is a word without spaces, other than {', '.join(OWN_SPECIALS)}"
            )


def args_problems(task: Task, data_params: DataParams) -> Iterator[str]:
    """Yield a sentence for each task argument that is unknown, missing or of the wrong type."""
    _, *parameters = inspect.signature(task.draw).parameters.values()
    accepted = {
        parameter.name: parameter for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD
    }
    args, empty = data_params.task_args, inspect.Parameter.empty
    problems = [
        f"has no {key!r}; {did_you_mean(key, sorted(accepted), list_all=True)}"
        for key in args
        if key not in accepted
    ]
    for name, parameter in accepted.items():
        default = parameter.default
        kind = parameter.annotation if default is empty else type(default)
        if name not in args:
            if default is empty:
                problems.append(f"needs a value for {name!r}")
        elif not has_type(args[name], kind):
            problems.append(f"takes {kind.__name__} for {name!r}, not {short_repr(args[name])}")
    for problem in problems:
        yield f"task_args={short_repr(args)}: dataset_name={task.name!r} {problem}"


def has_type(value: object, kind: object) -> bool:
    """Return whether a task argument of type `kind` may have this value. An int is a valid float, a bool is not.

    Kinds other than bool, int, float and str accept every value.
    """
    return kind not in (bool, int, float, str) or type(value) is kind or (kind, type(value)) == (float, int)
