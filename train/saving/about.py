"""Check about.json before anything computes with it: any user of a shared output folder may have written it."""

import math
from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import TypedDict

MAX_NUMBER = 1e100  # the square of a larger number may overflow a float
Number = int | float | None
Text = str | None


class Summary(TypedDict, total=False):
    """Types of the final values that tables and reports compute with. A run may have others."""

    __pydantic_config__ = ConfigDict(extra="allow", strict=True)  # type: ignore[misc]

    val_loss: Number
    final_loss: Number
    bits_per_byte: Number
    val_accuracy: Number
    val_exact_match: Number
    chance: Number
    reference_loss: Number
    n_params: Number
    n_active_params: Number
    state_size: Number
    steps: Number
    trained_samples: Number
    trained_tokens: Number
    tokens_per_second: Number
    wall_seconds: Number
    flops: Number
    achieved_flops: Number
    peak_flops: Number
    threads: Number
    stopped: str
    weights: str
    leak: Text
    sample: Text
    variant: Text


class About(TypedDict, total=False):
    """Types of the other values of about.json. Further keys are ignored."""

    __pydantic_config__ = ConfigDict(extra="ignore", strict=True)  # type: ignore[misc]

    identity: str
    code: dict[str, str]
    code_text: str
    content: str
    held_out: dict[str, str]
    costs_of_step: dict[str, Number]
    command: list[str]
    subject: str
    edited: bool
    wandb: Text
    failed: str
    resumable: bool
    summary: Summary


ABOUT = TypeAdapter(About)


def about_problem(about: Mapping[str, Any]) -> str | None:
    """Return an error message for the first invalid value of `about`, or None if all are valid."""
    try:
        ABOUT.validate_python(about)
    except ValidationError as error:
        first = error.errors()[0]
        return f"{place(first['loc'])}: {first['msg']}, not {first['input']!r:.80}"
    for name, value in about.get("summary", {}).items():
        if not (value is None or isinstance(value, str | int | float)):
            return f"{place(('summary', name))}: a number or a text is allowed, not a {type(value).__name__}"
        if isinstance(value, int | float) and MAX_NUMBER < abs(value) < math.inf:
            return f"{place(('summary', name))}: numbers up to {MAX_NUMBER:g} are allowed"
    return None


def place(path: tuple[int | str, ...]) -> str:
    """Return the path of keys to a value, such as "summary.val_loss"."""
    return ".".join(f"{key!s:.60}" for key in path)
