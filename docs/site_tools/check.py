"""Check a built site: every link inside leads to a page and a place, and nothing needs a network.

`python docs/site_tools/check.py site` prints what is wrong and exits with 1 if anything is.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

_NO_PAGE = ("404.html",)  # it is shown for any address, so its links are absolute


@dataclass
class Page(HTMLParser):
    """What a page refers to.

    Attributes:
        anchors: The places in it that a link may name.
        links: Where a click leads.
        loaded: What a browser loads without being asked: scripts, styles, images.
    """

    anchors: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the anchors and links of one tag."""
        given = {name: value for name, value in attrs if value}
        self.anchors.update(given[name] for name in ("id", "name") if name in given)
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload"):
            self.loaded.append(given["href"])
        elif "src" in given:
            self.loaded.append(given["src"])


def problems(site: Path) -> list[str]:
    """Return a sentence for every dead link and for everything that would need a network."""
    pages = {file: _read(file) for file in sorted(site.rglob("*.html"))}
    found = []
    for file, page in pages.items():
        if file.name in _NO_PAGE:
            continue
        name = file.relative_to(site)
        found += [f"{name} loads {url}" for url in page.loaded if urlsplit(url).netloc]
        found += [f"{name} links to {url}" for url in page.links if not _leads(url, file, pages)]
    return found


def _read(file: Path) -> Page:
    page = Page()
    page.feed(file.read_text(encoding="utf-8"))
    return page


def _leads(url: str, file: Path, pages: dict[Path, Page]) -> bool:
    """Return whether a link leads somewhere; those to other sites are taken on trust."""
    parts = urlsplit(url)
    if parts.scheme or parts.netloc:
        return True
    target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
    if not parts.fragment:
        return target.exists()
    anchors = pages[target].anchors if target in pages else set()
    return unquote(parts.fragment) in anchors


if __name__ == "__main__":
    wrong = problems(Path(sys.argv[1]).resolve())
    sys.stdout.write("".join(f"{line}\n" for line in wrong))
    sys.exit(1 if wrong else 0)
