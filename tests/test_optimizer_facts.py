import pytest
import torch
from torch import optim

from stepgraph.optimizer_facts import FACTS, FUSED_CPU_KERNELS, facts_of

UNKNOWN = ("Optimizer", "Muon", "SparseAdam")


def names(chosen):
    return sorted(kind.__name__ for kind in chosen)


def test_every_optimizer_of_torch_is_known_but_for_two():
    found = {v for v in vars(optim).values() if isinstance(v, type)}
    of_torch = {v for v in found if issubclass(v, optim.Optimizer)}

    assert names(of_torch - FACTS.keys()) == sorted({*UNKNOWN} & {*names(of_torch)})


def test_nothing_is_known_of_a_subclass():
    class Own(optim.SGD):
        pass

    assert not facts_of(Own([torch.zeros(1)])).separable


def updated(kind, seed):
    """Return two parameters after two updates; the gradients of the second one depend on `seed`."""
    params = [torch.nn.Parameter(torch.ones(3, 2)) for _ in range(2)]
    optimizer = kind(params)
    generators = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    for _ in range(2):
        for param, generator in zip(params, generators, strict=True):
            param.grad = torch.randn(3, 2, generator=generator)
        optimizer.step()
    return params


@pytest.mark.parametrize("kind", [k for k, facts in FACTS.items() if facts.separable], ids=str)
def test_a_separable_update_does_not_depend_on_other_gradients(kind):
    first, other = updated(kind, 1), updated(kind, 2)

    assert torch.equal(first[0], other[0])
    assert not torch.equal(first[1], other[1])


def test_the_triton_kernels_update_the_same_state():
    catalogue = pytest.importorskip("stepgraph_kernels.catalogue")
    compared = []
    for variant in catalogue.VARIANTS:
        facts = FACTS.get(variant.optimizer)
        if facts is not None and facts.fused_cpu is not None:
            group = variant.group()
            compared.append(facts.fused_cpu.kernel(group))

            assert facts.fused_cpu.names(group) == variant.family.rule(group).states

    assert {*compared} == {*FUSED_CPU_KERNELS}
