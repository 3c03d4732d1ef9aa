"""Programs that raise in some of their calls, as eager does, and go on."""

from support.harness import Program, same_as_eager

BAD_CALLS = (4, 5, 7)


def failing(build, step_of, batch):
    """A program whose batches of `BAD_CALLS` make an operator raise."""

    def make():
        world = build()
        step = step_of(world)
        return Program(step, lambda index: batch(index, index in BAD_CALLS), watch=world)

    return make


def assert_recovers(make, *errors):
    """Assert that a program raises in its bad calls as eager does, and replays before and after.

    Returns:
        The compiled step.
    """
    raised = []

    def watched(decorate):
        program = make()
        step = decorate(program.step)

        def recording(*args):
            try:
                return step(*args)
            except Exception as error:
                raised.append(type(error).__name__)
                raise

        recording.explain = getattr(step, "explain", None)
        program.step = recording
        return program

    step = same_as_eager(watched, calls=10, decorated=True)
    assert len(raised) == 2 * len(BAD_CALLS), f"the bad calls raised only {raised}"
    assert set(raised) <= set(errors), raised
    return step
