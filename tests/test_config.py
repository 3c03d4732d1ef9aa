import dataclasses

import pytest

from stepgraph import config
from stepgraph.errors import ConfigurationError

VARIABLES = ("STEPGRAPH_DISABLE", "STEPGRAPH_MAX_VARIANTS", "STEPGRAPH_MAX_CAPTURE_FAILURES")
LIMITS = VARIABLES[1:]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_defaults_hold_in_an_empty_environment():
    assert config.current() == config.Config(disable=False, max_variants=8, max_capture_failures=8)


def test_each_variable_sets_its_own_field(monkeypatch):
    monkeypatch.setenv("STEPGRAPH_DISABLE", "1")
    monkeypatch.setenv("STEPGRAPH_MAX_VARIANTS", "3")
    monkeypatch.setenv("STEPGRAPH_MAX_CAPTURE_FAILURES", "5")

    found = config.current()

    assert found == config.Config(disable=True, max_variants=3, max_capture_failures=5)


def test_a_change_of_the_environment_is_seen(monkeypatch):
    monkeypatch.setenv("STEPGRAPH_MAX_VARIANTS", "3")
    before = config.current()
    monkeypatch.setenv("STEPGRAPH_MAX_VARIANTS", "4")

    assert (before.max_variants, config.current().max_variants) == (3, 4)


@pytest.mark.parametrize("text", ["1", "true", "YES", " on "])
def test_disable_is_on(monkeypatch, text):
    monkeypatch.setenv("STEPGRAPH_DISABLE", text)

    assert config.current().disable is True


@pytest.mark.parametrize("text", ["0", "False", "no", "off", "", " "])
def test_disable_is_off(monkeypatch, text):
    monkeypatch.setenv("STEPGRAPH_DISABLE", text)

    assert config.current().disable is False


def test_disable_that_is_neither_is_refused_and_says_what_to_do(monkeypatch):
    monkeypatch.setenv("STEPGRAPH_DISABLE", "maybe")

    with pytest.raises(ConfigurationError) as caught:
        config.current()

    assert str(caught.value).splitlines() == [
        "STEPGRAPH_DISABLE is neither on nor off",
        "  at     the environment variable STEPGRAPH_DISABLE",
        "  found  'maybe'",
        "  why    a guess could compile a step that should run eagerly, or the reverse",
        "  try    STEPGRAPH_DISABLE=1 or STEPGRAPH_DISABLE=0",
    ]


@pytest.mark.parametrize("name", LIMITS)
def test_an_empty_limit_is_the_default(monkeypatch, name):
    monkeypatch.setenv(name, "")

    assert config.current() == config.Config()


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("text", ["0", "-1", "2.5", "many", "1e3", "٣"])
def test_a_limit_that_cannot_be_counted_to_is_refused(monkeypatch, name, text):
    monkeypatch.setenv(name, text)

    with pytest.raises(ConfigurationError, match=name) as caught:
        config.current()

    assert repr(text) in str(caught.value)
    assert f"try    {name}=8" in str(caught.value)


@pytest.mark.parametrize("field", ["max_variants", "max_capture_failures"])
def test_a_limit_below_one_is_refused_in_code_too(field):
    with pytest.raises(ConfigurationError, match=field):
        config.Config(**{field: 0})


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.Config().disable = True
