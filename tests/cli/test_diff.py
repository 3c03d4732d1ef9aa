import json

import pytest

from stepgraph.cli import main

PLAIN = {"captures": 1, "variants": [], "fallbacks": [], "first_call_ms": 3.0}


@pytest.fixture
def files(tmp_path):
    def write(*contents):
        paths = [tmp_path / f"{place}.json" for place in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        return [str(path) for path in paths]

    return write


def test_two_files_that_say_the_same_are_exit_code_0(files, capsys):
    assert main(["diff", *files(PLAIN, PLAIN | {"first_call_ms": 6.0})]) == 0
    assert "2.00 x" in capsys.readouterr().out


def test_a_difference_is_exit_code_1(files, capsys):
    assert main(["diff", *files(PLAIN, PLAIN | {"captures": 2})]) == 1
    assert "captures: 1 -> 2" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["no json", {"something": "else"}, []])
def test_a_file_that_holds_something_else_is_a_sentence(files, capsys, content):
    assert main(["diff", *files(PLAIN, content)]) == 2
    assert capsys.readouterr().err.startswith("stepgraph diff: ")


def test_a_file_that_is_not_there_is_a_sentence(files, capsys):
    assert main(["diff", *files(PLAIN), "nowhere.json"]) == 2
    assert "nowhere.json cannot be read" in capsys.readouterr().err
