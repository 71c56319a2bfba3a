"""The memory against a NumPy reference, closed forms, properties and finite differences."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from merlin import memory as memories
from merlin.memory import MemoryState, Reader
from tests import reference

B, K, N, Z = 3, 2, 5, 4
W = 2 * Z
DISCOUNT = 0.7


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def run(num_writes: int, memory_size: int = N) -> tuple[list[MemoryState], torch.Tensor, torch.Tensor]:
    """Write random words with random reads; return the states after each write, the words and the read weights."""
    words = randn(num_writes, B, Z, seed=1)
    read_weights = torch.softmax(3 * randn(num_writes, B, K, memory_size, seed=2), -1)
    state = memories.initial_state(B, memory_size, W, dtype=torch.float64)
    states = []
    for word, weights in zip(words, read_weights, strict=True):
        state = memories.write(state, word, weights, DISCOUNT)
        states.append(state)
    return states, words, read_weights


def test_read_equals_reference():
    memory, keys, strengths = randn(B, N, W), randn(B, K, W, seed=1), randn(B, K, seed=2).exp()
    readable = torch.tensor([[True] * 5, [True, False, True, True, False], [False, False, True, False, False]])
    for mask in (None, readable):
        read = memories.read(memory, keys, strengths, mask)
        for b in range(B):
            words, weights = reference.read(
                memory[b].numpy(), keys[b].numpy(), strengths[b].numpy(), None if mask is None else mask[b].numpy()
            )
            np.testing.assert_allclose(read.words[b], words, atol=1e-12)
            np.testing.assert_allclose(read.weights[b], weights, atol=1e-12)


def test_two_orthogonal_slots_read_e_to_one():
    memory = torch.eye(2, dtype=torch.float64).unsqueeze(0)
    read = memories.read(memory, memory[:, :1], torch.ones(1, 1, dtype=torch.float64))
    expected = torch.tensor([math.e, 1.0], dtype=torch.float64) / (1 + math.e)
    torch.testing.assert_close(read.weights[0, 0], expected, atol=1e-6, rtol=0)  # EPSILON shortens unit vectors


def test_reading_an_empty_memory_gives_finite_zeros():
    state = memories.initial_state(B, N, W)
    keys = torch.zeros(B, K, W, requires_grad=True)
    for readable in (None, memories.written(state)):
        read = memories.read(state.memory, keys, torch.ones(B, K), readable)
        assert (read.words == 0).all() and read.weights.isfinite().all()
        (gradient,) = torch.autograd.grad(read.words.sum() + read.weights.sum(), keys)
        assert gradient.isfinite().all()
    assert (read.weights == 0).all()


def test_top_k_reads_only_the_nearest_and_all_of_them_when_k_is_n():
    memory, keys, strengths = randn(B, N, W), randn(B, K, W, seed=1), torch.full((B, K), 2.0, dtype=torch.float64)
    full = memories.read(memory, keys, strengths)
    torch.testing.assert_close(memories.read(memory, keys, strengths, top_k=N), full)
    best = memories.read(memory, keys, strengths, top_k=2)
    assert ((best.weights > 0).sum(-1) == 2).all()
    kept = full.weights * (best.weights > 0)
    torch.testing.assert_close(best.weights, kept / kept.sum(-1, keepdim=True))
    assert (kept.amax(-1) == full.weights.amax(-1)).all()


@pytest.mark.parametrize("num_writes", [1, N, N + 1, 4 * N])
def test_write_equals_reference(num_writes):
    states, words, read_weights = run(num_writes)
    for b in range(B):
        expected = reference.Memory(N, Z, DISCOUNT)
        for t in range(num_writes):
            expected.write(words[t, b].numpy(), read_weights[t, b].numpy())
            np.testing.assert_allclose(states[t].memory[b], expected.memory, atol=1e-12)
            np.testing.assert_allclose(states[t].usage[b], expected.usage, atol=1e-12)
            np.testing.assert_allclose(states[t].retroactive_weights[b], expected.retroactive, atol=1e-12)
            assert states[t].write_weights[b].argmax() == expected.last_written


def test_retroactive_half_has_its_closed_form_while_no_slot_is_used_twice():
    states, words, _ = run(N)
    for i in range(N):
        trace = sum((1 - DISCOUNT) * DISCOUNT ** (t - i - 1) * words[t] for t in range(i + 1, N))
        torch.testing.assert_close(states[-1].memory[:, i, :Z], words[i])
        torch.testing.assert_close(states[-1].memory[:, i, Z:], trace + torch.zeros(B, Z, dtype=torch.float64))


def test_a_used_slot_is_erased_with_its_trace_and_not_taken_twice_running():
    states, words, _ = run(3 * N)
    for before, after, word in zip(states[N - 1 : -1], states[N:], words[N:], strict=True):
        slot = after.write_weights.argmax(-1)
        rows = torch.arange(B)
        torch.testing.assert_close(after.memory[rows, slot], torch.cat([word, torch.zeros_like(word)], -1))
        assert (after.retroactive_weights[rows, slot] == 0).all()
        assert (slot != before.write_weights.argmax(-1)).all()


def test_without_reads_slots_are_used_again_in_order():
    state = memories.initial_state(1, 3, Z)
    slots = []
    for _ in range(7):
        state = memories.write(state, torch.ones(1, Z), torch.zeros(1, 1, 3))
        slots.append(int(state.write_weights.argmax()))
    assert slots == [0, 1, 2, 0, 1, 2, 0]


def test_without_the_retroactive_half_a_slot_is_its_word():
    words = randn(N, B, Z)
    state = memories.initial_state(B, N, Z, dtype=torch.float64)
    for word in words:
        state = memories.write(state, word, torch.zeros(B, K, N, dtype=torch.float64))
    torch.testing.assert_close(state.memory, words.transpose(0, 1))


def test_reset_zeroes_its_rows_and_no_others():
    state = run(2 * N)[0][-1]
    after = memories.reset(state, torch.tensor([False, True, False]))
    for before, x in zip(state, after, strict=True):
        assert (x[1] == 0).all()
        assert torch.equal(x[0], before[0]) and torch.equal(x[2], before[2])


@pytest.mark.parametrize("num_written", [0, 2, N, 2 * N])
def test_gradients_of_read_and_write(num_written):
    """With empty slots, a full memory, and slots that are used again."""
    state = memories.initial_state(B, N, W, dtype=torch.float64)
    if num_written:
        state = run(num_written)[0][-1]
    readable = memories.written(state)
    inputs = (state.memory.clone(), randn(B, K, W, seed=3), randn(B, K, seed=4).exp(), randn(B, Z, seed=5))

    def step(memory, keys, strengths, word):
        read = memories.read(memory, keys, strengths, readable)
        # Usage picks a slot; a change so small never changes which.
        after = memories.write(state._replace(memory=memory), word, read.weights.detach(), DISCOUNT)
        again = memories.read(after.memory, keys, strengths, memories.written(after))
        return read.words, again.words, after.memory

    # An empty slot's similarity is only as smooth as EPSILON allows: reads leave empty slots out.
    assert torch.autograd.gradcheck(step, tuple(x.requires_grad_() for x in inputs), eps=1e-7, atol=1e-4)


def test_gradients_with_duplicate_slots_and_without_a_mask():
    memory = randn(B, 1, W).expand(B, N, W).clone()
    inputs = (memory, randn(B, K, W, seed=3), randn(B, K, seed=4).exp())
    assert torch.autograd.gradcheck(memories.read, tuple(x.requires_grad_() for x in inputs))
    empty = torch.zeros(B, N, W, dtype=torch.float64, requires_grad=True)
    read = memories.read(empty, randn(B, K, W), torch.ones(B, K, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(read.words.square().sum() + read.words.sum(), empty)
    assert gradient.isfinite().all() and gradient.abs().max() < 1e3


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), strength=st.floats(0, 50))
def test_permuting_slots_permutes_weights_and_rows_are_independent(seed, strength):
    memory, keys = randn(B, N, W, seed=seed), randn(B, K, W, seed=seed + 1)
    strengths = torch.full((B, K), strength, dtype=torch.float64)
    read = memories.read(memory, keys, strengths)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
    permuted = memories.read(memory[:, order], keys, strengths)
    torch.testing.assert_close(permuted.weights, read.weights[:, :, order])
    torch.testing.assert_close(permuted.words, read.words)
    torch.testing.assert_close(read.weights.sum(-1), torch.ones(B, K, dtype=torch.float64))
    torch.testing.assert_close(memories.read(memory[1:2], keys[1:2], strengths[1:2]).words, read.words[1:2])


def test_strength_zero_reads_the_mean_and_a_great_one_the_nearest():
    memory, keys = randn(B, N, W), randn(B, N, W)
    zeros = torch.zeros(B, N, dtype=torch.float64)
    torch.testing.assert_close(memories.read(memory, keys, zeros).words, memory.mean(1, keepdim=True).expand(B, N, W))
    torch.testing.assert_close(memories.read(memory, keys, zeros + 1e4).words, memory)


@pytest.mark.parametrize("discount", [DISCOUNT, None])
def test_functions_leave_their_input_state_alone(discount):
    state = run(2 * N)[0][-1]
    before = [x.clone() for x in state]
    word = randn(B, Z if discount else W)
    memories.write(state, word, torch.zeros(B, K, N, dtype=torch.float64), discount)
    memories.reset(state, torch.tensor([True, False, True]))
    assert all(torch.equal(x, y) for x, y in zip(before, state, strict=True))


def test_reader_gives_positive_strengths_and_keys_of_their_shape():
    keys, strengths = Reader(7, W, K)(100 * torch.randn(B, 7))
    assert keys.shape == (B, K, W) and strengths.shape == (B, K) and (strengths >= 0).all()


@pytest.mark.parametrize("strength", [1e-300, 0.1, math.log(2), 7.0, 800.0])
def test_reader_starts_near_its_strength(strength):
    _, strengths = Reader(7, W, K, strength)(torch.zeros(B, 7))
    assert ((strengths - strength).abs() < 0.4).all()  # the bias of a linear layer is below 1/√7


def by_its_formula(memory, keys, strengths):
    """What `read` returns, of sums and roots alone."""
    lengths = [(x.pow(2).sum(-1) + memories.EPSILON).pow(0.5) for x in (keys, memory)]
    dots = (keys.unsqueeze(2) * memory.unsqueeze(1)).sum(-1)
    scores = (strengths.unsqueeze(2) * dots / (lengths[0].unsqueeze(2) * lengths[1].unsqueeze(1))).exp()
    weights = scores / scores.sum(-1, keepdim=True)
    return (weights.unsqueeze(-1) * memory.unsqueeze(1)).sum(2)


@pytest.mark.parametrize("empty", [1, N])
def test_second_derivatives_at_empty_slots_are_those_of_the_formula(empty):
    memory, keys, strengths = randn(1, N, 3), randn(1, K, 3, seed=1), randn(1, K, seed=2).exp()
    memory[:, :empty] = 0
    inputs = (memory, keys, strengths)

    def cost(function, *inputs):
        return function(*inputs).sin().sum()

    found = torch.autograd.functional.hessian(lambda *x: cost(lambda *y: memories.read(*y).words, *x), inputs)
    right = torch.autograd.functional.hessian(lambda *x: cost(by_its_formula, *x), inputs)
    for row, right_row in zip(found, right, strict=True):
        torch.testing.assert_close(row, right_row)
    size = max(float(x.abs().max()) for row in right for x in row)
    slope = tuple(x.requires_grad_() for x in inputs)
    assert torch.autograd.gradgradcheck(
        lambda *x: memories.read(*x).words, slope, eps=1e-8, atol=1e-4 * size, rtol=1e-4
    )


@pytest.mark.parametrize("discount", [DISCOUNT, None])
def test_a_step_may_be_differentiated_forward_and_mapped(discount):
    """By `torch.func`, whatever is mapped: what is read for, what is written, or how often slots were read."""
    state = run(N + 2)[0][-1] if discount else memories.initial_state(B, N, W, dtype=torch.float64)
    reader, word = Reader(6, W, K).double(), torch.nn.Linear(6, Z if discount else W).double()

    def step(hidden):
        read = memories.read(state.memory, *reader(hidden), memories.written(state), 3)
        return read.words, memories.write(state, word(hidden), read.weights, discount).memory

    hidden, along = randn(4, B, 6), randn(4, B, 6, seed=1)
    for mapped, rows in zip(torch.func.vmap(step)(hidden), zip(*map(step, hidden), strict=True), strict=True):
        torch.testing.assert_close(mapped, torch.stack(rows))
    _, slopes = torch.func.jvp(step, (hidden[0],), (along[0],))
    for slope, jacobian in zip(slopes, torch.autograd.functional.jacobian(step, hidden[0]), strict=True):
        torch.testing.assert_close(slope, (jacobian * along[0]).sum((-2, -1)))

    def write(read_weights):
        return memories.write(state, word(hidden[0]), read_weights, discount).memory

    read_weights = randn(4, B, K, N).softmax(-1)
    torch.testing.assert_close(torch.func.vmap(write)(read_weights), torch.stack([write(x) for x in read_weights]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_words_longer_than_256_are_read_in_half_precision(dtype):
    """Whose squares float16 does not hold."""
    memory, keys = (300 * randn(B, n, W, seed=seed) for n, seed in ((N, 0), (K, 1)))
    strengths = torch.full((B, K), 5.0, dtype=torch.float64)
    found = memories.read(*(x.to(dtype) for x in (memory, keys, strengths)))
    assert found.words.dtype == found.weights.dtype == dtype
    torch.testing.assert_close(
        found.weights.double(), memories.read(memory, keys, strengths).weights, atol=0.01, rtol=0.02
    )
