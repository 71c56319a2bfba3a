"""Modules inside a window: the gradients of plain ones once each step was gone back through, and nothing is left."""

import gc
import weakref
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from merlin.networks.heads import mlp
from merlin.networks.lstm import LSTM, LSTMState, SharedLSTMCell
from merlin.networks.window_linear import WindowLinear, WindowLSTMCell, _LSTMStep, _Uses, in_window

close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-11)

B, INPUT, OUTPUT, HIDDEN = 3, 5, 4, 7


@pytest.fixture(autouse=True)
def enough_rows_for_a_product(monkeypatch):
    """Steps of 3 rows are multiplied at a time, and the last ones at the end."""
    monkeypatch.setattr(_Uses, "ENOUGH_ROWS", 8)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def both(module: nn.Module, run, *inputs: torch.Tensor):
    """Check that `run(module, *inputs)` gives the same, gradients too, in a window; return the gradients by name."""
    inputs = tuple(x.clone().requires_grad_() for x in inputs)
    results = []
    for stepping in (module, in_window(module)):
        module.zero_grad()
        for x in inputs:
            x.grad = None
        output = run(stepping, *inputs)
        (output * randn(*output.shape, seed=1)).sum().backward()
        gradients = {name: None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()}
        gradients |= {str(i): None if x.grad is None else x.grad.clone() for i, x in enumerate(inputs)}
        results.append((output.detach(), gradients))
    (expected, plain), (ours, found) = results
    close(ours, expected)
    for name, gradient in plain.items():
        if gradient is None or found[name] is None:
            assert gradient is None and (found[name] is None or not found[name].any()), name
        else:
            close(found[name], gradient, msg=lambda text, name=name: f"{name}: {text}")
    return found


@pytest.mark.parametrize("layer", [nn.Linear(INPUT, OUTPUT), nn.LSTMCell(INPUT, OUTPUT)])
def test_what_hooks_make_of_a_layer_is_made_of_it_in_a_window_too(layer):
    prune.l1_unstructured(layer, next(iter(dict(layer.named_parameters()))), 7)  # masks the weight before each call
    layer.register_forward_hook(lambda module, inputs, output: (2 * output[0], *output[1:]))
    both(nn.Sequential(layer).double(), lambda layers, x: layers(x)[0], randn(B, INPUT))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(), (B,), (2, B), (2, 1, B), (11,), (0,), (2, 0)], ids=str)
def test_linear_layers_of_any_leading_dimensions(bias, shape):
    layer = nn.Linear(INPUT, OUTPUT, bias).double()
    found = both(layer, lambda layer, x: layer(x), randn(*shape, INPUT))
    assert found["weight"].any() or 0 in shape


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 3, 8, 11])
def test_linear_layers_used_over_again(bias, steps):
    """Before, at and beyond the rows that are multiplied at a time, each output being the next one's input."""

    def run(layer, x):
        for _ in range(steps):
            x = torch.tanh(layer(x))
        return x

    assert both(nn.Linear(INPUT, INPUT, bias).double(), run, randn(B, INPUT))["weight"].any()


@pytest.mark.parametrize("used", [[], [0], [4], [1, 2], [0, 4]], ids=str)
def test_uses_that_get_no_gradient_count_for_nothing(used):
    layer = nn.Linear(INPUT, OUTPUT).double()

    def run(layer, x):
        outputs = [layer(x * t) for t in range(1, 6)]
        return sum((outputs[t] for t in used), start=x[:, :OUTPUT])

    both(layer, run, randn(B, INPUT))


class Unused(torch.autograd.Function):
    """Passes its first input on, and no gradient to its second, as a read does whose result is left unused."""

    @staticmethod
    def forward(ctx, x, y):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


def test_a_use_that_is_passed_through_without_a_gradient_counts_for_nothing():
    layer = nn.Linear(INPUT, INPUT).double()
    both(layer, lambda layer, x: Unused.apply(layer(layer(x)), layer(layer(x + 1))), randn(B, INPUT))
    both(layer, lambda layer, x: Unused.apply(x, layer(x)), randn(B, INPUT))


def test_a_layer_that_is_never_used_has_no_gradient():
    module = nn.ModuleDict({"used": nn.Linear(INPUT, OUTPUT), "unused": nn.Linear(INPUT, OUTPUT)}).double()
    found = both(module, lambda module, x: module["used"](x), randn(B, INPUT))
    assert found["unused.weight"] is None


def test_inputs_without_gradients_and_steps_without_gradients():
    layer = nn.Linear(INPUT, OUTPUT).double()

    def run(layer, x):
        with torch.no_grad():
            layer(x)
        first = layer(x.detach())
        with torch.no_grad():
            seen = layer(x)
        assert not seen.requires_grad
        return first + layer(seen.sum() * x)

    both(layer, run, randn(B, INPUT))


@pytest.mark.parametrize("frozen", [["weight"], ["bias"], ["weight", "bias"]], ids=str)
def test_frozen_parameters_have_no_gradient_and_pass_it_on(frozen):
    layer = nn.Linear(INPUT, INPUT).double()
    for name in frozen:
        getattr(layer, name).requires_grad_(False)
    found = both(layer, lambda layer, x: layer(torch.tanh(layer(x))), randn(B, INPUT))
    assert all(found[name] is None for name in frozen) and found["0"].any()
    stepping = in_window(layer)
    stepping(randn(B, INPUT).requires_grad_()).sum().backward()
    assert not stepping.uses.waiting, "nobody would ask for it"


def test_a_frozen_lstm_passes_gradients_on():
    cell = nn.LSTMCell(INPUT, HIDDEN).double().requires_grad_(False)
    found = both(cell, lambda cell, x, h, c: torch.cat(cell(x, (h, c)), -1), randn(B, INPUT), *randn(2, B, HIDDEN))
    assert all(found[name].any() for name in "012")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("which", ["hidden", "cell", "both"])
def test_lstm_cells(bias, steps, which):
    def run(cell, x, h, c):
        for row in x.expand(steps, B, INPUT):
            h, c = cell(row, (h, c))
        return {"hidden": h, "cell": c, "both": torch.cat([h, c], -1)}[which]

    found = both(nn.LSTMCell(INPUT, HIDDEN, bias).double(), run, randn(B, INPUT), *randn(2, B, HIDDEN, seed=2))
    assert all(gradient.any() for gradient in found.values())


def test_an_input_without_gradient_costs_no_gradient():
    """Half of the product is left out then; all other gradients are the same."""
    cell = nn.LSTMCell(INPUT, HIDDEN).double()
    x, hidden, before = randn(B, INPUT, seed=2), *randn(2, B, HIDDEN, seed=3)
    hidden.requires_grad_()
    found = []
    for step in (cell, in_window(cell)):
        output = torch.cat(step(x, (hidden, before)), -1)
        weights = randn(*output.shape, seed=4)
        found.append(torch.autograd.grad((output * weights).sum(), [hidden, *cell.parameters()]))
    for ours, plain in zip(*found, strict=True):
        close(ours, plain)


def test_the_fused_gates_are_in_the_order_of_the_docstring():
    (i, f, g, o), c = randn(4, HIDDEN), randn(B, HIDDEN, seed=1)
    nothing = torch.zeros(B, INPUT + HIDDEN, dtype=torch.float64)
    weight, bias = randn(4 * HIDDEN, INPUT + HIDDEN), torch.cat([i, f, g, o])
    uses = _Uses(torch.float32, sums_bias=True)
    hidden, cell = _LSTMStep.apply(
        bias, (weight, weight[:, INPUT:]), uses, *nothing.split([INPUT, HIDDEN], -1), c, None
    )
    close(cell, torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g))
    close(hidden, torch.sigmoid(o) * torch.tanh(cell))


def test_a_share_of_the_gates_is_what_an_input_of_its_own_would_add():
    """Plainly against PyTorch's cell, and in a window against the plain one, the share's gradient included."""
    cell, whole = SharedLSTMCell(INPUT, HIDDEN).double(), nn.LSTMCell(2 * INPUT, HIDDEN).double()
    weight = randn(4 * HIDDEN, INPUT, seed=5)
    with torch.no_grad():
        whole.weight_ih.copy_(torch.cat([cell.weight_ih, weight], -1))
        for name in ("weight_hh", "bias_ih", "bias_hh"):
            getattr(whole, name).copy_(getattr(cell, name))
    x, other, hidden, c = randn(B, INPUT), randn(B, INPUT, seed=3), *randn(2, B, HIDDEN, seed=2)
    close(cell(x, (hidden, c), other @ weight.T), whole(torch.cat([x, other], -1), (hidden, c)))

    def run(cell, x, share, hidden, c):
        for _ in range(3):  # the same share at every step, as one that is held
            hidden, c = cell(x, (hidden, c), share)
        return torch.cat([hidden, c], -1)

    assert both(cell, run, x, other @ weight.T, hidden, c)


def test_lstms_of_several_layers():
    def run(lstm, x, h, c):
        state, outputs = LSTMState(h, c), []
        for t, row in enumerate(x.expand(6, B, INPUT)):
            state = lstm.step(row + t, state)
            outputs.append(state.hidden)
        return torch.stack(outputs)

    found = both(LSTM(INPUT, HIDDEN, 3).double(), run, randn(B, INPUT), *randn(2, B, 3 * HIDDEN, seed=2))
    assert len(found) == 3 * 4 + 3 and all(gradient.any() for gradient in found.values())


def test_modules_that_are_shared_twice_learn_of_both():
    shared = nn.Linear(INPUT, INPUT)
    module = nn.ModuleDict({"one": shared, "other": nn.Sequential(shared, nn.Tanh(), nn.Linear(INPUT, 2))}).double()
    found = both(module, lambda module, x: module["other"](module["one"](x)), randn(B, INPUT))
    assert found["one.weight"].any()


class Tied(nn.Module):
    """Uses the weight of its layer beside the layer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(INPUT, OUTPUT)

    def forward(self, x):
        return F.linear(self.layer(x), self.layer.weight.T) + self.layer.bias.sum()


def test_a_weight_that_is_used_beside_its_layer_learns_of_it():
    both(Tied().double(), lambda module, x: module(x), randn(B, INPUT))


class Doubled(nn.Linear):
    """A layer that is not what it is derived from."""

    def forward(self, x):
        return 2 * super().forward(x)


def test_layers_derived_from_linear_ones_stay_what_they_are():
    both(Doubled(INPUT, OUTPUT).double(), lambda module, x: module(x), randn(B, INPUT))
    norm = nn.utils.parametrizations.weight_norm(nn.Linear(INPUT, OUTPUT).double())
    with torch.no_grad():  # as in a rollout
        stepping = in_window(norm)
    stepping(randn(B, INPUT)).sum().backward()
    assert norm.parametrizations.weight.original1.grad.any()


def test_a_window_that_begins_without_gradients_learns():
    """As in a rollout, which switches them off and lets only steps record."""
    cell = nn.LSTMCell(INPUT, HIDDEN).double()
    with torch.no_grad():
        stepping = in_window(cell)
        with torch.enable_grad():
            hidden, _ = stepping(randn(B, INPUT), tuple(randn(2, B, HIDDEN)))
    hidden.sum().backward()
    assert all(p.grad.any() for p in cell.parameters())


def test_parameters_are_shared_and_not_copied_and_the_module_is_left_alone():
    module = nn.Sequential(mlp(INPUT, (HIDDEN,), OUTPUT), nn.ModuleDict({"norm": nn.LayerNorm(OUTPUT)}), nn.Identity())
    module.register_buffer("count", torch.zeros(1))
    before = dict(module.named_modules())
    stepping = in_window(module)
    assert type(stepping) is nn.Sequential and stepping is not module
    assert stepping[0][0].weight is module[0][0].weight and stepping[0][0].bias is module[0][0].bias
    assert stepping[1]["norm"] is module[1]["norm"] and stepping.count is module.count
    assert isinstance(stepping[0][0], WindowLinear) and isinstance(in_window(nn.LSTMCell(1, 1)), WindowLSTMCell)
    assert [*stepping.parameters()] == [*module.parameters()], "by which a step may ask for a device"
    assert [*in_window(LSTM(1, 1, 2)).parameters()]
    after = dict(module.named_modules())
    assert before.keys() == after.keys() and all(before[name] is after[name] for name in before)
    assert stepping.training and not in_window(module.eval()).training


def test_optional_parts_that_are_none_stay_none():
    module = nn.Module()
    module.register_module("part", None)
    module.layer = nn.Linear(1, 1)
    assert in_window(module).part is None


@pytest.mark.parametrize("rows", [8, 10**9])
@pytest.mark.parametrize("learnt", [True, False])
def test_a_window_is_freed_without_the_garbage_collector(rows, learnt, monkeypatch):
    monkeypatch.setattr(_Uses, "ENOUGH_ROWS", rows)
    module = nn.ModuleDict({"lstm": LSTM(INPUT, HIDDEN, 2), "head": nn.Linear(2 * HIDDEN, OUTPUT)})
    gc.collect()
    gc.disable()
    try:
        stepping, kept = in_window(module), []
        state = module["lstm"].initial_state(B)
        for _ in range(5):
            x = torch.randn(B, INPUT)
            state = stepping["lstm"].step(x, state)
            output = stepping["head"](state.hidden)
            kept += [weakref.ref(y) for y in (x, *state, output)]
        kept += [weakref.ref(stepping["head"].uses), weakref.ref(stepping["lstm"].cells[0].uses)]
        if learnt:
            output.sum().backward()
        del stepping, x, state, output
        assert [ref() for ref in kept if ref() is not None] == []
    finally:
        gc.enable()
    for p in module.parameters():
        assert (p.grad is not None) == learnt


def test_a_second_window_learns_beside_the_first():
    """Gradients of windows add up, and neither takes the other's."""
    layer = nn.Linear(INPUT, OUTPUT).double()
    x = randn(2, B, INPUT)
    layer(x).sum().backward()
    expected = layer.weight.grad.clone()
    layer.zero_grad()
    for stepping, row in zip([in_window(layer), in_window(layer)], x, strict=True):
        stepping(row).sum().backward()
    close(layer.weight.grad, expected)
