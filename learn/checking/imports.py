"""Find the modules that a part's code names, its helpers included, to notice forbidden packages."""

import dis
import inspect
from collections.abc import Callable, Iterator
from types import CodeType, ModuleType
from typing import Any

from learn.checking.course import Case, Check, Wrong


def imports_none(*packages: str) -> Check:
    """Return a check that the part and its helpers in the student's file use none of these packages.

    It complements the spy, which records calls by Python code, but not calls by C functions, as in map(encode, texts).
    """

    def check(case: Case) -> None:
        for home in named_modules(case):
            if home.split(".")[0] in packages:
                raise Wrong(f"{case.name} uses {home}: write that yourself here.")

    return check


def named_modules(case: Case) -> Iterator[str]:
    """Yield the modules of all objects that the part's code names. Follow names within the student's file."""
    borrowed = {id(value) for value in vars(case.solution).values()}
    waiting, seen = [case.name], set[str]()
    while waiting:
        name = waiting.pop()
        value = vars(case.mine).get(name)
        if name in seen or value is None or id(value) in borrowed:
            continue
        seen.add(name)
        home = value.__name__ if isinstance(value, ModuleType) else home_of(value)
        if home != case.mine.__name__:
            yield home
            continue
        for code in codes(value):
            yield from imported_modules(code)
            waiting += code.co_names


def home_of(value: Any) -> str:
    return getattr(value, "__module__", None) or type(value).__module__


def codes(value: Any) -> Iterator[CodeType]:
    """Yield all code objects of a function or class, inner functions included."""
    if inspect.isclass(value):
        for inner in vars(value).values():
            yield from codes(inner)
        return
    function: Callable[..., Any] = inspect.unwrap(value) if callable(value) else value
    waiting = [code] if isinstance(code := getattr(function, "__code__", None), CodeType) else []
    while waiting:
        code = waiting.pop()
        yield code
        waiting += [constant for constant in code.co_consts if isinstance(constant, CodeType)]


def imported_modules(code: CodeType) -> Iterator[str]:
    """Yield the modules that this code imports, by importlib as well."""
    for instruction in dis.get_instructions(code):
        if instruction.opname == "IMPORT_NAME":
            yield instruction.argval
    if {"import_module", "__import__"} & set(code.co_names):
        yield from (constant for constant in code.co_consts if isinstance(constant, str))
