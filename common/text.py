"""Short texts for error messages: the first line of an error, and a hint for an unknown name."""

from collections.abc import Iterable
from difflib import get_close_matches


def first_line(error: BaseException | str) -> str:
    """Return the first line of a text or of an error's message, or the name of the error's class if it is empty."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip() if lines else type(error).__name__


def nearest(word: str, names: Iterable[str], n: int = 1, cutoff: float = 0.6) -> list[str]:
    """Return up to `n` names, best first, whose similarity to `word` is at least `cutoff`, from 0 to 1."""
    return get_close_matches(word, list(names), n, cutoff)


OWN_NAME = "; --with FILE adds your own"  # end of a hint for names that a file of the user may register


def did_you_mean(word: str, names: Iterable[str], *, list_all: bool = False) -> str:
    """Return a hint for an unknown `word`: the nearest of `names`, or else all of them. `list_all` returns both."""
    names = list(names)
    hint = "".join(f"did you mean {name!r}?" for name in nearest(word, names))
    if hint and not list_all:
        return hint
    return f"{hint} there are: {', '.join(names) or 'none'}".strip()
