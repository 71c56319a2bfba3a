"""A window's memory, which is never rewritten, against the same memory written step by step."""

from functools import partial

import pytest
import torch

from merlin import memory as memories
from merlin.memory.window import MemoryWindow

close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-11)

B, N, Z, K, T = 3, 5, 4, 2, 12  # more writes than slots
SWITCHES = [(0.8, True), (0.8, False), (None, True), (None, False)]


def play(discount, mask_unwritten, seed, before=7):
    """Return a window that follows `before` other steps, and the memory before each of its steps, written plainly."""
    generator = torch.Generator().manual_seed(seed)
    random = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    state = memories.initial_state(B, N, Z if discount is None else 2 * Z, dtype=torch.float64)
    is_first = torch.rand(before + T, B, generator=generator) < 0.15
    words, reads = random(before + T, B, Z), random(before + T, B, K, N).softmax(-1)
    states, slots = [], []
    for t in range(before + T):
        states.append(memories.reset(state, is_first[t]))
        state = memories.write(states[t], words[t], reads[t], discount)
        slots.append(state.write_weights.argmax(-1))
    initial = states[before - 1]
    initial = memories.write(initial, words[before - 1], reads[before - 1], discount)
    window = MemoryWindow(initial, T, discount, mask_unwritten)
    return window, is_first[before:], slots[before:], states[before:], words[before:], reads[before:], state


def expand(window, weights, t):
    """Return weights of slots [B, K, N] as weights of the window's entries."""
    held = window.held
    entries = torch.zeros(*weights.shape[:2], held + t, dtype=weights.dtype)
    for b in range(B):
        for slot in range(N):
            (holders,) = torch.nonzero(window.views[t].readable[b], as_tuple=True)
            owner = [e for e in holders.tolist() if (e if e < held else window.slots[e - held][b].item()) == slot]
            assert len(owner) <= 1, "a slot is one entry"
            if owner:
                entries[b, :, owner[0]] = weights[b, :, slot]
    return entries


@pytest.mark.parametrize(("seed", "before"), [(0, 7), (1, 7), (2, 7), (0, 2), (1, 2)])
@pytest.mark.parametrize(("discount", "mask_unwritten"), SWITCHES)
def test_every_step_equals_the_memory_written_plainly(discount, mask_unwritten, seed, before):
    window, is_first, slots, states, words, reads, final = play(discount, mask_unwritten, seed, before)
    assert window.held == (min(before, N) if mask_unwritten else N)
    keys = torch.randn(B, K, states[0].memory.shape[-1], dtype=torch.float64)
    for t in range(T):
        window.enter(t, ~is_first[t])  # entered in vain
        window.enter(t, is_first[t])
        memory = states[t].memory
        readable = memories.written(states[t]) if mask_unwritten else torch.ones(B, N, dtype=torch.bool)
        assert torch.equal(window.views[t].readable.sum(-1), readable.sum(-1))
        scores = (keys @ memory.mT).masked_fill(~readable.unsqueeze(1), 0)
        found = window.dots(keys, t).masked_fill(~window.views[t].readable.unsqueeze(1), 0)
        close(found, expand(window, scores, t))
        weights = expand(window, reads[t], t)
        plain = reads[t].masked_fill(~readable.unsqueeze(1), 0)
        close(window.mix(weights, t), plain @ memory)
        norms = torch.rsqrt(memory.square().sum(-1) + memories.EPSILON).unsqueeze(1)
        if mask_unwritten:
            shown = window.views[t].inverse_norms.unsqueeze(1).masked_fill(~window.views[t].readable.unsqueeze(1), 0)
            close(shown, expand(window, norms.masked_fill(~readable.unsqueeze(1), 0), t))
        window.append(t, words[t], weights, slots[t])
        if t + 1 < T:
            close(memories.reset(window.state(), is_first[t + 1]).memory, states[t + 1].memory)
    after = window.state()
    for name in ("memory", "num_written", "write_weights", "retroactive_weights"):
        close(getattr(after, name), getattr(final, name), msg=name)


@pytest.mark.parametrize("before", [7, 2])
@pytest.mark.parametrize(("discount", "mask_unwritten"), SWITCHES)
def test_dots_and_mix_are_adjoint_on_the_way_back(discount, mask_unwritten, before):
    window, is_first, slots, states, words, _, _ = play(discount, mask_unwritten, 1, before)
    keys = torch.randn(B, K, states[0].memory.shape[-1], dtype=torch.float64)
    ahead = []
    for t in range(T):
        window.enter(t, ~is_first[t])  # entered in vain
        window.enter(t, is_first[t])
        ahead.append(window.dots(keys, t))
        window.append(t, words[t], torch.zeros_like(ahead[t]), slots[t])
    for t in reversed(range(T)):
        window.undo(t)
        back = window.dots(keys, t)
        close(back, ahead[t])
        weights = torch.randn_like(back)
        close((window.mix(weights, t) * keys).sum(), (weights * back).sum())


@pytest.mark.parametrize("before", [7, 2])
@pytest.mark.parametrize(("discount", "mask_unwritten"), SWITCHES)
def test_chosen_entries_are_as_among_all(discount, mask_unwritten, before):
    window, is_first, slots, states, words, _, _ = play(discount, mask_unwritten, 3, before)
    other = play(discount, mask_unwritten, 3, before)[0]
    keys = torch.randn(B, K, states[0].memory.shape[-1], dtype=torch.float64)
    for t in range(T):
        window.enter(t, is_first[t])
        scores = window.dots(keys, t)
        few = min(3, scores.shape[2])
        chosen = torch.rand(scores.shape).topk(few).indices
        close(window.dots(keys, t, chosen), scores.gather(2, chosen))
        weights = torch.rand(B, K, few, dtype=torch.float64)
        everywhere = torch.zeros_like(scores).scatter(2, chosen, weights)
        close(window.mix(weights, t, chosen), window.mix(everywhere, t))
        window.append(t, words[t], everywhere, slots[t])
        other.enter(t, is_first[t])
        other.append(t, words[t], weights, slots[t], chosen)
        close(other.rest.usage, window.rest.usage)


@pytest.mark.parametrize("discount", [0.8, None])
def test_slots_are_chosen_as_when_written_plainly(discount):
    """Reads of what is readable alone, so that usage is the same slot by slot."""
    _, is_first, _, _, words, reads, _ = play(discount, True, seed=2)
    state = memories.initial_state(B, N, words.shape[-1] * (1 if discount is None else 2), dtype=torch.float64)
    window = MemoryWindow(state, T, discount)
    for t in range(T):
        state = memories.reset(state, is_first[t])
        weights = reads[t].masked_fill(~memories.written(state).unsqueeze(1), 0)
        window.enter(t, is_first[t])
        slot = window.append(t, words[t], expand(window, weights, t))
        state = memories.write(state, words[t], weights, discount)
        assert torch.equal(slot, state.write_weights.argmax(-1))
        close(window.state().usage, state.usage)
