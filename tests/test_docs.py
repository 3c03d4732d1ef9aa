"""Every code block of the README and of the documentation runs, in order, warnings being errors."""

import re
import sys
import types
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    str(page.relative_to(ROOT))
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))
    if "```python" in page.read_text()
)
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
    text = (ROOT / page).read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    module = types.ModuleType("page")  # a module, as in a script: the tracer looks names up there
    monkeypatch.setitem(sys.modules, "page", module)

    torch.manual_seed(0)
    for number, block in enumerate(blocks):
        lines = text[: text.index(block)].count("\n")
        source = "\n" * lines + block
        exec(compile(source, f"{page}, block {number}", "exec"), vars(module))


def test_the_tutorial_follows_the_seed():
    text = (ROOT / "docs/tutorial/optimization.md").read_text()

    assert tuple(re.findall(r"^###? (.*)$", text, re.MULTILINE)) == SEED


def test_links_between_pages_lead_somewhere():
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
