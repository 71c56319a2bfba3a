"""The memory called as `torch.nn.LSTM` is, against its equations written step by step, in float64."""

import importlib.util
import inspect
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn

from merlin import memory as memories
from merlin.errors import MerlinError
from merlin.memory import MemoryLSTM

close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-11)
T, B, I, H, N, Z, K = 7, 3, 4, 5, 3, 2, 2  # noqa: E741, more writes than slots
SIZES = {"memory_size": N, "word_size": Z, "num_read_keys": K}
every_memory = pytest.mark.parametrize("more", [{}, {"retroactive_discount": 0.8}, {"top_k": 2}], ids=str)


def make(**more):
    torch.manual_seed(0)
    return MemoryLSTM(I, H, **SIZES, **more).double()


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def starts(seed=0):
    is_first = torch.rand(T, B, generator=torch.Generator().manual_seed(seed)) < 0.25
    is_first[2, 1] = True
    return is_first


def plainly(core, x, is_first):
    """Return the outputs by the equations, from an empty memory, with `merlin.memory`'s own functions."""
    discount, top_k = core.memory.config.retroactive_discount, core.memory.config.top_k
    state = memories.initial_state(B, N, core.memory.slot_size, dtype=torch.float64)
    h, c, r = torch.zeros(B, H).double(), torch.zeros(B, H).double(), torch.zeros(B, K * core.memory.slot_size).double()
    outputs = []
    for now, first in zip(x, is_first, strict=True):
        state = memories.reset(state, first)
        h, c, r = (y * ~first.unsqueeze(1) for y in (h, c, r))
        h, c = core.lstm(torch.cat([now, r], -1), (h, c))
        words, weights = memories.read(state.memory, *core.reader(h), memories.written(state), top_k)
        r = words.flatten(1)
        state = memories.write(state, core.word(now), weights.detach(), discount)
        outputs.append(core.output(torch.cat([h, r], -1)))
    return torch.stack(outputs), state


def gradients(core, outputs, x):
    return torch.autograd.grad((outputs * draw(*outputs.shape, seed=5)).sum(), [x, *core.parameters()])


@every_memory
@pytest.mark.parametrize("seed", [0, 1])
def test_outputs_states_and_gradients_are_those_of_the_equations(more, seed):
    core, x, is_first = make(**more), draw(T, B, I, seed=seed).requires_grad_(), starts(seed)
    outputs, after = core(x, is_first=is_first)
    expected, state = plainly(core, x, is_first)
    close(outputs, expected)
    _, memory = core._unpack(after)
    for name in memories.MemoryState._fields:
        close(getattr(memory, name), getattr(state, name).detach(), msg=name)
    for found, wanted in zip(gradients(core, outputs, x), gradients(core, expected, x), strict=True):
        close(found, wanted)


@every_memory
def test_gradients_by_finite_differences(more):
    """Along random directions, as a window is gone back through only once, which `gradcheck` does several times."""
    core, x, is_first = make(**more), draw(4, B, I).requires_grad_(), starts()[:4]
    inputs, weights, step = [x, *core.parameters()], draw(4, B, H, seed=1), 1e-6
    value = lambda: (core(x, is_first=is_first)[0] * weights).sum()  # noqa: E731
    found = torch.autograd.grad(value(), inputs)
    for seed in range(2):
        directions, around = [draw(*y.shape, seed=seed) for y in inputs], []
        for sign in (1, -2):
            torch._foreach_add_([y.data for y in inputs], directions, alpha=sign * step)
            around.append(value().detach())
        torch._foreach_add_([y.data for y in inputs], directions, alpha=step)
        along = sum((gradient * y).sum() for gradient, y in zip(found, directions, strict=True))
        close((around[0] - around[1]) / (2 * step), along, rtol=1e-6, atol=1e-7)


@every_memory
def test_steps_are_a_window_and_two_windows_are_one(more):
    core, x, is_first = make(**more), draw(T, B, I), starts()
    whole, end = core(x, is_first=is_first)
    for cuts in ([1] * T, [3, 4], [1, 6]):
        state, outputs = None, []
        for part, first in zip(x.split(cuts), is_first.split(cuts), strict=True):
            output, state = core(part, state, first)
            outputs.append(output)
        close(torch.cat(outputs), whole)
        close(state, end)


def test_a_state_that_is_multiplied_by_zero_is_reset():
    """As sb3-contrib and CleanRL reset an LSTM's."""
    core, x = make(), draw(T, B, I)
    _, state = core(x)
    keeps = torch.tensor([1.0, 0.0, 1.0]).view(1, B, 1)
    close(core(x, state * keeps)[0], core(x, state, is_first=nn.functional.one_hot(torch.tensor(0), T).view(T, 1)
                                          * (1 - keeps.view(1, B)))[0])  # fmt: skip
    close(core(x, state * 0)[0], core(x)[0])


def test_it_is_called_as_an_lstm_is():
    for batch_first in (False, True):
        core, lstm = make(batch_first=batch_first), nn.LSTM(I, H, batch_first=batch_first).double()
        for shape in ((T, B, I), (B, T, I), (T, I)):
            x = draw(*shape)
            if x.ndim == 3 and (shape[0] == B) != batch_first:
                continue
            theirs, (h, c) = lstm(x)
            ours, state = core(x)
            assert ours.shape == theirs.shape and state.shape[:-1] == h.shape[:-1]
            again, pair = core(x, state.chunk(2, -1))
            assert (
                len(pair) == 2 and pair[0].shape == pair[1].shape and lstm(x, (h, c))[1][0].shape[:-1] == h.shape[:-1]
            )
            close(again, core(x, state)[0])
            close(torch.cat(pair, -1), core(x, state)[1])
    core, rows = make(), draw(T, B, I)
    flipped = make(batch_first=True)
    close(flipped(rows.transpose(0, 1), is_first=starts().T)[0].transpose(0, 1), core(rows, is_first=starts())[0])
    close(core(rows[:, 1], is_first=starts()[:, 1])[0], core(rows, is_first=starts())[0][:, 1])
    assert core.num_layers == 1 and core.hidden_size == H and core.input_size == I


def test_what_flows_through_a_state_is_the_lstm_and_the_reads_and_not_the_memory():
    core, x = make(), draw(2, B, I)
    state = core(draw(T, B, I))[1].detach().requires_grad_()
    (gradient,) = torch.autograd.grad(core(x, state)[0].sum(), state)
    recurrent = 2 * H + K * Z
    assert (gradient[..., :recurrent] != 0).all() and (gradient[..., recurrent:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_types_count_their_slots_in_float32(dtype):
    core = make().to(dtype)
    outputs, state = core(draw(T, B, I).to(dtype))
    assert outputs.dtype == dtype and state.dtype == torch.float32
    assert core._unpack(core(draw(T, B, I).to(dtype), state)[1])[1].num_written.tolist() == [2 * T] * B


@pytest.mark.parametrize(
    "x, state, is_first, sentence",
    [
        (draw(T, B, I + 1), None, None, r"input must be \[T, B, 4\] of at least one step, but it is \[7, 3, 5\]"),
        (
            draw(T, B, I),
            draw(1, B, 9),
            None,
            r"state must be \[1, 3, \d+\], or two halves of it, but it is \[1, 3, 9\]",
        ),
        (draw(T, 0, I), None, None, r"of at least one step, but it is \[7, 0, 4\]"),
        (draw(T, B, I), None, torch.ones(B, T), r"is_first must be \[T, B\], which is \[7, 3\], but it is \[3, 7\]"),
    ],
)
def test_what_does_not_fit_is_told(x, state, is_first, sentence):
    with pytest.raises(MerlinError, match=sentence):
        make()(x, state, is_first)
    with pytest.raises(MerlinError, match="Sizes must be at least 1"):
        MemoryLSTM(0, 1)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ((nn.utils.rnn.pack_padded_sequence(draw(T, B, I), [7, 4, 2]),), "input must be a tensor, .* a PackedSequence"),
        ((draw(T, B, I).numpy(),), "input must be a tensor, but it is a ndarray"),
        ((draw(T, B, I), [draw(1, B, 30)] * 2), "state must be a tensor, but it is a list"),
        ((draw(T, B, I), (draw(1, B, 30), None)), "state must be a tensor, but it is a NoneType"),
        ((draw(T, B, I), None, starts().numpy()), "is_first must be a tensor, but it is a ndarray"),
    ],
)
def test_what_is_no_tensor_is_told(arguments, sentence):
    with pytest.raises(MerlinError, match=sentence):
        inspect.unwrap(MemoryLSTM.forward)(make(), *arguments)  # which the tests would not let through by its type


def test_shapes_are_told_in_the_order_in_which_they_came():
    core = make(batch_first=True)
    with pytest.raises(MerlinError, match=r"input must be \[B, T, 4\] of at least one step, but it is \[3, 7, 5\]"):
        core(draw(B, T, I + 1))
    with pytest.raises(MerlinError, match=r"is_first must be \[B, T\], which is \[3, 7\], but it is \[7, 3\]"):
        core(draw(B, T, I), is_first=torch.ones(T, B))


COMPILED = """
import torch
from merlin.errors import MerlinError
from merlin.memory import MemoryLSTM

core, x = MemoryLSTM(4, 5, memory_size=3), torch.randn(7, 3, 4)
model = torch.nn.Sequential(torch.nn.Linear(4, 4), core)
outputs, state = torch.compile(model, backend="eager")(x)
torch.testing.assert_close(outputs, model(x)[0])
step, state = x[:1], state.detach()
torch.testing.assert_close(torch.jit.trace(core, (step, state))(step, state)[0], core(step, state)[0])
never, starts = torch.zeros(1, 3, dtype=torch.bool), torch.tensor([[True, False, True]])
more = step.repeat(1, 2, 1), state.repeat(1, 2, 1), starts.repeat(1, 2)
any_batch = ({1: torch.export.Dim("batch", min=1)},) * 3
exported = torch.export.export(core, (step, state, never), dynamic_shapes=any_batch).module()
for program in (torch.jit.trace(core, (step, state, never)), exported):
    for arguments in ((step, state, starts), more):
        torch.testing.assert_close(program(*arguments), core(*arguments))
for export in (torch.jit.trace, torch.export.export):
    try:
        export(core, (x,))
    except MerlinError as error:
        print(error)
"""


def test_a_model_around_it_is_compiled_and_a_step_is_traced():
    # in a process whose shapes nobody checks: what checks them cannot be compiled
    process = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, timeout=200)
    told = "Of a MemoryLSTM a single step can be traced or exported, but the input has 7: give it one."
    assert process.stdout.splitlines() == [told] * 2, process.stderr


@pytest.mark.skipif(importlib.util.find_spec("sb3_contrib") is None, reason="needs sb3_contrib")
@pytest.mark.filterwarnings("ignore")
def test_the_recurrent_ppo_of_stable_baselines3_contrib_learns_what_it_acted_by():
    """Log probabilities that are computed again from the stored states are those of acting: no KL before an update."""
    from sb3_contrib import RecurrentPPO
    from sb3_contrib.ppo_recurrent.policies import RecurrentActorCriticPolicy
    from stable_baselines3.common.env_util import make_vec_env

    class Policy(RecurrentActorCriticPolicy):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, shared_lstm=True, enable_critic_lstm=False, **kwargs)
            core = self.lstm_actor = MemoryLSTM(self.features_dim, self.lstm_output_dim, memory_size=8, word_size=4)
            core.hidden_size = core.state_size // 2  # the library's word for the width of h and c
            self.lstm_hidden_state_shape = (1, 1, core.hidden_size)
            self.optimizer = torch.optim.Adam(self.parameters(), lr=1e-3)

    env = make_vec_env("merlin/TMaze-v0", n_envs=3, seed=0, env_kwargs={"length": 2})
    model = RecurrentPPO(Policy, env, n_steps=16, batch_size=48, n_epochs=1, seed=0, device="cpu")
    before = model.policy.lstm_actor.reader.project.weight.clone()
    model.learn(48)
    assert abs(model.logger.name_to_value["train/approx_kl"]) < 1e-6
    assert not torch.equal(before, model.policy.lstm_actor.reader.project.weight)


@every_memory
def test_torch_func_differentiates_several_steps_forward_and_twice(more):
    core, x, along = make(**more), draw(T, B, I), draw(T, B, I, seed=1)
    parameters = {name: p.detach() for name, p in core.named_parameters()}

    def cost(x):
        return torch.func.functional_call(core, parameters, (x, None, starts()))[0].sin().sum()

    (right,) = torch.autograd.grad(cost(y := x.clone().requires_grad_()), y)
    slope = torch.func.grad(cost)
    close(slope(x), right)
    close(torch.func.jvp(cost, (x,), (along,))[1], (right * along).sum())
    near = [slope(x + step * along) for step in (1e-5, -1e-5)]
    turned = torch.func.jvp(slope, (x,), (along,))[1]
    torch.testing.assert_close(turned, (near[0] - near[1]) / 2e-5, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", [1, T])
def test_on_the_meta_device_there_are_shapes(length):
    with torch.device("meta"):
        outputs, state = MemoryLSTM(I, H, **SIZES)(torch.zeros(length, B, I))
    assert outputs.shape == (length, B, H) and state.shape[:2] == (1, B)
