"""What can be known to be wrong with a run's data before it starts."""

import difflib
import inspect
import random
from itertools import islice

from data.corpora import corpus_names, read_corpus
from data.data_params import DataParams
from data.samples import check_fits, sizes
from data.syntheticdata import Task, read_marks, tasks
from data.text import too_few_documents
from data.tokenizer import OWN_SPECIALS, TokenizerSpec, check_spec

TRIED_SAMPLES = 100


def check_data(data_params: DataParams, tokenizer_spec: TokenizerSpec, max_seq_len: int) -> None:
    """Raises a ValueError if the task, the text or the tokenizer cannot be had; writes nothing of ours."""
    name = data_params.dataset_name
    if name in tasks:
        if tokenizer_spec.source != "char":
            raise ValueError(
                f"tokenizer_source_name={tokenizer_spec.source!r} is for text: "
                f"dataset_name={name!r} is a synthetic task, which takes 'char'"
            )
        check_task(tasks[name], data_params, max_seq_len)
    elif name in corpus_names():
        if data_params.task_args:
            raise ValueError(
                f"task_args={data_params.task_args} is for synthetic tasks, but dataset_name={name!r} is text"
            )
        check_spec(tokenizer_spec)
        check_corpus(data_params)
    else:
        raise ValueError(
            f"dataset_name={name!r} is neither a task nor a text; {known(name, [*tasks, *corpus_names()])}"
        )


def known(name: str, names: list[str]) -> str:
    """What to say to someone who asked for `name`."""
    close = difflib.get_close_matches(name, names, n=1)
    return (
        f"did you mean {close[0]!r}? " if close else ""
    ) + f"there are: {', '.join(sorted(names)) or 'none'}"


def check_corpus(data_params: DataParams) -> None:
    """Opens the text and reads the first documents."""
    own = read_corpus(data_params.dataset_name, data_params.debug_crop)
    shares = {"val": data_params.val_pct, "test": data_params.test_pct}
    least = 1 + sum(split not in own and pct > 0 for split, pct in shares.items())
    n = len(list(islice(own.get("train", ()), least)))
    if n < least:
        raise too_few_documents(n, data_params)


def check_task(task: Task, data_params: DataParams, max_seq_len: int) -> None:
    """Looks at the arguments, and draws a few samples."""
    check_task_args(task, data_params)
    args = data_params.task_args
    try:
        rows = list(task.rows(**args)) if task.rows else None
        samples = [task.draw(random.Random(i), **args) for i in range(TRIED_SAMPLES)]
    except Exception as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(
            f"task_args={args} does not work with dataset_name={task.name!r}: {kind}{error}"
        ) from None
    tokens = {token for sample in samples if isinstance(sample, list) for token in sample}
    if wrong := sorted(token for token in tokens if token.split() != [token] or token in OWN_SPECIALS):
        raise ValueError(
            f"dataset_name={task.name!r} has the token {wrong[0]!r}: tokens are words without spaces, and none of {OWN_SPECIALS}"
        )
    check_fits(max(len(read_marks(sample).tokens) for sample in rows or samples), data_params, max_seq_len)
    sizes(data_params, len(rows) if rows else None)


def check_task_args(task: Task, data_params: DataParams) -> None:
    """Each argument must be one of the task's function, of the type of its default."""
    _, *parameters = inspect.signature(task.draw).parameters.values()
    defaults = {parameter.name: parameter.default for parameter in parameters}
    for key, value in data_params.task_args.items():
        problem = None
        if key not in defaults:
            problem = f"has no {key!r}; {known(key, list(defaults))}"
        elif not same_type(value, defaults[key]):
            problem = f"takes {type(defaults[key]).__name__} for {key!r}, not {value!r}"
        if problem:
            raise ValueError(f"task_args={data_params.task_args}: dataset_name={task.name!r} {problem}")


def same_type(value: object, default: object) -> bool:
    """A whole number will do for a float, True for neither."""
    return type(value) is type(default) or (type(default) is float and type(value) is int) or default is None
