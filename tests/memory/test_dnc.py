"""The DNC's memory against loops written from the equations of Graves et al. 2016, by hand, and its gradients."""

import math

import pytest
import torch

from merlin.memory import MemoryConfig, dnc
from merlin.states import map_state

B, K, N, W, T = 3, 2, 5, 4, 9


def asked(seed=0, batch=B, scale=1.5):
    x = torch.randn(batch, dnc.interface_size(W, K), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return dnc.interface_of(scale * x, W, K)


def empty(batch=B):
    return dnc.initial_state(batch, N, W, K, dtype=torch.float64)


def cosine(x, y):
    """The package's: the epsilon lies inside the roots."""
    dot = sum(a * b for a, b in zip(x, y, strict=True))
    lengths = [math.sqrt(sum(a * a for a in v) + 1e-6) for v in (x, y)]
    return dot / (lengths[0] * lengths[1])


def content(memory, key, strength):
    scores = [math.exp(strength * cosine(key, row)) for row in memory]
    return [score / sum(scores) for score in scores]


def slowly(state, ask):
    """One step of one batch row, by loops over slots; plain lists in and out."""
    memory, usage, precedence, links, written, reads = (x.tolist() for x in state)
    a = dnc.Interface(*(x.tolist() for x in ask))
    retention = [math.prod(1 - a.free_gates[k] * reads[k][i] for k in range(K)) for i in range(N)]
    usage = [(usage[i] + written[i] - usage[i] * written[i]) * retention[i] for i in range(N)]
    order, room, product = sorted(range(N), key=lambda i: usage[i]), [0.0] * N, 1.0
    for i in order:
        room[i] = (1 - usage[i]) * product
        product *= usage[i]
    alike = content(memory, a.write_key, a.write_strength)
    gate = a.allocation_gate
    written = [a.write_gate * (gate * room[i] + (1 - gate) * alike[i]) for i in range(N)]
    memory = [[memory[i][w] * (1 - written[i] * a.erase[w]) + written[i] * a.word[w] for w in range(W)]
              for i in range(N)]  # fmt: skip
    links = [[0.0 if i == j else (1 - written[i] - written[j]) * links[i][j] + written[i] * precedence[j]
              for j in range(N)] for i in range(N)]  # fmt: skip
    precedence = [(1 - sum(written)) * precedence[i] + written[i] for i in range(N)]
    new = []
    for k in range(K):
        forward = [sum(links[i][j] * reads[k][j] for j in range(N)) for i in range(N)]
        backward = [sum(links[j][i] * reads[k][j] for j in range(N)) for i in range(N)]
        alike = content(memory, a.read_keys[k], a.read_strengths[k])
        back, by_content, on = a.read_modes[k]
        new.append([back * backward[i] + by_content * alike[i] + on * forward[i] for i in range(N)])
    words = [[sum(new[k][i] * memory[i][w] for i in range(N)) for w in range(W)] for k in range(K)]
    return words, dnc.DNCState(*(torch.tensor(x).double() for x in (memory, usage, precedence, links, written, new)))


def test_steps_are_those_of_the_equations():
    state = empty()
    rows = [map_state(lambda x, b=b: x[b], state) for b in range(B)]
    for t in range(T):
        ask = asked(t)
        (words, weights), state = dnc.step(state, ask)
        for b in range(B):
            expected, rows[b] = slowly(rows[b], map_state(lambda x, b=b: x[b], ask))
            torch.testing.assert_close(words[b], torch.tensor(expected).double())
            for ours, theirs in zip(state, rows[b], strict=True):
                torch.testing.assert_close(ours[b], theirs)
        torch.testing.assert_close(state.read_weights, weights)
    assert state.links.abs().max() > 0.05 and state.usage.max() > 0.3


def test_allocation_by_hand():
    usage = torch.tensor([[0.5, 0.0, 1.0, 0.25]], dtype=torch.float64)
    # the freest is slot 1; after it the product is 0
    torch.testing.assert_close(dnc.allocation(usage), torch.tensor([[0.0, 1.0, 0.0, 0.0]]).double())
    usage = torch.tensor([[0.5, 0.25, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(dnc.allocation(usage), torch.tensor([[0.5 * 0.25, 0.75, 0.0]]).double())
    assert not dnc.allocation(torch.ones(2, N)).any(), "in a full memory there is no room"


def gates(write=1.0, allocation=1.0, free=0.0, modes=(0.0, 1.0, 0.0), word=None, read_key=None):
    ask = asked(batch=1)
    one = torch.ones(1, dtype=torch.float64)
    zeros = torch.zeros(1, W, dtype=torch.float64)
    return ask._replace(
        erase=torch.ones_like(zeros), word=zeros if word is None else word, write_gate=one * write,
        allocation_gate=one * allocation, free_gates=torch.full((1, K), free, dtype=torch.float64),
        read_modes=torch.tensor(modes, dtype=torch.float64).expand(1, K, 3),
        read_strengths=100 * torch.ones(1, K).double(),
        read_keys=ask.read_keys if read_key is None else read_key.expand(1, K, W),
    )  # fmt: skip


def test_words_are_recalled_in_the_order_in_which_they_were_written():
    words = torch.eye(W, dtype=torch.float64)
    state = empty(1)
    for word in words:
        _, state = dnc.step(state, gates(word=word.unsqueeze(0)))
    (found, _), state = dnc.step(state, gates(write=0.0, read_key=words[1]))
    torch.testing.assert_close(found[0, 0], words[1], atol=1e-4, rtol=0)
    for modes, expected in (((0, 0, 1), 2), ((0, 0, 1), 3), ((1, 0, 0), 2), ((1, 0, 0), 1)):
        (found, _), state = dnc.step(state, gates(write=0.0, modes=[float(x) for x in modes]))
        torch.testing.assert_close(found[0, 0], words[expected], atol=1e-4, rtol=0)


def test_a_slot_that_was_read_and_freed_is_written_again():
    state = empty(1)
    for value in range(N):
        _, state = dnc.step(state, gates(word=torch.eye(W).double()[[value % W]] * (1 + value)))
    assert (state.usage.sum() + 1) == pytest.approx(N, abs=1e-6), "of the last write usage knows a step later"
    _, full = dnc.step(state, gates(word=torch.ones(1, W).double()))
    assert full.write_weights.abs().max() < 1e-9
    state = state._replace(read_weights=torch.eye(N).double()[[2, 2]].unsqueeze(0))
    _, state = dnc.step(state, gates(word=torch.ones(1, W).double(), free=1.0))
    torch.testing.assert_close(state.write_weights[0], torch.eye(N).double()[2])
    torch.testing.assert_close(state.memory[0, 2], torch.ones(W).double())


def test_nothing_is_written_through_a_shut_gate():
    state = empty()
    for t in range(4):
        _, state = dnc.step(state, asked(t))
    ask = asked(9)._replace(write_gate=torch.zeros(B).double(), free_gates=torch.zeros(B, K).double())
    _, after = dnc.step(state, ask)
    for name in ("memory", "links", "precedence"):
        torch.testing.assert_close(getattr(after, name), getattr(state, name))


def test_weights_stay_weights_and_rows_are_independent():
    state, alone = empty(), empty(1)
    for t in range(30):
        ask = asked(t, scale=3.0)
        _, state = dnc.step(state, ask)
        _, alone = dnc.step(alone, map_state(lambda x: x[1:2], ask))
    for x in (state.write_weights, state.read_weights, state.precedence):
        assert x.min() >= 0 and x.sum(-1).max() <= 1 + 1e-9
    assert state.usage.min() >= 0 and state.usage.max() <= 1 + 1e-9
    assert state.links.min() >= 0 and state.links.sum(-1).max() <= 1 + 1e-9 and state.links.sum(1).max() <= 1 + 1e-9
    for x, y in zip(map_state(lambda x: x[1:2], state), alone, strict=True):
        torch.testing.assert_close(x, y)


def test_gradients_through_several_steps():
    x = (1.5 * torch.randn(4, 1, dnc.interface_size(W, K), dtype=torch.float64)).requires_grad_()

    def reads(x):
        state, words = empty(1), []
        for row in x:
            (found, _), state = dnc.step(state, dnc.interface_of(row, W, K))
            words.append(found)
        return torch.stack(words)

    # from the second step on: the usages that are sorted are all different then
    assert torch.autograd.gradcheck(reads, x, eps=1e-6, atol=1e-5, fast_mode=True)


def test_the_interface_uses_every_number_once():
    x = torch.arange(dnc.interface_size(W, K), dtype=torch.float64).unsqueeze(0).requires_grad_()
    ask = dnc.interface_of((x + 1) / 100, W, K)
    assert sum(part.numel() for part in ask) == x.numel()
    torch.cat([part.flatten() * (1 + i) for i, part in enumerate(ask)]).square().sum().backward()
    assert (x.grad != 0).all()
    assert ask.read_strengths.min() >= 1 and ask.write_strength.min() >= 1
    torch.testing.assert_close(ask.read_modes.sum(-1), torch.ones(1, K).double())


def test_a_plain_write_goes_where_there_is_room():
    memory = dnc.DNCMemory(W, MemoryConfig(memory_size=N), K)
    state = memory.initial_state(1)
    for value in range(3):
        state, slot = memory.write(state, torch.full((1, W), 1.0 + value), torch.zeros(1, K, N))
        assert slot is None
    assert sorted(state.memory[0, :, 0].tolist()) == [0, 0, 1, 2, 3]
    found = memory.read(state, torch.ones(1, K, W), torch.full((1, K), 5.0))
    assert found.words.shape == (1, K, W) and found.weights.shape == (1, K, N)
