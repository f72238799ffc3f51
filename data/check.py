"""What can be known to be wrong with a run's data before it starts."""

import difflib
import inspect
import random
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.corpora import corpus_names, data_folder_fault, is_local, read_corpus
from data.data_params import DataParams
from data.samples import check_fits, check_split, sizes
from data.syntheticdata import Task, read_marks, tasks
from data.text import too_few_documents
from data.tokenizer import OWN_SPECIALS, TokenizerSpec, check_spec

TRIED_SAMPLES = 100
TRIED_DRAWS = 20  # to find out whether a task draws from the rng argument only


def data_problems(
    data_params: DataParams, tokenizer_spec: TokenizerSpec, max_seq_len: int, has_tokenizer: bool = False
) -> Iterator[str]:
    """A sentence for each reason why the task, the text or the tokenizer cannot be had; writes nothing of ours."""
    name, args = data_params.dataset_name, data_params.task_args
    if name in tasks:
        if tokenizer_spec.source != "char":
            yield (
                f"tokenizer_source_name={tokenizer_spec.source!r} is for text: "
                f"dataset_name={name!r} is a synthetic task, which takes 'char'"
            )
        yield from task_problems(tasks[name], data_params, max_seq_len)
        return
    if not has_tokenizer:
        yield from problem_of(f"tokenizer_source_name={tokenizer_spec.source!r}", check_spec, tokenizer_spec)
    if name in corpus_names():
        if args:
            yield f"task_args={args} is for synthetic tasks, but dataset_name={name!r} is text"
        yield from problem_of(f"dataset_name={name!r}", check_corpus, data_params)
    else:
        there_is = known(name, [*tasks, *corpus_names()])
        yield f"dataset_name={name!r} is neither a task nor a text{data_folder_fault()}; {there_is}"


def problem_of(about: str, check: Callable[..., Any], *args: Any) -> Iterator[str]:
    """The sentence of the exception that `check` raises, if it does, beginning with the `about` field=value it concerns."""
    try:
        check(*args)
    except ValueError as error:
        field = about[: about.index("=") + 1]
        yield str(error) if field in str(error) else f"{about}: {error}"
    except Exception as error:  # of a task, a corpus or a library: the place helps who wrote it
        place = traceback.extract_tb(error.__traceback__)[-1]
        yield f"{about}: {type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"


def known(name: str, names: list[str]) -> str:
    """What to say to someone who asked for `name`."""
    close = difflib.get_close_matches(name, names, n=1)
    return (
        f"did you mean {close[0]!r}? " if close else ""
    ) + f"there are: {', '.join(sorted(names)) or 'none'}"


def check_corpus(data_params: DataParams) -> None:
    """Read the first documents, and all others if they lie on this machine."""
    own = read_corpus(data_params.dataset_name, data_params.debug_crop)
    shares = {"val": data_params.val_pct, "test": data_params.test_pct}
    least = 1 + sum(split not in own and pct > 0 for split, pct in shares.items())
    n = len(list(islice(own.get("train", ()), least)))
    if n < least:
        raise too_few_documents(n, data_params)
    if is_local(data_params.dataset_name):
        for documents in own.values():
            deque(documents, maxlen=0)


def task_problems(task: Task, data_params: DataParams, max_seq_len: int) -> Iterator[str]:
    """Looks at the arguments, draws some samples, and tries to split them."""
    about = f"task_args={data_params.task_args} with dataset_name={task.name!r}"
    if wrong := list(args_problems(task, data_params)) or list(
        problem_of(about, check_samples, task, data_params)
    ):
        yield from wrong
        yield from problem_of(about, sizes, data_params, None)
    else:
        longest = max((len(tokens) for tokens in first_samples(task, data_params)), default=0)
        yield from problem_of(about, check_fits, longest, data_params, max_seq_len)
        yield from problem_of(about, check_split, task, data_params)


def first_samples(task: Task, data_params: DataParams) -> Iterator[list[str]]:
    """The tokens of some samples, of all if they are finite."""
    args = data_params.task_args
    draws = (task.draw(random.Random(i), **args) for i in range(TRIED_SAMPLES))
    return (read_marks(sample).tokens for sample in (task.rows(**args) if task.rows else draws))


def check_samples(task: Task, data_params: DataParams) -> None:
    """Raise ValueError if the task draws from a global generator or returns something that is no token."""
    if not task.rows:
        check_rng(task, data_params)
    spaced = isinstance(task.draw(random.Random(0), **data_params.task_args), str)
    tokens = {token for sample in first_samples(task, data_params) for token in sample}
    check_tokens({token for token in tokens if not (spaced and token.isspace())})


def check_rng(task: Task, data_params: DataParams) -> None:
    """Raise ValueError if a sample depends on the global random state of Python, numpy or torch."""
    python, numpy, pytorch = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        for i in range(TRIED_DRAWS):
            drawn = []
            for state in (2 * i, 2 * i + 1):  # the same rng, another global state
                random.seed(state)
                np.random.seed(state)  # noqa: NPY002
                torch.default_generator.manual_seed(state)
                drawn.append(task.draw(random.Random(i), **data_params.task_args))
            if drawn[0] != drawn[1]:
                code = task.draw.__code__
                raise ValueError(
                    f"{code.co_filename}:{code.co_firstlineno}: dataset_name={data_params.dataset_name!r} draws other samples "
                    "from the same rng: draw from the rng argument only, not from the global random, numpy or torch"
                )
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(pytorch)


def check_tokens(tokens: Iterable[object]) -> None:
    for token in tokens:
        if not isinstance(token, str) or token.split() != [token] or token in OWN_SPECIALS:
            raise ValueError(
                f"{token!r} is no token: tokens are words without spaces, and none of {OWN_SPECIALS}"
            )


def args_problems(task: Task, data_params: DataParams) -> Iterator[str]:
    """Arguments that the task's function does not have, has no default for, or has of another type."""
    _, *parameters = inspect.signature(task.draw).parameters.values()
    wanted = {
        parameter.name: parameter for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD
    }
    args, empty = data_params.task_args, inspect.Parameter.empty
    problems = [f"has no {key!r}; {known(key, list(wanted))}" for key in args if key not in wanted]
    for name, parameter in wanted.items():
        default = parameter.default
        kind = parameter.annotation if default is empty else type(default)
        if name not in args:
            if default is empty:
                problems.append(f"needs a value for {name!r}")
        elif not fits(args[name], kind):
            problems.append(f"takes {kind.__name__} for {name!r}, not {args[name]!r}")
    for problem in problems:
        yield f"task_args={args}: dataset_name={task.name!r} {problem}"


def fits(value: object, kind: object) -> bool:
    """A whole number will do for a float, True for neither; kinds that are not as simple are not looked at."""
    return kind not in (bool, int, float, str) or type(value) is kind or (kind, type(value)) == (float, int)
