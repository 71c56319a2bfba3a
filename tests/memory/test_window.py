"""A window's memory, whose slots are never rewritten, against the same memory written step by step, in float64."""

import gc
import weakref
from functools import partial
from typing import NamedTuple

import pytest
import torch

from merlin import memory as memories
from merlin.errors import MerlinError
from merlin.memory.window import MemoryWindow
from merlin.states import map_state
from tests.agents.helpers import cast

close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-11)
close_gradients = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-10)

B, N, Z, K, T = 3, 5, 4, 2, 12  # more writes than slots
SWITCHES = [(0.8, True), (0.8, False), (None, True), (None, False)]
every_switch = pytest.mark.parametrize(("discount", "mask_unwritten"), SWITCHES)
every_before = pytest.mark.parametrize("before", [7, 2])


class Play(NamedTuple):
    """Experience of T steps, and the memory before each of them and at the end, written plainly."""

    initial: memories.MemoryState
    is_first: torch.Tensor
    slots: list[torch.Tensor]
    states: list[memories.MemoryState]
    words: torch.Tensor
    reads: torch.Tensor
    final: memories.MemoryState


def play(discount, seed, before=7, first_rate=0.15) -> Play:
    """Return a window's experience, which follows `before` other steps."""
    generator = torch.Generator().manual_seed(seed)
    random = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    state = memories.initial_state(B, N, Z if discount is None else 2 * Z, dtype=torch.float64)
    is_first = torch.rand(before + T, B, generator=generator) < first_rate
    words, reads = random(before + T, B, Z), random(before + T, B, K, N).softmax(-1)
    initial, states, slots = state, [], []
    for t in range(before + T):
        if t == before:
            initial = state
        states.append(memories.reset(state, is_first[t]))
        state = memories.write(states[t], words[t], reads[t], discount)
        slots.append(state.write_weights.argmax(-1))
    return Play(initial, *(x[before:] for x in (is_first, slots, states, words, reads)), state)


def begin(initial, discount, mask_unwritten=True):
    """Return the memory at a window's first step."""
    return MemoryWindow(initial, T, discount, mask_unwritten).begin(initial)


def random_keys(*shape, seed=9):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def expand(state, weights):
    """Return weights of slots [B, K, N] as weights of the window's entries."""
    window, held, readable = state.window, state.window.held, state.readable.squeeze(1)
    entries = torch.zeros(*weights.shape[:2], held + state.step, dtype=weights.dtype)
    for b in range(B):
        for slot in range(N):
            (holders,) = torch.nonzero(readable[b], as_tuple=True)
            owner = [e for e in holders.tolist() if window.slots[b, e].item() == slot]
            assert len(owner) <= 1, "a slot is one entry"
            if owner:
                entries[b, :, owner[0]] = weights[b, :, slot]
    return entries


@pytest.mark.parametrize(("seed", "before"), [(0, 7), (1, 7), (2, 7), (0, 2), (1, 2)])
@every_switch
def test_every_step_equals_the_memory_written_plainly(discount, mask_unwritten, seed, before):
    initial, is_first, slots, states, words, reads, final = play(discount, seed, before)
    state = begin(initial, discount, mask_unwritten)
    assert state.window.held == (min(before, N) if mask_unwritten else N)
    keys = random_keys(B, K, initial.memory.shape[-1])
    for t in range(T):
        state.reset(~is_first[t])  # in vain: a state is a value
        state = state.reset(is_first[t])
        close(state.memory_state().memory, states[t].memory)
        memory = states[t].memory
        readable = memories.written(states[t]) if mask_unwritten else torch.ones(B, N, dtype=torch.bool)
        assert torch.equal(state.readable.sum(-1).squeeze(1), readable.sum(-1))
        scores = (keys @ memory.mT).masked_fill(~readable.unsqueeze(1), 0)
        close(state.window.dots(state.at, keys).masked_fill(~state.readable, 0), expand(state, scores))
        weights = expand(state, reads[t])
        plain = reads[t].masked_fill(~readable.unsqueeze(1), 0)
        close(state.window.mix(state.at, weights), plain @ memory)
        if mask_unwritten:  # else those of an earlier episode have none
            norms = torch.rsqrt(memory.square().sum(-1) + memories.EPSILON).unsqueeze(1)
            norms = norms.masked_fill(~readable.unsqueeze(1), 0)
            close(state.inverse_norms.masked_fill(~state.readable, 0), expand(state, norms))
        state = state.write(words[t], weights, slots[t])
    after = state.memory_state()
    for name in ("memory", "num_written", "write_weights", "retroactive_weights"):
        close(getattr(after, name), getattr(final, name), msg=name)


@pytest.mark.parametrize("top_k", [None, 1, 3])
@every_before
@every_switch
def test_reads_equal_those_of_the_memory_written_plainly(discount, mask_unwritten, before, top_k):
    initial, is_first, slots, states, words, _, _ = play(discount, 4, before)
    state = begin(initial, discount, mask_unwritten)
    for t in range(T):
        state = state.reset(is_first[t])
        keys, strengths = random_keys(B, K, initial.memory.shape[-1], seed=t), random_keys(B, K, seed=t).exp()
        readable = memories.written(states[t]) if mask_unwritten else None
        expected = memories.read(states[t].memory, keys, strengths, readable, top_k)
        found = state.read(keys, strengths, top_k)
        close(found.words, expected.words)
        if mask_unwritten or top_k is None:  # else which of several empty slots is read is arbitrary
            close(found.weights.masked_fill(~state.readable, 0), found.weights)
            close(found.weights, expand(state, expected.weights))
        state = state.write(words[t], found.weights, slots[t])


@every_before
@every_switch
def test_dots_and_mix_are_adjoint_on_the_way_back(discount, mask_unwritten, before):
    initial, is_first, slots, _, words, _, _ = play(discount, 1, before)
    state = begin(initial, discount, mask_unwritten)
    window, keys = state.window, random_keys(B, K, initial.memory.shape[-1])
    ahead = []
    for t in range(T):
        state = state.reset(is_first[t])
        ahead.append((state.at, window.dots(state.at, keys), window.count_use()))
        state = state.write(words[t], torch.zeros_like(ahead[t][1]), slots[t])
    for at, expected, use in reversed(ahead):
        window.go_back_to(at.step, use)
        back = window.dots(at, keys)
        close(back, expected)
        weights = torch.randn_like(back)
        close((window.mix(at, weights) * keys).sum(), (weights * back).sum())


@every_before
@every_switch
def test_chosen_entries_are_as_among_all(discount, mask_unwritten, before):
    initial, is_first, slots, _, words, _, _ = play(discount, 3, before)
    state = begin(initial, discount, mask_unwritten)
    window, keys = state.window, random_keys(B, K, initial.memory.shape[-1])
    for t in range(T):
        state = state.reset(is_first[t])
        scores = window.dots(state.at, keys)
        few = min(3, scores.shape[2])
        chosen = torch.rand(scores.shape).topk(few).indices
        close(window.dots(state.at, keys, chosen), scores.gather(2, chosen))
        weights = torch.rand(B, K, few, dtype=torch.float64)
        everywhere = torch.zeros_like(scores).scatter(2, chosen, weights)
        close(window.mix(state.at, weights, chosen), window.mix(state.at, everywhere))
        state = state.write(words[t], everywhere, slots[t])


@pytest.mark.parametrize("discount", [0.8, None])
def test_slots_are_chosen_as_when_written_plainly(discount):
    """Reads of what is readable alone, so that usage is the same slot by slot."""
    played = play(discount, seed=2)
    plain = memories.initial_state(B, N, Z * (1 if discount is None else 2), dtype=torch.float64)
    state = begin(plain, discount)
    for t in range(T):
        plain, state = memories.reset(plain, played.is_first[t]), state.reset(played.is_first[t])
        weights = played.reads[t].masked_fill(~memories.written(plain).unsqueeze(1), 0)
        state = state.write(played.words[t], expand(state, weights))
        plain = memories.write(plain, played.words[t], weights, discount)
        assert torch.equal(state.window.slots[:, state.window.held + t], plain.write_weights.argmax(-1))
        close(state.memory_state(), plain)


def test_a_window_leaves_the_memory_that_it_began_with_alone():
    played = play(0.8, 0)
    before = [x.clone() for x in played.initial]
    state = begin(played.initial, 0.8)
    for t in range(T):
        state = state.reset(played.is_first[t]).write(played.words[t], torch.zeros(B, K, N + t, dtype=torch.float64))
    state.memory_state()
    assert all(torch.equal(x, y) for x, y in zip(before, played.initial, strict=True))


def of_slots(state, weights):
    """Return weights of entries as weights of slots."""
    slots = state.window.slots[:, None, : state.window.held + state.step].expand(-1, K, -1)
    return torch.zeros(B, K, N, dtype=weights.dtype).scatter_add(2, slots, weights)


def step_through(played, words, keys, strengths, discount, mask_unwritten, top_k, plain, look=None, recurrent=True):
    """Return the words of reads before and after each write, of a window or of the memory written plainly.

    A key that is read with depends on what was read before, as in a recurrent network, unless it is not recurrent.
    """
    state = played.initial if plain else begin(played.initial, discount, mask_unwritten)
    found = []

    def read(state, keys, strengths):
        if not plain:
            return state.read(keys, strengths, top_k)
        return memories.read(state.memory, keys, strengths, memories.written(state) if mask_unwritten else None, top_k)

    last = torch.zeros_like(keys[0])
    for t in range(len(words)):
        is_first = played.is_first[t]
        state = memories.reset(state, is_first) if plain else state.reset(is_first)
        before = 0.3 * last.masked_fill(is_first.view(-1, 1, 1), 0) if recurrent else 0.3
        early = read(state, keys[t] + before, strengths[t])
        if look is not None:
            look(state)
        last, weights = read(state, keys[t] - (0.3 * early.words if recurrent else 0.3), strengths[t])
        if plain:
            state, _ = memories.content.write_to(state, words[t], weights, discount, played.slots[t])
        else:
            state = state.write(words[t], weights.detach(), played.slots[t])
        found += [early.words, last]
    return found


def inputs_of(played):
    """Return words to write, keys and strengths, which gradients are asked for."""
    size = played.initial.memory.shape[-1]
    inputs = played.words.clone(), random_keys(T, B, K, size), random_keys(T, B, K, seed=8).exp()
    return tuple(x.requires_grad_() for x in inputs)


def weighed(found):
    """Return a sum of what was read, weighed at random."""
    return sum((x * random_keys(*x.shape, seed=i)).sum() for i, x in enumerate(found))


@pytest.mark.parametrize("top_k", [None, 2])
@pytest.mark.parametrize(("before", "first_rate"), [(7, 0.15), (2, 0.15), (7, 0.0)])
@every_switch
def test_gradients_of_keys_and_of_words_written_with_gradient(discount, mask_unwritten, before, first_rate, top_k):
    """With resets and slots that are used again, against automatic differentiation of the memory written plainly."""
    played = play(discount, 5, before, first_rate)
    settings = (discount, mask_unwritten, top_k)
    inputs = inputs_of(played)
    results = []
    for plain in (True, False):
        found = step_through(played, *inputs, *settings, plain)
        results.append((found, torch.autograd.grad(weighed(found), inputs)))
    (expected, expected_gradients), (found, gradients) = results
    for x, y in zip(found, expected, strict=True):
        close(x, y)
    for name, x, y in zip(("words", "keys", "strengths"), gradients, expected_gradients, strict=True):
        close_gradients(x, y, msg=lambda text, name=name: f"{name}: {text}")
        assert (y != 0).any(-1).float().mean() > 0.3, f"{name} matter"


@pytest.mark.parametrize("top_k", [None, 2])
@every_switch
def test_gradients_are_the_slopes_along_a_random_direction(discount, mask_unwritten, top_k):
    played = play(discount, 6)
    inputs = inputs_of(played)
    directions = [random_keys(*x.shape, seed=i) for i, x in enumerate(inputs)]

    def loss(offset):
        moved = (x + offset * direction for x, direction in zip(inputs, directions, strict=True))
        return weighed(step_through(played, *moved, discount, mask_unwritten, top_k, False))

    gradients = torch.autograd.grad(loss(0.0), inputs)
    slope = sum((x * direction).sum() for x, direction in zip(gradients, directions, strict=True))
    measured = (loss(1e-6) - loss(-1e-6)) / 2e-6
    torch.testing.assert_close(measured.detach(), slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "reached",
    [[0], [1], [2 * T - 1], [2 * T - 2], [8], [9], [3, 16], [0, 2 * T - 1]],
    ids=["first", "first's second", "last", "last's first", "early", "late of early", "two", "first and last"],
)
@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("learning", ["all", "words", "keys"])
def test_the_way_back_is_right_whatever_the_loss_reaches(reached, learning, recurrent):
    """Reads whose result is unused are passed through; words or keys alone may have gradients."""
    played = play(0.8, 5)
    every = inputs_of(played)
    inputs = [
        x if learning in ("all", name) else x.detach() for name, x in zip(("words", "keys", "-"), every, strict=True)
    ]
    wanted = [x for x in inputs if x.requires_grad]
    gradients = []
    for plain in (True, False):
        found = step_through(played, *inputs, 0.8, True, None, plain, recurrent=recurrent)
        loss = weighed([found[i] for i in reached])
        if not plain or loss.requires_grad:
            gradients.append(torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True))
    for x, y in zip(gradients[-1], gradients[0], strict=True):
        close_gradients(x, y)


@pytest.mark.parametrize("learning", ["all", "words", "keys"])
@pytest.mark.parametrize("of", [-1, 0, 7])
def test_a_window_is_gone_back_through_once(learning, of):
    """Also where the second pass is of something else, and where either of them stops half way."""
    played = play(0.8, 5)
    every = inputs_of(played)
    inputs = [
        x if learning in ("all", name) else x.detach() for name, x in zip(("words", "keys", "-"), every, strict=True)
    ]
    (first, *_) = (x for x in inputs if x.requires_grad)
    found = step_through(played, *inputs, 0.8, True, None, False)
    found[of].sum().backward(retain_graph=True)
    for again in (of, -1, 5):
        with pytest.raises(AssertionError, match="once"):
            found[again].sum().backward(retain_graph=True)
    found = step_through(played, *inputs, 0.8, True, None, False)
    torch.autograd.grad(found[-1].sum(), first, retain_graph=True)
    with pytest.raises(AssertionError, match="once"):
        torch.autograd.grad(found[-1].sum(), first)


def test_going_back_out_of_order_is_refused():
    """Without the thread, reads of keys that know nothing of each other would come in any order."""
    played = play(0.8, 5)
    _, keys, strengths = inputs_of(played)
    state, found = begin(played.initial, 0.8), []
    for t in range(3):
        state.thread[0] = torch.zeros((), requires_grad=True)
        read = state.read(keys[t], strengths[t])
        state = state.write(played.words[t], read.weights)
        found.append(read.words)
    found[1].sum().backward()
    with pytest.raises(AssertionError, match="from its last step to its first"):
        found[2].sum().backward()
    found[0].sum().backward()


def test_a_part_of_the_way_back_that_is_gone_twice_is_refused():
    """The gradient of the last read's own key goes no further than that read, whose words would learn of it again."""
    played = play(0.8, 5)
    words, keys, strengths = inputs_of(played)
    state = begin(played.initial, 0.8).write(words[0], torch.zeros(B, K, N, dtype=torch.float64))
    key = keys[1].detach().requires_grad_()
    loss = state.read(key, strengths[1]).words.sum()
    torch.autograd.grad(loss, key, retain_graph=True)
    with pytest.raises(AssertionError, match="once"):
        torch.autograd.grad(loss, words)


def test_only_the_last_step_is_read_and_written_and_nothing_after_the_way_back():
    played = play(0.8, 5)
    words, keys, strengths = inputs_of(played)
    start = begin(played.initial, 0.8)
    read = start.read(keys[0], strengths[0])
    after = start.write(words[0], read.weights)
    with pytest.raises(AssertionError, match="last step is read"):
        start.read(keys[1], strengths[1])
    with pytest.raises(AssertionError, match="one after another"):
        start.write(words[1], read.weights)
    with pytest.raises(AssertionError, match="at its end"):
        start.memory_state()
    after.read(keys[1], strengths[1]).words.sum().backward()
    with pytest.raises(AssertionError, match="last step is read"):
        after.read(keys[1], strengths[1])
    with pytest.raises(AssertionError, match="one after another"):
        after.write(words[1], torch.zeros(B, K, N + 1, dtype=torch.float64))
    with pytest.raises(AssertionError, match="at its end"):
        after.memory_state()


def test_no_more_steps_are_written_than_a_window_has():
    state = begin(play(0.8, 5).initial, 0.8)
    for t in range(T):
        state = state.write(torch.ones(B, Z, dtype=torch.float64), torch.zeros(B, K, N + t, dtype=torch.float64))
    keys, strengths = random_keys(B, K, 2 * Z), torch.ones(B, K, dtype=torch.float64)
    weights = state.read(keys, strengths).weights  # one more may be read
    with pytest.raises(AssertionError, match="one after another"):
        state.write(torch.ones(B, Z, dtype=torch.float64), weights)


@pytest.mark.parametrize("recurrent", [True, False])
@every_switch
def test_reading_without_gradients_in_between_leaves_no_trace(discount, mask_unwritten, recurrent):
    played = play(discount, 5)
    inputs = inputs_of(played)

    @torch.no_grad()
    def look(state):
        state.read(random_keys(B, K, played.initial.memory.shape[-1], seed=state.step), torch.ones(B, K).double(), 2)

    results = []
    for looked in (None, look):
        found = step_through(played, *inputs, discount, mask_unwritten, None, False, looked, recurrent)
        loss = weighed(found if recurrent else found[-1:])  # whose words the window's thread alone leads to
        gradients = torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
        assert all(x.any() for x in gradients)
        results.append((found, gradients))
    for xs, ys in zip(*results, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(xs, ys, strict=True))


def test_a_window_is_freed_without_the_garbage_collector():
    played = play(0.8, 5)
    inputs = inputs_of(played)
    gc.collect()
    gc.disable()
    try:
        for learnt in (True, False):
            state = begin(played.initial, 0.8)
            kept = [weakref.ref(state.window), weakref.ref(state.window.entries)]
            for t in range(3):
                read = state.read(inputs[1][t], inputs[2][t])
                kept.append(weakref.ref(read.words))
                state = state.write(inputs[0][t], read.weights)
            loss = read.words.sum()
            if learnt:
                loss.backward()
            del state, read, loss
            assert not any(ref() is not None for ref in kept)
    finally:
        gc.enable()


def write_some(memory, state, writes, word, read_weights, way):
    """Return the state in which some rows have written, by their condition or by their numbers."""
    if way == "condition":
        return memory.put_rows(state, memory.write(state, word, read_weights)[0], writes)
    rows = writes.nonzero().squeeze(1)
    if not len(rows):
        return state
    part, _ = memory.write(memory.rows_of(state, rows), word[rows], read_weights[rows])
    return memory.put_rows(state, part, rows)


@pytest.mark.parametrize("way", ["condition", "numbers"])
@pytest.mark.parametrize(("mask_unwritten", "top_k"), [(True, None), (True, 2), (False, None)])
def test_rows_that_do_not_write_are_as_they_were(mask_unwritten, top_k, way):
    """Two reads and two writes a step, the first of some rows alone, against each row by itself, gradients included."""
    config = memories.MemoryConfig(memory_size=N, retroactive_discount=None, mask_unwritten=mask_unwritten, top_k=top_k)
    memory = memories.make_memory(Z, config)
    played = play(None, 6)
    writes = torch.rand(T, B, generator=torch.Generator().manual_seed(3)) < 0.4
    words, keys, strengths = inputs_of(played)
    first_words = random_keys(T, B, Z, seed=11).requires_grad_()
    inputs = words, first_words, keys, strengths
    results = []
    for form in ("rows", "plain", "window"):
        state = played.initial
        rows = [map_state(lambda x, b=b: x[b : b + 1], state) for b in range(B)]
        state = memory.begin_window(state, 2 * T) if form == "window" else state
        found = []
        for t in range(T):
            if form == "rows":
                rows = [memories.reset(row, played.is_first[t, b : b + 1]) for b, row in enumerate(rows)]
                reads = []
                for b in range(B):
                    asked = (keys[t, b : b + 1], strengths[t, b : b + 1])
                    early = memory.read(rows[b], *asked)
                    if writes[t, b]:
                        rows[b], _ = memory.write(rows[b], first_words[t, b : b + 1], early.weights.detach())
                    late = memory.read(rows[b], -asked[0], asked[1])
                    rows[b], _ = memory.write(rows[b], words[t, b : b + 1], late.weights.detach())
                    reads.append((early.words, late.words))
                found += [torch.cat(x) for x in zip(*reads, strict=True)]
                continue
            state = state.reset(played.is_first[t]) if form == "window" else memories.reset(state, played.is_first[t])
            early = memory.read(state, keys[t], strengths[t])
            state = write_some(memory, state, writes[t], first_words[t], early.weights.detach(), way)
            late = memory.read(state, -keys[t], strengths[t])
            state, _ = memory.write(state, words[t], late.weights.detach())
            found += [early.words, late.words]
        if form == "rows":
            state = memories.MemoryState(*(torch.cat(x) for x in zip(*rows, strict=True)))
        ends = memory.end_window(state) if form == "window" else state
        results.append((found, list(ends), torch.autograd.grad(weighed(found), inputs)))
    expected = results[0]
    assert (expected[2][1] != 0).any(-1)[writes].any() and not expected[2][1][~writes].any()
    for ours in results[1:]:
        for x, y in zip([*ours[0], *ours[1]], [*expected[0], *expected[1]], strict=True):
            close(x, y)
        for x, y in zip(ours[2], expected[2], strict=True):
            close_gradients(x, y)


def test_words_written_aside_leave_no_trace():
    """Of a state that was detached: what it writes it reads, and nobody else does, past the last step too."""
    played = play(None, 7)
    found = []
    for looks in (False, True):
        state, inputs = begin(played.initial, None), inputs_of(played)
        reads = []
        for t in range(T):
            for word in (torch.ones(B, Z), torch.zeros(B, Z)) if looks else ():
                aside = state.detach()
                with torch.no_grad():
                    weights = aside.read(inputs[1][t], inputs[2][t]).weights
                    aside = aside.write(word.double(), weights)
                    found_again = aside.read(torch.ones(B, K, Z).double(), torch.full((B, K), 500.0).double()).words
                    assert not word.any() or torch.allclose(found_again, word.double().unsqueeze(1))
            words, weights = state.read(inputs[1][t], inputs[2][t])
            reads.append(words)
            state = state.write(inputs[0][t], weights.detach(), played.slots[t])
        found.append((reads, state.memory_state(), torch.autograd.grad(weighed(reads), inputs)))
    for ours, expected in zip(found[1], found[0], strict=True):
        for x, y in zip(ours, expected, strict=True):
            assert torch.equal(x, y)
    state = begin(play(0.8, 7).initial, 0.8)
    with pytest.raises(AssertionError, match="aside"):
        state.detach().write(torch.zeros(B, Z).double(), torch.zeros(B, K, state.window.held).double())


@pytest.mark.parametrize("size", [1, 300])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every_switch
def test_in_half_precision_steps_are_those_of_full_precision(discount, mask_unwritten, dtype, size):
    """Of words longer than 256 too, whose squares float16 does not hold."""
    played = play(discount, 0, first_rate=0)
    found = {}
    for kind in (torch.float64, dtype):
        initial = played.initial._replace(memory=size * played.initial.memory)
        state, reads = begin(cast(initial, kind), discount, mask_unwritten), []
        keys = (size * random_keys(T, B, K, initial.memory.shape[2])).to(kind)
        words = (size * played.words).to(kind).requires_grad_()
        for t, slot in enumerate(played.slots):
            read = state.read(keys[t], torch.full((B, K), 4.0, dtype=kind))
            state = state.write(words[t], read.weights, slot)
            reads.append(read.words / size)
        found[kind] = [torch.stack(reads), torch.autograd.grad(torch.stack(reads).sum(), words)[0] * size]
    for half, full in zip(found[dtype], found[torch.float64], strict=True):
        assert half.dtype == dtype
        torch.testing.assert_close(half.double(), full, atol=0.03 * float(full.detach().abs().max()), rtol=0)


def test_rows_that_write_alone_need_a_memory_without_traces():
    memory = memories.ContentMemory(Z, memories.MemoryConfig(memory_size=N))
    before = memory.begin_window(memory.initial_state(B), T)
    after, _ = memory.write(before, torch.zeros(B, Z), torch.zeros(B, K, 1))
    sentence = "retroactive_discount is 0.96: take model.retroactive_discount=none, or write every row"
    with pytest.raises(MerlinError, match=sentence):
        memory.put_rows(before, after, torch.tensor([True, False, True]))
    with pytest.raises(MerlinError, match=sentence):
        memory.rows_of(before, torch.tensor([0, 2]))
