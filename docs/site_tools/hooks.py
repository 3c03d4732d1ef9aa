"""What `make docs` does to pages: a line that only links to a Python file shows the file there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_LINK_TO_FILE = re.compile(r"^\[(?P<name>[^\]]+)\]\((?P<target>[\w./]+\.py)\)$", re.MULTILINE)


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Return the page with the files that it links to on lines of their own."""
    folder = Path(page.file.abs_src_path).parent
    return _LINK_TO_FILE.sub(lambda link: _listing(folder / link["target"], link[0]), markdown)


def _listing(file: Path, link: str) -> str:
    return f'{link}\n\n```python title="{file.name}"\n{file.read_text()}```\n'
