"""Every code block of the README and of the documentation runs, in order, warnings being errors.

A block titled "prints" holds what the block before it prints; one with the title of a file holds
that file.
"""

import argparse
import difflib
import inspect
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch

import stepgraph
import stepgraph_kernels
from docs.site_tools.pages import FENCE, outputs
from stepgraph.cli.arguments import split_at_dashes
from stepgraph.cli.main import _parser
from stepgraph.passes import DEFAULT, Pass

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
ALL = (ROOT / "README.md", *sorted(DOCS.rglob("*.md")))
PAGES = sorted(str(page.relative_to(ROOT)) for page in ALL if "```python\n" in page.read_text())
SEED = (
    "Manual optimization",
    "Gradient accumulation",
    "Several optimizers, as in a GAN [manual]",
    "Learning rate schedules",
    "Learning rate schedules [manual]",
    "Toggling",
    "Closures, for LBFGS and the like",
    "Your own optimizer [manual]",
    "Automatic optimization",
    "Several optimizers, as in a GAN",
    "Step optimizers at arbitrary intervals",
    "Your own optimizer",
)


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "page", None)  # restored afterwards

    for fence, printed in outputs(page, (ROOT / page).read_text()):
        if torch.__version__.startswith("2.13."):  # others have other operators in places
            assert_same_text(printed, fence[3])


def assert_same_text(printed, shown):
    """Compare without what changes from run to run: times, places, the width of columns."""
    changing = {r"\d[\d.]* ms": "N ms", r"[\w./]+\.(py|md):\d+": "FILE:LINE", r"[ \t]+": " "}
    texts = [shown, printed]
    for pattern, replacement in changing.items():
        texts = [re.sub(pattern, replacement, text) for text in texts]
    lines = [[line.strip() for line in text.strip().splitlines()] for text in texts]
    assert lines[0] == lines[1], "\n".join(difflib.unified_diff(*lines, "shown", "printed"))


def test_files_that_pages_show_are_shown_as_they_are():
    shown = [
        (page.name, title, block)
        for page in ALL
        for _, title, block in FENCE.findall(page.read_text())
        if title.startswith("docs/")
    ]

    assert shown
    for page, title, block in shown:
        assert (ROOT / title).read_text() == block, f"{page} shows another {title}"


def test_from_scratch_is_its_page_without_the_prose():
    page = (DOCS / "explanation/from_scratch.md").read_text()
    blocks = [block for language, title, block in FENCE.findall(page) if language == "python"]

    assert (DOCS / "explanation/from_scratch.py").read_text() == "\n\n".join(blocks)


def test_from_scratch_runs_as_a_script_and_does_not_import_stepgraph(capsys):
    names = runpy.run_path(str(DOCS / "explanation/from_scratch.py"))

    assert "compiled is eager, bit for bit: True" in capsys.readouterr().out
    modules = {getattr(value, "__module__", "") or "" for value in names.values()}
    assert not any(name.startswith("stepgraph") for name in modules)


def test_the_tutorial_follows_the_seed():
    text = (ROOT / "docs/tutorial/optimization.md").read_text()

    assert tuple(re.findall(r"^###? (.*)$", text, re.MULTILINE)) == SEED


def test_links_between_pages_lead_somewhere():
    for page in ALL:
        for link in re.findall(r"\]\(([^):]+)\)", page.read_text()):
            target, _, anchor = link.partition("#")
            file = page.parent / target if target else page
            assert file.exists(), f"{page.name} links to {link}"
            assert not anchor or anchor in anchors(file), f"{page.name} links to {link}"


def anchors(page):
    """Return the places in a page that a link may name, as the site and code hosts make them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(FENCE, "", page.read_text()), re.MULTILINE)
    kept = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings]
    return {re.sub(r"[\s]+", "-", heading) for heading in kept}


def test_every_page_is_in_the_menu_of_the_site():
    listed = set(re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text()))

    assert listed == {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}


def test_every_pass_has_a_page():
    exported = {v for v in vars(stepgraph.passes).values() if inspect.isclass(v)}
    passes = {v for v in exported if issubclass(v, Pass) and v is not Pass} | set(
        map(type, DEFAULT)
    )

    for one in passes:
        assert_has_page(
            "passes", one, ("## Before and after", "## Legality", "## Cost", "does not")
        )


def test_every_error_has_a_page():
    for name in stepgraph.errors.__all__:
        assert_has_page("errors", getattr(stepgraph.errors, name), ("## Why", "## What to do"))


def assert_has_page(folder, described, sections):
    """Look for the page of a class, by its name, and for what a page of its kind must have."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", described.__name__).lower()
    page = DOCS / "reference" / folder / f"{name}.md"
    assert page.exists(), f"{described.__name__} has no page {page.relative_to(ROOT)}"
    text = page.read_text()
    assert f"# {described.__name__}\n" in text
    assert f"\n::: stepgraph.{folder}.{described.__name__}\n" in text
    assert 'title="prints"' in text, f"{page.name} shows nothing that was printed"
    for section in sections:
        assert section in text, f"{page.name} has no section {section!r}"


@pytest.mark.parametrize("package", [stepgraph, stepgraph_kernels], ids=lambda p: p.__name__)
def test_every_public_name_is_in_the_reference(package):
    text = "\n".join(page.read_text() for page in (DOCS / "reference").rglob("*.md"))
    described = set(re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE))

    for name in package.__all__:
        value = getattr(package, name)
        if not (name.startswith("__") or inspect.ismodule(value)):
            home = f"{getattr(value, '__module__', '')}.{name}"  # where a module has the same name
            assert f"{package.__name__}.{name}" in described or home in described


def test_commands_on_pages_exist(monkeypatch):
    monkeypatch.chdir(ROOT)
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = [words for page in ALL for words in commands_of(page.read_text())]

    assert len(commands) > 20
    for program, *arguments in commands:
        if program == "make":
            names = {word for word in arguments if "=" not in word}
            assert names <= targets, f"make {names} on a page"
        elif program == "python" and arguments[0].endswith(".py"):
            assert Path(arguments[0]).exists(), f"python {arguments[0]} on a page"
        elif program == "stepgraph":
            own, _ = split_at_dashes(arguments)
            parsed = _parser().parse_args(own)
            if getattr(parsed, "target", None) and parsed.target.script.parts[0] == "docs":
                parsed.target.tree()  # raises where there is no such function


def commands_of(text):
    """Return the command lines of a page's blocks without a language, as words."""
    for language, _, block in FENCE.findall(text):
        for line in block.splitlines() if language == "" else ():
            words = [word for word in shlex.split(line, comments=True) if "=" not in word[:12]]
            is_form = "[" in line or any(word.isupper() for word in words)
            if words and not is_form:
                yield [words[0].removeprefix(".venv/bin/"), *words[1:]]


def test_every_command_and_option_is_on_the_page_of_the_command_line():
    page = (DOCS / "reference/cli.md").read_text()
    (commands,) = (a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))

    for name, parser in commands.choices.items():
        heading = f"## stepgraph {name}\n"
        assert heading in page
        section = page.partition(heading)[2].partition("\n## ")[0]
        for action in parser._actions:
            for option in set(action.option_strings) - {"-h", "--help"}:
                assert f"`{option}" in section, f"{name} {option} is not explained"
