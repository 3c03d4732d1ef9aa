"""Every scheduler of torch, inside and outside the step, and learning rates edited by hand."""

import pytest
import torch
from torch.nn import functional
from torch.optim import lr_scheduler as schedules

from support.harness import (
    Program,
    assert_captured,
    assert_captured_or_explained,
    mlp,
    regression,
    same_as_eager,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch.optim.lr_scheduler")


def sequential(optimizer):
    parts = [schedules.ConstantLR(optimizer, 0.5, 3), schedules.ExponentialLR(optimizer, 0.9)]
    return schedules.SequentialLR(optimizer, parts, milestones=[3])


def chained(optimizer):
    parts = [schedules.ConstantLR(optimizer, 0.5, 3), schedules.ExponentialLR(optimizer, 0.9)]
    return schedules.ChainedScheduler(parts, optimizer=optimizer)


KINDS = {
    "LambdaLR": lambda o: schedules.LambdaLR(o, lambda n: 0.9**n),
    "MultiplicativeLR": lambda o: schedules.MultiplicativeLR(o, lambda n: 0.95),
    "StepLR": lambda o: schedules.StepLR(o, 3, 0.5),
    "MultiStepLR": lambda o: schedules.MultiStepLR(o, [2, 5], 0.1),
    "ConstantLR": lambda o: schedules.ConstantLR(o, 0.3, 4),
    "LinearLR": lambda o: schedules.LinearLR(o, 0.1, total_iters=5),
    "ExponentialLR": lambda o: schedules.ExponentialLR(o, 0.8),
    "SequentialLR": sequential,
    "CosineAnnealingLR": lambda o: schedules.CosineAnnealingLR(o, 6),
    "ChainedScheduler": chained,
    "ReduceLROnPlateau": lambda o: schedules.ReduceLROnPlateau(o, factor=0.5, patience=1),
    "CyclicLR": lambda o: schedules.CyclicLR(o, 0.01, 0.1, 3, cycle_momentum=True),
    "CosineAnnealingWarmRestarts": lambda o: schedules.CosineAnnealingWarmRestarts(o, 3, 2),
    "OneCycleLR": lambda o: schedules.OneCycleLR(o, 0.5, total_steps=40),
    "PolynomialLR": lambda o: schedules.PolynomialLR(o, 8, 2.0),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, 0.01, anneal_epochs=4),
}


def test_every_scheduler_of_torch_is_in_the_list():
    assert set(schedules.__all__) - {"LRScheduler"} <= KINDS.keys()


class Scheduled:
    """A perceptron trained with momentum under a schedule."""

    def __init__(self, schedule=KINDS["StepLR"]):
        self.net = mlp()
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9)
        self.scheduler = schedule(self.optimizer)
        self.logged = []

    def update(self, x, y):
        self.optimizer.zero_grad()
        loss = functional.mse_loss(self.net(x), y)
        loss.backward()
        self.optimizer.step()
        return loss


def needs_metric(scheduler):
    return isinstance(scheduler, schedules.ReduceLROnPlateau)


class SteppedInside(Scheduled):
    def step(self, x, y):
        loss = self.update(x, y)
        if needs_metric(self.scheduler):
            self.scheduler.step(loss.detach())
        else:
            self.scheduler.step()
        return loss


@pytest.mark.parametrize("name", KINDS)
def test_a_schedule_is_stepped_inside_the_step(name):
    def make():
        return Program(SteppedInside(KINDS[name]).step, regression)

    step = same_as_eager(make, calls=10)
    assert_captured(step)
    assert step.explain().captures <= 2


@pytest.mark.parametrize("name", KINDS)
def test_a_schedule_is_stepped_outside_the_step(name):
    def make():
        world = Scheduled(KINDS[name])

        def between(index):
            if index:
                metric = [1.0] if needs_metric(world.scheduler) else []
                world.scheduler.step(*metric)

        return Program(world.update, regression, between=between)

    step = same_as_eager(make, calls=10)
    assert_captured(step)
    assert step.explain().captures <= 2


@pytest.mark.parametrize("read", ["loss", "loss.detach()", "loss.item()", "float(loss)"])
def test_a_plateau_schedule_reads_the_loss(read):
    reads = {
        "loss": lambda loss: loss,
        "loss.detach()": lambda loss: loss.detach(),
        "loss.item()": lambda loss: loss.item(),
        "float(loss)": float,
    }[read]

    def make():
        world = Scheduled(KINDS["ReduceLROnPlateau"])

        def step(x, y):
            loss = world.update(x, y)
            world.scheduler.step(reads(loss))
            return loss

        return Program(step, regression)

    assert_captured_or_explained(same_as_eager(make, calls=10))


def test_two_schedules_of_one_optimizer_are_stepped_in_turn():
    def make():
        world = Scheduled()
        second = schedules.ExponentialLR(world.optimizer, 0.9)

        def step(x, y, index):
            loss = world.update(x, y)
            if index % 2:
                second.step()
            world.scheduler.step()
            return loss

        return Program(step, lambda index: (*regression(index), index))

    assert_captured(same_as_eager(make, calls=12))


@pytest.mark.filterwarnings("ignore:Detected call of:UserWarning")  # torch advises against it
def test_a_schedule_is_stepped_before_the_update():
    def make():
        world = Scheduled()

        def step(x, y):
            world.scheduler.step()
            return world.update(x, y)

        return Program(step, regression)

    assert_captured(same_as_eager(make))


@pytest.mark.filterwarnings("ignore:The epoch parameter:UserWarning")
def test_a_schedule_is_given_its_epoch():
    def make():
        world = Scheduled()

        def step(x, y, epoch):
            loss = world.update(x, y)
            world.scheduler.step(epoch)
            return loss

        return Program(step, lambda index: (*regression(index), index // 2))

    assert_captured_or_explained(same_as_eager(make))


class HandWritten(schedules.LRScheduler):
    """A schedule of the user's own."""

    def get_lr(self):
        return [base / (1 + self.last_epoch) for base in self.base_lrs]


def test_a_schedule_of_the_users_own_is_captured():
    def make():
        return Program(SteppedInside(HandWritten).step, regression)

    assert_captured(same_as_eager(make))


def warm_up_before(world, x, y, index):
    for group in world.optimizer.param_groups:
        group["lr"] = 0.01 * (index + 1)
    return world.update(x, y)


def warm_up_after(world, x, y, index):
    loss = world.update(x, y)
    world.optimizer.param_groups[0]["lr"] = 0.01 * (index + 1)
    return loss


def warm_up_on_both_sides(world, x, y, index):
    world.optimizer.param_groups[0]["lr"] = 0.01 * (index + 1)
    loss = world.update(x, y)
    world.optimizer.param_groups[0]["lr"] *= 0.5
    return loss


def decay_by_reading(world, x, y, index):
    world.optimizer.param_groups[0]["lr"] *= 0.9
    return world.update(x, y)


def edit_between_two_updates(world, x, y, index):
    world.update(x, y)
    world.optimizer.param_groups[0]["lr"] = 0.001
    loss = world.update(x, y)
    world.optimizer.param_groups[0]["lr"] = 0.1
    return loss


def edit_with_update(world, x, y, index):
    world.optimizer.param_groups[0].update(lr=0.01 * (index + 1), momentum=0.5)
    return world.update(x, y)


def log_before_and_after(world, x, y, index):
    loss = world.update(x, y)
    world.logged.append(world.scheduler.get_last_lr()[0])
    world.scheduler.step()
    world.logged.append(world.scheduler.get_last_lr()[0])
    return loss


def log_from_the_group(world, x, y, index):
    loss = world.update(x, y)
    world.logged.append(world.optimizer.param_groups[0]["lr"])
    world.scheduler.step()
    world.logged.append(world.optimizer.param_groups[0]["lr"])
    return loss


def return_the_lr(world, x, y, index):
    loss = world.update(x, y)
    before = world.optimizer.param_groups[0]["lr"]
    world.scheduler.step()
    return {"loss": loss, "lr": before, "next": list(world.scheduler.get_last_lr())}


def use_the_lr_in_the_loss(world, x, y, index):
    world.optimizer.zero_grad()
    loss = functional.mse_loss(world.net(x), y) * world.optimizer.param_groups[0]["lr"]
    loss.backward()
    world.optimizer.step()
    world.scheduler.step()
    return loss


def branch_on_the_lr(world, x, y, index):
    loss = world.update(x, y)
    if world.scheduler.get_last_lr()[0] > 0.03:
        world.scheduler.step()
    return loss


def read_the_count_of_the_schedule(world, x, y, index):
    loss = world.update(x, y)
    world.scheduler.step()
    world.logged.append(world.scheduler.last_epoch)
    return loss


@pytest.mark.parametrize(
    "body",
    [
        warm_up_before,
        warm_up_after,
        warm_up_on_both_sides,
        decay_by_reading,
        edit_between_two_updates,
        edit_with_update,
        log_before_and_after,
        log_from_the_group,
        return_the_lr,
        use_the_lr_in_the_loss,
        branch_on_the_lr,
        read_the_count_of_the_schedule,
    ],
)
def test_a_learning_rate_read_or_written_in_the_step_is_that_of_program_order(body):
    def make():
        world = Scheduled(lambda o: schedules.ExponentialLR(o, 0.8))

        def step(x, y, index):
            return body(world, x, y, index)

        return Program(step, lambda index: (*regression(index), index))

    assert_captured_or_explained(same_as_eager(make, calls=10))


def test_a_schedule_is_loaded_and_edited_between_calls():
    def make():
        world = SteppedInside()
        saved = {}

        def between(index):
            if index == 3:
                saved.update(world.scheduler.state_dict())
            if index == 6:
                world.scheduler.load_state_dict(dict(saved))
            if index == 8:
                world.scheduler.base_lrs = [0.5]
                world.scheduler.gamma = 0.25
                world.optimizer.param_groups[0]["lr"] = 0.3

        return Program(world.step, regression, between=between)

    step = same_as_eager(make, calls=12)
    assert_captured(step)


def test_a_schedule_is_replaced_between_calls():
    def make():
        world = SteppedInside()

        def between(index):
            if index == 4:
                world.scheduler = schedules.ExponentialLR(world.optimizer, 0.5)

        return Program(world.step, regression, between=between)

    assert_captured_or_explained(same_as_eager(make, calls=10))


@pytest.mark.filterwarnings("error")
def test_stepping_a_schedule_before_any_update_warns_as_in_eager():
    def make():
        world = Scheduled()

        def step(x, y):
            world.scheduler.step()

        return Program(step, regression)

    same_as_eager(make, calls=4)
