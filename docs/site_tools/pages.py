"""Run the code of a page, and keep what the page shows of its output up to date.

`python -m docs.site_tools.pages PAGE ...` writes what the code prints into the pages; the tests run
the code and compare.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path

import torch

FENCE = re.compile(r"^```(\w*)(?: title=\"([^\"]*)\")?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
"""A fenced block: its language, its title, its text."""

PRINTS = "prints"
"""The title of a block that holds what the block of Python before it prints."""

_IN_A_PAGE = re.compile(r"[\w./-]+\.md:(?=\d)")


def outputs(name: str, text: str) -> Iterator[tuple[re.Match[str], str]]:
    """Run the blocks of Python without a title, in order, as one module, in the present folder.

    Args:
        name: What a traceback calls the page; line numbers are those of the page.
        text: Of the page.

    Yields:
        Every block titled "prints", and what the latest code has printed.
    """
    module = types.ModuleType("page")  # a module, as in a script: the tracer looks names up there
    sys.modules[module.__name__] = module
    torch.manual_seed(0)
    printed = ""
    for fence in FENCE.finditer(text):
        language, title, block = fence.groups()
        if title == PRINTS:
            yield fence, printed
        elif language == "python" and title is None:
            source = "\n" * text[: fence.start(3)].count("\n") + block
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(source, name, "exec"), vars(module))
            printed = out.getvalue()


def filled(name: str, text: str) -> str:
    """Return the page with what its code prints now; lines of the page are called `train.py`."""
    parts, end = [], 0
    for fence, printed in outputs(name, text):
        lines = _IN_A_PAGE.sub("train.py:", printed).strip().splitlines()
        parts += [text[end : fence.start(3)], *(f"{line.rstrip()}\n" for line in lines)]
        end = fence.end(3)
    return "".join([*parts, text[end:]])


if __name__ == "__main__":
    torch.set_num_threads(1)
    for page in [Path(argument).resolve() for argument in sys.argv[1:]]:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            page.write_text(filled(page.name, page.read_text()))
            os.chdir(page.parent)
