"""Run one training program twice, plain and compiled, and compare all a user can see.

A program is made by a function, so that both runs have their own models. After every call the two
worlds must be the same, bit for bit: whatever the step reaches, its arguments, its result, what it
printed, the error it raised, the state of every random generator, the modes it leaves behind.
"""

import contextlib
import dataclasses
import io
import random
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

import stepgraph
from support.state_walk import DifferenceError, Walk, assert_same

KEPT_RESULTS = 4  # results of earlier calls must not change under later ones


@dataclasses.dataclass
class Program:
    """A step, its calls, and the user's code around them."""

    step: Callable[..., Any]
    batch: Callable[[int], tuple[Any, ...] | dict[str, Any]] = lambda index: ()
    watch: Any = None  # what is compared beside all that the step itself reaches
    between: Callable[[int], None] = lambda index: None  # runs before the call of that index
    around: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext


@dataclasses.dataclass
class Outcome:
    """What one call left."""

    arguments: Any
    result: Any
    error: tuple[str, str] | None
    printed: str
    randomness: dict[str, Any]
    modes: dict[str, Any]


class Run:
    """One of the two runs."""

    def __init__(self, program: Program, step: Callable[..., Any]):
        self.program = program
        self.step = step
        self.outcomes: list[Outcome] = []

    def call(self, index: int, randomness: dict[str, Any]) -> Outcome:
        """Make the call of that index, from that state of the generators."""
        set_randomness(randomness)
        self.program.between(index)
        batch = self.program.batch(index)
        args, kwargs = ((), batch) if isinstance(batch, dict) else (batch, {})
        printed, result, error = io.StringIO(), None, None
        try:
            with self.program.around(), contextlib.redirect_stdout(printed):
                result = self.step(*args, **kwargs)
        except Exception as raised:
            error = type(raised).__qualname__, message_class(raised)
        outcome = Outcome(batch, result, error, printed.getvalue(), get_randomness(), modes())
        self.outcomes = [*self.outcomes[-KEPT_RESULTS:], outcome]
        return outcome


def same_as_eager(
    make: Callable[..., Program],
    calls: int = 8,
    *,
    decorated: bool = False,
    compiler: Callable[..., Any] = stepgraph.compile,
    **options: Any,
) -> Any:
    """Assert that a program runs the same compiled as it does eagerly.

    Args:
        make: Builds the program from a seed. With `decorated` it takes the decorator to use.
        calls: How often the step is called.
        decorated: The program decorates its own step, in a class body say.
        compiler: What takes the place of `stepgraph.compile`.
        **options: For the compiler; refused steps fall back silently unless told otherwise.

    Returns:
        The compiled step, for questions to its `explain()`.
    """
    options = {"on_fallback": "silent"} | options
    plain, other, start = build(make, decorated, lambda step: compiler(step, **options))
    compiled = other.step if decorated else compiler(other.step, **options)
    runs = Run(plain, plain.step), Run(other, compiled)
    flags = dynamo_flags()
    for index in range(calls):
        after = runs[0].call(index, start).randomness
        runs[1].call(index, start)
        compare_runs(index, *runs, decorated=decorated)
        assert_same(f"torch._dynamo.config after call {index}", flags, dynamo_flags())
        start = after
    return compiled


def build(make: Any, decorated: bool, decorate: Any) -> tuple[Program, Program, dict[str, Any]]:
    """The program twice from one seed, and the state of the generators at its first call."""
    programs = []
    for decorator in (lambda step: step, decorate):
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        programs.append(make(decorator) if decorated else make())
    return programs[0], programs[1], get_randomness()


def compare_runs(index: int, eager: Run, compiled: Run, *, decorated: bool) -> None:
    """Raise `DifferenceError` at the first thing that differs after a call."""
    try:
        ours, theirs = eager.outcomes[-1], compiled.outcomes[-1]
        assert_same("the error raised", ours.error, theirs.error)
        walk = Walk()
        if not decorated:
            walk.compare("step", eager.program.step, compiled.program.step)
        walk.compare("watch", eager.program.watch, compiled.program.watch)
        for field in dataclasses.fields(Outcome):
            left, right = getattr(ours, field.name), getattr(theirs, field.name)
            walk.compare(field.name, left, right)
        for back, (old, new) in enumerate(zip(eager.outcomes, compiled.outcomes, strict=True)):
            walk.compare(f"the kept result {back}", old.result, new.result)
    except DifferenceError as difference:
        raise AssertionError(f"after call {index}: {difference}") from None


def message_class(error: Exception) -> str:
    """The first line of a message, without the numbers in it."""
    return re.sub(r"\d+", "#", str(error).strip().split("\n")[0])


def get_randomness() -> dict[str, Any]:
    """The state of every global generator."""
    return {
        "torch": torch.get_rng_state(),
        "random": random.getstate(),
        "numpy": np.random.get_state(),
    }


def set_randomness(state: dict[str, Any]) -> None:
    """Put every global generator into a state."""
    torch.set_rng_state(state["torch"])
    random.setstate(state["random"])
    np.random.set_state(state["numpy"])


def modes() -> dict[str, Any]:
    """The modes of the process that a step could leave changed."""
    return {
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "autocast dtype": torch.get_autocast_dtype("cpu"),
        "autocast cache": torch.is_autocast_cache_enabled(),
        "default dtype": torch.get_default_dtype(),
        "anomaly mode": torch.is_anomaly_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def dynamo_flags() -> dict[str, Any]:
    """Every flag of the tracer that is shared with the user's own compiled functions."""
    return torch._dynamo.config.get_config_copy()


def assert_captured(step: Any) -> None:
    """Assert that the step replays, and that no call of it fell back."""
    explanation = step.explain()
    assert explanation.fallback_reason is None, f"fell back: {explanation.fallback_reason}"
    assert explanation.captured, "no variant has replayed"


def assert_captured_or_explained(step: Any) -> None:
    """Assert that the step replays, or that the user can read why it does not."""
    explanation = step.explain()
    assert explanation.captured or explanation.fallback_reason, "neither captured nor explained"


def assert_falls_back(step: Any, *words: str) -> None:
    """Assert that the step fell back, for a reason that has one of these words in it."""
    reason = step.explain().fallback_reason
    assert reason, "no fallback was reported"
    assert not words or any(word in reason.lower() for word in words), reason


def draw(*shape: int, seed: int = 0) -> Tensor:
    """A tensor of a batch: the same for every run, apart from the global generator."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1000 + seed))


def draw_labels(*shape: int, below: int, seed: int = 0) -> Tensor:
    """A tensor of integers from zero up to a bound."""
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(2000 + seed))


def regression(index: int) -> tuple[Tensor, Tensor]:
    """A batch of six samples, four features, two targets."""
    return draw(6, 4, seed=index), draw(6, 2, seed=-index - 1)


def mlp(*, inputs: int = 4, hidden: int = 5, outputs: int = 2) -> torch.nn.Sequential:
    """A perceptron with one hidden layer."""
    return torch.nn.Sequential(
        torch.nn.Linear(inputs, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, outputs)
    )


@contextlib.contextmanager
def warnings_of(category: type[Warning]):
    """Collect the warnings of a category raised inside."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found: list[warnings.WarningMessage] = []
        yield found
    found += [one for one in caught if issubclass(one.category, category)]
