"""JAX and optax as a peer: the whole step under one `jit`, weights donated."""

from __future__ import annotations

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax
from torch import Tensor, nn

from benchmarks.cases import Case, Problem, classify, predict_tokens
from benchmarks.peers import Runner, Skipped

_ADAMW = {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 1e-2}


def runner(problem: Problem, case: Case) -> Runner:
    """Return a runner of the same model, weights and batches in JAX.

    Raises:
        Skipped: The case has no JAX version.
    """
    model = problem.modules["model"] if problem.loss else None
    is_mlp = all(isinstance(m, nn.Linear | nn.ReLU) for m in model.children()) if model else False
    forward: Any
    if problem.loss is classify and is_mlp:
        forward = _mlp
    elif problem.loss is predict_tokens:
        forward = functools.partial(_gpt, heads=4)
    else:
        raise Skipped("not written for JAX")
    params = {n: _array(p) for n, p in problem.modules["model"].named_parameters()}
    optimizer = optax.adamw(1e-3, **_ADAMW)
    state = optimizer.init(params)
    batches = [tuple(map(_array, batch)) for batch in problem.batches]

    def loss_of(params: Any, x: Any, y: Any) -> Any:
        logits = forward(params, x)
        flat = logits.reshape(-1, logits.shape[-1])
        return optax.softmax_cross_entropy_with_integer_labels(flat, y.reshape(-1)).mean()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, x: Any, y: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_of)(params, x, y)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    calls = 0

    def run(n: int) -> tuple[list[float], list[float]]:
        nonlocal params, state, calls
        seconds, losses = [], []
        for _ in range(n):
            batch = batches[calls % len(batches)]
            calls += 1
            start = time.perf_counter()
            params, state, loss = step(params, state, *batch)
            jax.block_until_ready((params, state, loss))
            seconds.append(time.perf_counter() - start)
            losses.append(float(loss))
        return seconds, losses

    return Runner(run)


def _array(tensor: Tensor) -> Any:
    return jnp.array(tensor.detach().numpy())


def _linear(params: Any, name: str, x: Any) -> Any:
    return x @ params[f"{name}.weight"].T + params[f"{name}.bias"]


def _norm(params: Any, name: str, x: Any) -> Any:
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    scaled = (x - mean) / jnp.sqrt(variance + 1e-5)
    return scaled * params[f"{name}.weight"] + params[f"{name}.bias"]


def _mlp(params: Any, x: Any) -> Any:
    names = list(dict.fromkeys(name.partition(".")[0] for name in params))
    for name in names[:-1]:
        x = jax.nn.relu(_linear(params, name, x))
    return _linear(params, names[-1], x)


def _gpt(params: Any, tokens: Any, *, heads: int) -> Any:
    x = params["embed.weight"][tokens] + params["position"]
    n_blocks = len({name.split(".")[1] for name in params if name.startswith("blocks.")})
    for i in range(n_blocks):
        x = _block(params, f"blocks.{i}", x, heads)
    return _linear(params, "head", _norm(params, "norm", x))


def _block(params: Any, name: str, x: Any, heads: int) -> Any:
    batch, tokens, dim = x.shape
    qkv = _linear(params, f"{name}.qkv", _norm(params, f"{name}.norm_1", x))
    q, k, v = jnp.moveaxis(qkv.reshape(batch, tokens, 3, heads, dim // heads), 2, 0)
    mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    x = x + _linear(params, f"{name}.out", mixed.reshape(batch, tokens, dim))
    hidden = _linear(params, f"{name}.up", _norm(params, f"{name}.norm_2", x))
    return x + _linear(params, f"{name}.down", jax.nn.gelu(hidden, approximate=True))
