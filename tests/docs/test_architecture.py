"""The rules of the source tree, and the picture of it: both are read from the files."""

import re

import pytest

from docs.site_tools import draw_architecture
from docs.site_tools.import_graph import PACKAGE, ROOT, circles, entries, folders, layers, listed

FOLDERS = {str(folder.relative_to(ROOT)): folder for folder in folders()}
PACKAGES = [name for name, folder in FOLDERS.items() if (folder / "__init__.py").exists()]


def test_no_files_import_each_other_in_a_circle():
    assert circles() == []


@pytest.mark.parametrize("name", [name for name in FOLDERS if name != PACKAGE])
def test_a_folder_has_at_most_12_entries(name):
    assert len(entries(FOLDERS[name])) <= 12, entries(FOLDERS[name])


def test_the_top_folder_holds_the_floors_of_the_import_contract_and_nothing_else():
    parts = {entry.removesuffix("/").removesuffix(".py") for entry in entries(FOLDERS[PACKAGE])}

    assert parts - {"__init__", "py.typed"} == {name for layer in layers() for name in layer}


@pytest.mark.parametrize("name", PACKAGES)
def test_the_docstring_of_a_package_lists_its_files_and_folders(name):
    inside = [entry for entry in entries(FOLDERS[name]) if entry not in ("__init__.py", "py.typed")]

    assert sorted(listed(FOLDERS[name])) == inside


def test_the_picture_shows_the_imports_of_today():
    assert draw_architecture.FILE.read_text() == draw_architecture.draw(), (
        "write it again: python -m docs.site_tools.draw_architecture"
    )


def test_every_stop_of_a_step_is_a_package_that_an_earlier_stop_imports():
    drawn = draw_architecture.draw()

    for number, name in enumerate(draw_architecture.WAY, 1):
        assert f">{number}</text>" in drawn
        assert f">{name}</text>" in drawn


def test_every_path_in_the_map_exists():
    page = (ROOT / "docs/explanation/architecture.md").read_text()
    paths = re.findall(r"`(\w+/[\w./]*|errors\.py)`", page)

    assert len(paths) > 40
    missing = [p for p in paths if not (ROOT / p).exists() and not (ROOT / PACKAGE / p).exists()]
    assert missing == []
