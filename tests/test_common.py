"""Registries and texts of errors, which every package uses."""

import sys

import pytest

from common.registry import Registry, UnknownName
from common.text import did_you_mean, first_line


def test_a_registered_function_is_found_by_its_name():
    things = Registry("thing", underscore="-")

    @things.register
    def first_one(): ...

    @things.register()
    def another_one(): ...

    @things.register(name="given name")
    def third_one(): ...

    assert list(things) == ["first-one", "another-one", "given name"]
    assert [*things.values()] == [first_one, another_one, third_one]


def test_an_unknown_name_is_answered_with_the_nearest():
    things = Registry("norm")
    things["layernorm"] = 1
    with pytest.raises(
        UnknownName, match=r"^there is no norm 'layer_norm'; did you mean 'layernorm'\? there are: "
    ):
        things["layer_norm"]
    assert things.get("layer_norm") is None


def test_a_registry_can_be_changed_for_the_time_of_a_test(monkeypatch):
    things = Registry("thing")
    with monkeypatch.context() as patch:
        patch.setitem(things, "new", 1)
        assert things["new"] == 1
    assert "new" not in things


def test_a_lazy_entry_is_imported_when_it_is_looked_up(tmp_path, monkeypatch):
    code = "from common.registry import Registry\nhome = Registry.of_a_test\nhome['late'] = 3\n"
    (tmp_path / "module_of_a_test.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    things = Registry("thing")
    monkeypatch.setattr(Registry, "of_a_test", things, raising=False)
    things.add_lazy("late", "module_of_a_test")
    assert ("late" in things, len(things), things.loaded()) == (True, 1, [])
    assert "module_of_a_test" not in sys.modules
    assert (things["late"], things.loaded()) == (3, ["late"])
    del sys.modules["module_of_a_test"]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("\n a\nb"), "a"),
        (ValueError(), "ValueError"),
        (OSError(" \n"), "OSError"),
        ("one\r\ntwo", "one"),
    ],
)
def test_the_first_line_of_an_error_is_never_empty(error, line):
    assert first_line(error) == line


def test_hints_name_the_nearest_or_all():
    assert did_you_mean("cpoy", ["copy", "sort"]) == "did you mean 'copy'?"
    assert did_you_mean("zzz", ["copy", "sort"]) == "there are: copy, sort"
    assert (
        did_you_mean("cpoy", ["copy", "sort"], list_all=True) == "did you mean 'copy'? there are: copy, sort"
    )
    assert did_you_mean("zzz", []) == "there are: none"
