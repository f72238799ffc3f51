"""Imports that take seconds: without garbage collections, and out of the way of later ones."""

import gc
import sys

from train.processes import import_all


def test_modules_are_imported_without_collections_and_frozen(tmp_path, monkeypatch):
    (tmp_path / "long_import.py").write_text("import gc\nwas_enabled, kept = gc.isenabled(), [[]]\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "long_import", raising=False)
    frozen = gc.get_freeze_count()
    try:
        import_all("long_import")
        assert not sys.modules["long_import"].was_enabled
        assert gc.isenabled()
        assert gc.get_freeze_count() > frozen
    finally:
        gc.unfreeze()


def test_nothing_is_frozen_where_nothing_is_imported():
    frozen = gc.get_freeze_count()
    import_all("gc", "sys")
    assert gc.get_freeze_count() == frozen
