"""The arguments of a call by name, against `inspect.Signature.bind`."""

import inspect
import itertools

import pytest

from stepgraph.capture.call_scope import scope_reader


def plain(a, b=2): ...
def everything(a, b=2, *c, d=3, **e): ...
def positional_only(a, /, b, *, c): ...
def nothing(): ...
def anything(*args, **kwargs): ...
def named_only(a, *, b=1): ...
def annotated(self, batch: "int", batch_idx: int = 0) -> int: ...
def builtin_names(locals, dict, *, eval=None): ...


STEPS = (
    plain,
    everything,
    positional_only,
    nothing,
    anything,
    named_only,
    annotated,
    builtin_names,
)
POSITIONAL = [(), (1,), (1, 2), (1, 2, 3, 4)]
NAMED = [{}, {"b": 5}, {"c": 1}, {"d": 2, "z": 3}, {"a": 1, "b": 2, "c": 3}, {"batch_idx": 7}]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_arguments_are_bound_as_python_binds_them(step):
    read, signature = scope_reader(step), inspect.signature(step)

    for args, kwargs in itertools.product(POSITIONAL, NAMED):
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            assert read(args, kwargs) is None
            continue
        bound.apply_defaults()
        assert read(args, kwargs) == bound.arguments


def test_a_default_is_the_very_object_of_the_function():
    default = object()

    def step(batch=default): ...

    assert scope_reader(step)((), {})["batch"] is default


def test_closure_variables_are_read_at_every_call():
    lr = 1.0

    def step(batch):
        return batch * lr

    read = scope_reader(step)
    before = read((0,), {})
    lr = 2.0

    assert before == {"batch": 0, "lr": 1.0}
    assert read((0,), {}) == {"batch": 0, "lr": 2.0}


def test_an_unset_closure_variable_leaves_the_call_to_the_function():
    def step(batch):
        return batch * scale

    read = scope_reader(step)
    unset = read((0,), {})
    scale = 3

    assert unset is None
    assert read((0,), {}) == {"batch": 0, "scale": scale}
