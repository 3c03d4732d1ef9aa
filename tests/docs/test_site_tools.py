"""What builds and checks the documentation site, and runs the code of its pages."""

from types import SimpleNamespace

import pytest

from docs.site_tools.check import problems
from docs.site_tools.hooks import on_page_markdown
from docs.site_tools.pages import filled


@pytest.fixture
def site(tmp_path):
    """Return a function that writes a page of a site and returns what is wrong with the site."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/other.html").write_text('<h1 id="here">x</h1><a href="../index.html">up</a>')

    def written(body):
        (tmp_path / "index.html").write_text(body)
        return problems(tmp_path)

    return written


@pytest.mark.parametrize(
    "body",
    [
        '<a href="sub/other.html">other</a>',
        '<a href="sub/other.html#here">a place in it</a>',
        '<h2 id="below">x</h2><a href="#below">a place here</a>',
        '<a href="https://example.org/">another site</a>',
        '<script src="sub/other.html"></script>',
    ],
)
def test_a_site_without_dead_links_has_no_problems(site, body):
    assert site(body) == []


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ('<a href="gone.html">gone</a>', "index.html links to gone.html"),
        ('<a href="sub/other.html#there">x</a>', "index.html links to sub/other.html#there"),
        ('<a href="#nowhere">x</a>', "index.html links to #nowhere"),
        ('<script src="https://example.org/x.js">', "index.html loads https://example.org/x.js"),
        ('<img src="//example.org/x.png">', "index.html loads //example.org/x.png"),
        (
            '<link rel="stylesheet" href="https://example.org/x.css">',
            "index.html loads https://example.org/x.css",
        ),
    ],
)
def test_dead_links_and_what_needs_a_network_are_named(site, body, problem):
    assert site(body) == [problem]


def test_a_line_that_only_links_to_a_python_file_shows_it(tmp_path):
    (tmp_path / "step.py").write_text("x = 1\n")
    page = SimpleNamespace(file=SimpleNamespace(abs_src_path=str(tmp_path / "page.md")))

    def shown(text):
        return on_page_markdown(text, page=page, config=None, files=None)

    assert shown("[step.py](step.py)\n") == (
        '[step.py](step.py)\n\n```python title="step.py"\nx = 1\n```\n\n'
    )
    assert shown("See [step.py](step.py).\n") == "See [step.py](step.py).\n"


def test_a_page_is_filled_with_what_its_code_prints():
    def page(shown):
        return f'```python\nx = 6\nprint(x * 7)\n```\n\n```text title="prints"\n{shown}```\nend\n'

    assert filled("page.md", page("")) == page("42\n")
    assert filled("page.md", page("43\nand more\n")) == page("42\n")


def test_lines_of_a_page_are_called_lines_of_a_script():
    code = "```python\nprint('at docs/a/page.md:12')\n```\n"

    text = filled("page.md", code + '```text title="prints"\n```\n')

    assert text == code + '```text title="prints"\nat train.py:12\n```\n'
