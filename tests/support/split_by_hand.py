"""Plain steps, and the loops over a split batch, written by hand, that they are compared with."""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - as in the drawn programs
from torch.optim.swa_utils import AveragedModel

from support.harness import Program, draw, mlp, regression


class World:
    """A perceptron with everything that waits for the last part of a batch."""

    def __init__(self, parts, window=1):
        self.parts, self.window, self.index = parts, window, 0
        self.net = mlp()
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=0.01)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 2, 0.5)
        self.average = AveragedModel(self.net)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
        self.seen = []

    def loss(self, x, y):
        return F.mse_loss(self.net(x), y)

    def watched(self):
        """All that must be the same on both sides: everything but the count kept by hand."""
        return {k: v for k, v in vars(self).items() if k != "index"}


class Part:
    """A part of a batch that is split by hand."""

    def __init__(self, world, index, tensors, size):
        self.tensors, self.world = tensors, world
        self.parts, self.share = min(world.parts, size), len(tensors[0]) / size
        self.even = size % self.parts == 0
        place = world.index % world.window
        self.first = place == 0 and index == 0
        self.last = place == world.window - 1 and index == self.parts - 1

    def of(self, loss, window=None):
        """What the loss of this part is in the mean over a window."""
        window = window or self.world.window
        if self.even:
            return loss / (window * self.parts)
        return loss * self.share / window


def parts_of(world, *tensors):
    """The parts of a batch, one after the other."""
    size = len(tensors[0])
    several = zip(*(t.tensor_split(min(world.parts, size)) for t in tensors), strict=True)
    for index, part in enumerate(several):
        yield Part(world, index, part, size)
    world.index += 1


def plain_clearing_first(world, x, y):
    world.optimizer.zero_grad()
    loss = world.loss(x, y)
    loss.backward()
    nn.utils.clip_grad_norm_(world.net.parameters(), 0.1)
    world.optimizer.step()
    world.scheduler.step()
    world.average.update_parameters(world.net)
    world.seen.append(loss.detach())
    return loss


def by_hand_clearing_first(world, x, y):
    mean = 0
    for part in parts_of(world, x, y):
        if part.first:
            world.optimizer.zero_grad()
        loss = world.loss(*part.tensors)
        part.of(loss).backward()
        if part.last:
            nn.utils.clip_grad_norm_(world.net.parameters(), 0.1)
            world.optimizer.step()
            world.scheduler.step()
            world.average.update_parameters(world.net)
        world.seen.append(loss.detach())
        mean += part.of(loss.detach(), window=1)
    return mean


def plain_clearing_last(world, x, y):
    out = world.net(x)
    loss = F.mse_loss(out, y)
    world.scaler.scale(loss).backward()
    world.scaler.unscale_(world.optimizer)
    nn.utils.clip_grad_value_(world.net.parameters(), 0.01)
    world.scaler.step(world.optimizer)
    world.scaler.update()
    world.optimizer.zero_grad()
    return {"loss": loss, "out": [out, x], "nothing": None}


def by_hand_clearing_last(world, x, y):
    mean, outs = 0, []
    for part in parts_of(world, x, y):
        out = world.net(part.tensors[0])
        loss = F.mse_loss(out, part.tensors[1])
        part.of(world.scaler.scale(loss)).backward()
        outs.append(out.detach())
        mean += part.of(loss.detach(), window=1)
        if part.last:
            world.scaler.unscale_(world.optimizer)
            nn.utils.clip_grad_value_(world.net.parameters(), 0.01)
            world.scaler.step(world.optimizer)
            world.scaler.update()
            world.optimizer.zero_grad()
    return {"loss": mean, "out": [torch.cat(outs), torch.cat(x.split(1))], "nothing": None}


def plain_with_closure(world, x, y):
    def closure():
        world.optimizer.zero_grad(set_to_none=False)
        loss = world.loss(x, y)
        loss.backward()
        return loss

    return world.optimizer.step(closure)


def by_hand_with_closure(world, x, y):
    mean = 0
    for part in parts_of(world, x, y):
        if part.first:
            world.optimizer.zero_grad(set_to_none=False)
        loss = world.loss(*part.tensors)
        part.of(loss).backward()
        mean += part.of(loss.detach(), window=1)
        if part.last:
            world.optimizer.step()
    return mean


PAIRS = {
    "clearing first": (plain_clearing_first, by_hand_clearing_first),
    "clearing last": (plain_clearing_last, by_hand_clearing_last),
    "with a closure": (plain_with_closure, by_hand_with_closure),
}


def beside(pair, make_world, batch=regression):
    """A program whose eager side is written by hand, and whose other side is compiled."""
    plain, by_hand = pair

    def make(decorate):
        here = make_world()

        def step(x, y):
            return plain(here, x, y)

        compiled = decorate(step)
        if compiled is step:
            return Program(lambda x, y: by_hand(here, x, y), batch, watch=here.watched())
        return Program(compiled, batch, watch=here.watched())

    return make


def sized(*sizes):
    """A batch for each call, of these sizes in turn."""

    def batch(index):
        size = sizes[index % len(sizes)]
        return draw(size, 4, seed=index), draw(size, 2, seed=-index - 1)

    return batch
