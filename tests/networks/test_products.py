"""Products by oneDNN are those of PyTorch, with the same gradients, and are taken only where they pay."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from merlin.networks import products
from merlin.networks.products import Linear, affine, goes_to_onednn, product
from merlin.networks.window_linear import in_window

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch is built without oneDNN")


@pytest.fixture
def onednn(monkeypatch):
    """oneDNN whatever the processor, and the shapes that it multiplied."""
    monkeypatch.setattr(products, "has_idle_units", lambda: True)
    monkeypatch.setattr(products, "LEAST_MULTIPLICATIONS", 16**3)
    seen, dense = [], products._dense
    monkeypatch.setattr(products, "_dense", lambda x: (seen.append(tuple(x.shape)), dense(x))[1])
    return seen


@pytest.mark.parametrize("shape", [(32,), (3, 16)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_values_and_gradients_are_those_of_torch(onednn, shape, has_bias):
    torch.manual_seed(0)
    x, weight = torch.randn(*shape, 24, requires_grad=True), torch.randn(40, 24, requires_grad=True)
    bias = torch.randn(40, requires_grad=True) if has_bias else None
    wanted = [x, weight, *([bias] if has_bias else [])]
    found, expected = affine(x, weight, bias), F.linear(x, weight, bias)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected)
    for one, other in zip(
        torch.autograd.grad(found.sin().sum(), wanted), torch.autograd.grad(expected.sin().sum(), wanted), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    rows = x.numel() // 24
    assert onednn == [(rows, 24), (40, 24), (rows, 40), (24, 40), (40, rows), (24, rows)], "all three products"


def test_gradients_have_gradients(onednn):
    x, weight = torch.randn(32, 24, requires_grad=True), torch.randn(40, 24, requires_grad=True)

    def second(function):
        (first,) = torch.autograd.grad(function(x, weight).pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), weight)[0]

    torch.testing.assert_close(second(affine), second(F.linear), rtol=1e-3, atol=1.0)


def test_matrices_with_gaps_are_copied_first(onednn):
    """oneDNN would take them ten times as slowly."""
    x, y = torch.randn(32, 64)[:, 8:40], torch.randn(48, 64)[:, :32].T.contiguous().T
    torch.testing.assert_close(product(x, y), x @ y.T)
    assert products._dense(x).is_contiguous() and products._dense(y) is y


def test_small_products_doubles_and_what_is_exported_stay_with_torch(monkeypatch):
    monkeypatch.setattr(products, "has_idle_units", lambda: True)
    x, y = torch.randn(64, 256), torch.randn(128, 256)
    assert goes_to_onednn(x, y) and goes_to_onednn(x.view(4, 16, 256), y) and not goes_to_onednn(x[1:], y)
    assert not goes_to_onednn(torch.randn(15, 2048), torch.randn(2048, 2048)), "few rows"
    assert not goes_to_onednn(x.double(), y.double()) and not goes_to_onednn(x.to("meta"), y.to("meta"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not goes_to_onednn(x, y)
    exported = torch.export.export(Linear(256, 128), (x,)).graph
    assert not any("mkldnn" in str(node.target) for node in exported.nodes)


@pytest.mark.parametrize(("chosen", "expected"), [("0", False), ("1", True)])
def test_the_environment_decides(monkeypatch, chosen, expected):
    monkeypatch.setenv("MERLIN_ONEDNN", chosen)
    assert products.has_idle_units.__wrapped__() is expected


@pytest.mark.parametrize(
    ("vendor", "capability", "expected"),
    [("AuthenticAMD", "AVX512", True), ("AuthenticAMD", "AVX2", False), ("GenuineIntel", "AVX512", False)],
)
def test_it_is_for_wide_units_of_amd(monkeypatch, tmp_path, vendor, capability, expected):
    monkeypatch.delenv("MERLIN_ONEDNN", raising=False)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    about = tmp_path / "cpuinfo"
    about.write_text(f"vendor_id\t: {vendor}\n")
    monkeypatch.setattr(products, "Path", lambda _: about)
    assert products.has_idle_units.__wrapped__() is expected


@pytest.mark.parametrize("kind", [lambda: nn.Linear(24, 40), lambda: Linear(24, 40), lambda: nn.LSTMCell(24, 40)])
def test_a_window_of_steps_has_the_same_gradients(onednn, kind):
    torch.manual_seed(1)
    module = kind()
    before = copy.deepcopy(module)
    inputs = torch.randn(5, 32, 24)

    def run(module):
        state, outputs, x = (torch.zeros(32, 40),) * 2, [], inputs.clone().requires_grad_()
        for row in x:
            if isinstance(before, nn.LSTMCell):
                state = module(row, state)
                outputs.append(state[0])
            else:
                outputs.append(module(row))
        torch.stack(outputs).sin().sum().backward()
        return x.grad

    inside = in_window(module)
    torch.testing.assert_close(run(inside), run(before), rtol=1e-4, atol=1e-5)
    assert onednn
    for one, other in zip(module.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-4)


def test_they_are_counted(onednn):
    x, layer = torch.randn(32, 24, requires_grad=True), Linear(24, 40)
    with FlopCounterMode(display=False, custom_mapping=products.flop_formulas()) as counter:
        layer(x).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 32 * 24 * 40


def test_torch_func_and_derivatives_taken_forward_get_products_that_they_know(onednn):
    torch.manual_seed(0)
    layer, x, along = Linear(24, 40), torch.randn(32, 24), torch.randn(32, 24)
    weights = dict(layer.named_parameters())

    def cost(weights, x):
        return torch.func.functional_call(layer, weights, (x,)).sin().sum()

    def plain(weights, x):
        return F.linear(x, weights["weight"], weights["bias"]).sin().sum()

    torch.testing.assert_close(torch.func.grad(cost)(weights, x), torch.func.grad(plain)(weights, x))
    tangents = [torch.func.jvp(lambda x, f=f: f(weights, x), (x,), (along,)) for f in (cost, plain)]
    torch.testing.assert_close(*tangents)
    stacked = {name: torch.stack([w, 2 * w]) for name, w in weights.items()}
    mapped = [torch.func.vmap(f, in_dims=(0, None))(stacked, x) for f in (cost, plain)]
    torch.testing.assert_close(*mapped)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, along)
        slope = torch.autograd.forward_ad.unpack_dual(cost(weights, dual)).tangent
    torch.testing.assert_close(slope, tangents[0][1])


def test_while_a_program_is_compiled_the_machine_is_asked_nothing(onednn, monkeypatch):
    """Which would break the program in two."""
    x = torch.randn(32, 24)
    assert goes_to_onednn(x, torch.randn(40, 24))
    monkeypatch.setattr(products, "has_idle_units", lambda: pytest.fail("a program cannot ask"))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not goes_to_onednn(x, torch.randn(40, 24))
