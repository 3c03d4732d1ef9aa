"""Forward, backward, step and zero_grad in every order that makes sense, in one graph."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from support.harness import (
    Program,
    assert_captured,
    assert_captured_or_explained,
    mlp,
    regression,
    same_as_eager,
)

ORDERS = {
    "zero, forward, backward, step": "zfbs",
    "forward, zero, backward, step": "fzbs",
    "forward, backward, step, zero": "fbsz",
    "zero, forward, backward, step, zero": "zfbsz",
    "step first, with the gradients of the call before": "szfb",
    "zero to zeros": "Zfbs",
    "backward twice before the step": "zfbfbs",
    "two whole updates": "zfbszfbs",
    "two steps on one gradient": "zfbss",
    "gradients never cleared": "fbs",
    "a forward after the update": "zfbsf",
}


def ordered(order):
    def make():
        net = mlp()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)

        def step(x, y):
            loss = None
            for what in order:
                if what == "z":
                    optimizer.zero_grad()
                elif what == "Z":
                    optimizer.zero_grad(set_to_none=False)
                elif what == "f":
                    loss = functional.mse_loss(net(x), y)
                elif what == "b":
                    loss.backward()
                else:
                    optimizer.step()
            return loss.detach()

        return Program(step, regression)

    return make


@pytest.mark.parametrize("name", ORDERS)
def test_the_order_of_the_parts_is_kept(name):
    assert_captured(same_as_eager(ordered(ORDERS[name])))


def updating(backward, **options):
    """A program whose step gets its gradients from `backward(net, x, y)`."""

    def make():
        net = mlp()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)

        def step(x, y):
            optimizer.zero_grad(**options)
            value = backward(net, x, y)
            optimizer.step()
            return value

        return Program(step, regression)

    return make


def test_several_backward_calls_through_one_graph_add_up():
    def backward(net, x, y):
        hidden = net[0](x).tanh()
        first = functional.mse_loss(net[2](hidden), y)
        second = hidden.pow(2).mean()
        first.backward(retain_graph=True)
        second.backward()
        return first.detach(), second.detach()

    assert_captured(same_as_eager(updating(backward)))


def test_one_loss_is_backpropagated_twice():
    def backward(net, x, y):
        loss = functional.mse_loss(net(x), y)
        loss.backward(retain_graph=True)
        loss.backward()
        return loss.detach()

    assert_captured(same_as_eager(updating(backward)))


def test_a_gradient_is_given_to_backward():
    def backward(net, x, y):
        out = net(x)
        out.backward(gradient=y)

    assert_captured(same_as_eager(updating(backward)))


def test_backward_is_called_as_a_function_on_several_losses():
    def backward(net, x, y):
        out = net(x)
        torch.autograd.backward([out[:, 0].sum(), out[:, 1].mean()])

    assert_captured_or_explained(same_as_eager(updating(backward)))


def test_backward_is_restricted_to_some_parameters():
    def backward(net, x, y):
        loss = functional.mse_loss(net(x), y)
        loss.backward(inputs=[net[2].weight, net[0].bias])
        return loss.detach()

    assert_captured(same_as_eager(updating(backward)))


def test_gradients_come_from_autograd_grad():
    def backward(net, x, y):
        loss = functional.mse_loss(net(x), y)
        parameters = list(net.parameters())
        for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            p.grad = g
        return loss.detach()

    assert_captured(same_as_eager(updating(backward)))


def test_gradients_are_scaled_by_hand_between_backward_and_step():
    def backward(net, x, y):
        functional.mse_loss(net(x), y).backward()
        for p in net.parameters():
            p.grad.mul_(0.5)

    assert_captured(same_as_eager(updating(backward)))


def test_a_parameter_that_no_loss_reaches_keeps_no_gradient():
    def backward(net, x, y):
        net[0](x).pow(2).mean().backward()

    assert_captured(same_as_eager(updating(backward)))


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zeros_and_none_stay_different(set_to_none):
    def backward(net, x, y):
        net[0](x).pow(2).mean().backward()

    assert_captured(same_as_eager(updating(backward, set_to_none=set_to_none)))


def test_one_loss_is_shared_by_two_optimizers():
    def make():
        body, head = nn.Linear(4, 5), nn.Linear(5, 2)
        slow = torch.optim.SGD(body.parameters(), lr=0.01)
        fast = torch.optim.Adam(head.parameters(), lr=0.1)

        def step(x, y):
            slow.zero_grad()
            fast.zero_grad()
            loss = functional.mse_loss(head(body(x).relu()), y)
            loss.backward()
            fast.step()
            slow.step()
            return loss

        return Program(step, regression)

    assert_captured(same_as_eager(make))


def test_the_second_half_reads_weights_that_the_first_half_updated():
    def make():
        encoder, critic = mlp(outputs=3), nn.Linear(3, 1)
        first = torch.optim.SGD(critic.parameters(), lr=0.1)
        second = torch.optim.SGD(encoder.parameters(), lr=0.1)

        def step(x, y):
            code = encoder(x)
            first.zero_grad()
            loss = critic(code.detach()).pow(2).mean()
            loss.backward()
            first.step()
            second.zero_grad()
            adversarial = -critic(code).mean()
            adversarial.backward()
            second.step()
            return loss, adversarial

        return Program(step, regression)

    assert_captured(same_as_eager(make))


def test_a_backward_through_weights_that_were_updated_fails_as_in_eager():
    def make():
        net = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

        def step(x, y):
            optimizer.zero_grad()
            loss = functional.mse_loss(net(x), y)
            loss.backward(retain_graph=True)
            optimizer.step()
            loss.backward()

        return Program(step, regression)

    same_as_eager(make)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("clear_first", [True, False])
def test_gradients_accumulate_over_n_calls(n, clear_first):
    def make():
        net = mlp()
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)

        def step(batch, batch_idx):
            x, y = batch
            if clear_first and batch_idx % n == 0:
                optimizer.zero_grad()
            loss = functional.mse_loss(net(x), y) / n
            loss.backward()
            if (batch_idx + 1) % n == 0:
                optimizer.step()
                if not clear_first:
                    optimizer.zero_grad()
            return loss

        return Program(step, lambda index: (regression(index), index))

    assert_captured(same_as_eager(make, calls=4 * n + 4))


def clip_by_module(parameters):
    return torch.nn.utils.clip_grad_norm_(parameters, 0.1)


def clip_by_name(parameters):
    return clip_grad_norm_(parameters, max_norm=0.1, norm_type=float("inf"))


def clip_a_list(parameters):
    return nn.utils.clip_grad_norm_(list(parameters), 0.1, error_if_nonfinite=False, foreach=False)


def clip_values_by_module(parameters):
    return torch.nn.utils.clip_grad_value_(parameters, 0.01)


def clip_values_by_name(parameters):
    return clip_grad_value_(parameters, clip_value=0.01)


clip_grad_norm_ = torch.nn.utils.clip_grad_norm_
clip_grad_value_ = torch.nn.utils.clip_grad_value_


@pytest.mark.parametrize(
    "clip",
    [clip_by_module, clip_by_name, clip_a_list, clip_values_by_module, clip_values_by_name],
)
def test_gradients_are_clipped_and_the_norm_returned(clip):
    def backward(net, x, y):
        functional.mse_loss(net(x), y).backward()
        return clip(net.parameters())

    assert_captured(same_as_eager(updating(backward)))


def test_two_halves_are_clipped_apart():
    def backward(net, x, y):
        functional.mse_loss(net(x), y).backward()
        norms = [clip_grad_norm_(half.parameters(), 0.05) for half in (net[0], net[2])]
        return norms

    assert_captured(same_as_eager(updating(backward)))


def test_a_non_finite_norm_raises_as_in_eager():
    def backward(net, x, y):
        functional.mse_loss(net(x), y).backward()
        return clip_grad_norm_(net.parameters(), 1.0, error_if_nonfinite=True)

    def make():
        program = updating(backward)()

        def batch(index):
            x, y = regression(index)
            return (x * float("nan") if index == 5 else x), y

        program.batch = batch
        return program

    same_as_eager(make)


@pytest.mark.parametrize("through", ["input", "parameters"])
def test_a_gradient_penalty_is_differentiated_again(through):
    def backward(net, x, y):
        x = x.clone().requires_grad_()
        loss = functional.mse_loss(net(x), y)
        targets = [x] if through == "input" else list(net.parameters())
        gradients = torch.autograd.grad(loss, targets, create_graph=True)
        penalty = sum((g.norm() - 1) ** 2 for g in gradients)
        (loss + 0.1 * penalty).backward()
        return loss.detach(), penalty.detach()

    assert_captured(same_as_eager(updating(backward)))


def test_an_interpolated_penalty_draws_its_own_weights():
    def backward(net, x, y):
        mix = torch.rand(len(x), 1)
        point = (mix * x + (1 - mix) * x.flip(0)).requires_grad_(True)
        out = net(point)
        (gradient,) = torch.autograd.grad(
            out, point, grad_outputs=torch.ones_like(out), create_graph=True
        )
        ((gradient.norm(2, dim=1) - 1) ** 2).mean().backward()

    assert_captured(same_as_eager(updating(backward)))


def test_a_gradient_of_a_single_row_keeps_the_strides_of_eager():
    def make():
        net = mlp(outputs=1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

        def step(x, y):
            optimizer.zero_grad()
            loss = net(x).square().mean()
            gradients = torch.autograd.grad(loss, list(net.parameters()), create_graph=True)
            (loss + sum(g.square().sum() for g in gradients)).backward()
            optimizer.step()

        return Program(step, regression)

    assert_captured(same_as_eager(make))


def test_only_a_part_of_the_model_is_trained():
    def make():
        frozen, head = mlp(outputs=3).requires_grad_(False), nn.Linear(3, 2)
        optimizer = torch.optim.SGD(head.parameters(), lr=0.1)

        def step(x, y):
            optimizer.zero_grad()
            with torch.no_grad():
                features = frozen(x)
            loss = functional.mse_loss(head(features), y)
            loss.backward()
            optimizer.step()
            return loss

        return Program(step, regression)

    assert_captured(same_as_eager(make))


def test_a_step_without_a_model_object_trains_bare_tensors():
    def make():
        weight = torch.randn(4, 2, requires_grad=True)
        bias = torch.zeros(2, requires_grad=True)
        optimizer = torch.optim.SGD([weight, bias], lr=0.1)

        def step(x, y):
            loss = (x @ weight + bias - y).pow(2).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss

        return Program(step, regression)

    assert_captured(same_as_eager(make))


def test_an_update_by_hand_needs_no_optimizer():
    def make():
        net = mlp()

        def step(x, y):
            loss = functional.mse_loss(net(x), y)
            loss.backward()
            with torch.no_grad():
                for p in net.parameters():
                    p -= 0.1 * p.grad
                    p.grad = None
            return loss

        return Program(step, regression)

    assert_captured_or_explained(same_as_eager(make))


def test_one_parameter_belongs_to_two_optimizers():
    def make():
        net = mlp()
        both = torch.optim.SGD(net.parameters(), lr=0.1)
        last = torch.optim.Adam(net[2].parameters(), lr=0.1)

        def step(x, y):
            both.zero_grad()
            loss = functional.mse_loss(net(x), y)
            loss.backward()
            both.step()
            last.step()
            return loss

        return Program(step, regression)

    assert_captured(same_as_eager(make))
