"""What the tests of fallbacks share: a perceptron, its optimizer, and programs of one step."""

import random

import numpy as np
import torch
import torch.nn.utils.prune
from torch.nn import functional

from support.harness import (
    Program,
    mlp,
    regression,
)


class World:
    """A perceptron, its optimizer, and what the steps of this file use beside them."""

    def __init__(self):
        self.net = mlp()
        self.opt = torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9)
        self.losses, self.seen = [], []
        self.generator = torch.Generator().manual_seed(3)
        self.numpy = np.random.default_rng(3)
        self.random = random.Random(3)

    def loss(self, x, y):
        return functional.mse_loss(self.net(x), y)

    def update(self, loss):
        self.opt.zero_grad()
        loss.backward()
        self.opt.step()
        return loss


def program(body, batch=regression, between=lambda world, index: None, **more):
    """A program whose step is `body(world, x, y)`."""

    def make():
        world = World()

        def step(x, y):
            return body(world, x, y)

        return Program(
            step, batch, watch=world, between=lambda index: between(world, index), **more
        )

    return make


def plain(world, x, y):
    return world.update(world.loss(x, y))
