"""The memory that an agent asks for by name, in both of its forms, and one that somebody else wrote."""

from typing import NamedTuple

import pytest
import torch

from merlin import memory as memories
from merlin.errors import MerlinError
from merlin.memory import ContentMemory, Memory, MemoryConfig, Read, make_memory
from merlin.states import map_state
from tests.agents.helpers import act, make_agent

B, K, N, Z, T = 3, 2, 5, 4, 9


class LastWords(NamedTuple):
    """The words written so far, the newest first."""

    words: torch.Tensor


class Queue(Memory):
    """Holds the last N words, and gives each key their mean; where a word went is of no use to it."""

    def initial_state(self, batch_size, device=None):
        return LastWords(torch.zeros(batch_size, self.config.memory_size, self.word_size, device=device))

    def read(self, state, keys, strengths):
        weights = torch.full((*strengths.shape, state.words.shape[1]), 1 / state.words.shape[1])
        return Read(weights @ state.words, weights)

    def write(self, state, word, read_weights, slot=None):
        return LastWords(torch.cat([word.unsqueeze(1), state.words[:, :-1]], 1)), None


class Unread(Queue):
    """Adds each word to the slot that was read least, which it tells nobody."""

    def read(self, state, keys, strengths):
        return memories.read(state.words, keys, 5 * strengths)

    def write(self, state, word, read_weights, slot=None):
        slot = read_weights.mean(1).argmin(1).view(-1, 1, 1).expand(-1, 1, self.word_size)
        return LastWords(state.words.scatter_add(1, slot, word.unsqueeze(1))), None


class NoMemory:
    """Of a name, but no memory."""


def test_a_memory_is_made_by_its_name():
    assert isinstance(make_memory(Z, MemoryConfig()), ContentMemory)
    memory = make_memory(Z, MemoryConfig(memory=f"{__name__}:Queue", memory_size=N))
    assert isinstance(memory, Memory) and type(memory).__name__ == "Queue" and memory.slot_size == Z


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("contents", "memory must be one of content or module:Name, but is 'contents': did you mean 'content'"),
        (f"{__name__}:NoMemory", "must name a class derived from Memory, but what it has of that name is none"),
        (f"{__name__}:Missing", "must name a class derived from Memory, but .* has nothing of that name"),
        ("no_such_module:Queue", "cannot be imported: ModuleNotFoundError"),
    ],
)
def test_what_is_no_memory_is_refused_by_name(name, sentence):
    with pytest.raises(MerlinError, match=sentence):
        make_memory(Z, MemoryConfig(memory=name))


@pytest.mark.parametrize("discount", [0.8, None])
@pytest.mark.parametrize("mask_unwritten", [True, False])
@pytest.mark.parametrize("top_k", [None, 2])
def test_both_forms_of_the_content_memory_are_the_functions(discount, mask_unwritten, top_k):
    config = MemoryConfig(memory_size=N, retroactive_discount=discount, mask_unwritten=mask_unwritten, top_k=top_k)
    memory = ContentMemory(Z, config)
    assert memory.slot_size == (Z if discount is None else 2 * Z)
    plain = memory.initial_state(B)
    for _ in range(N):  # a full one, of which no slots are equally empty
        plain, slot = memory.write(plain, torch.randn(B, Z), torch.rand(B, K, N))
    windowed, expected = memory.begin_window(plain, T), plain
    for _ in range(T):
        keys, strengths, word = torch.randn(B, K, memory.slot_size), torch.rand(B, K), torch.randn(B, Z)
        readable = memories.written(expected) if mask_unwritten else None
        read = memories.read(expected.memory, keys, strengths, readable, top_k)
        for state in (plain, windowed):
            torch.testing.assert_close(memory.read(state, keys, strengths).words, read.words, rtol=1e-4, atol=1e-5)
        weights = memory.read(windowed, keys, strengths).weights
        windowed, windowed_slot = memory.write(windowed, word, weights)
        plain, slot = memory.write(plain, word, read.weights)
        expected = memories.write(expected, word, read.weights, discount)
        assert torch.equal(slot, expected.write_weights.argmax(-1)) and torch.equal(slot, windowed_slot)
        assert torch.equal(memory.last_word(plain), word)
    for state in (plain, memory.end_window(windowed)):
        for x, y in zip(state, expected, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


def test_a_word_goes_where_it_is_told_to_in_both_forms():
    memory = ContentMemory(Z, MemoryConfig(memory_size=N))
    plain = memory.initial_state(B)
    windowed, slot = memory.begin_window(plain, 2), torch.tensor([3, 0, 4])
    for word in torch.randn(2, B, Z):
        plain, found = memory.write(plain, word, torch.zeros(B, K, N), slot)
        entries = torch.zeros(B, K, windowed.window.held + windowed.step)
        windowed, windowed_found = memory.write(windowed, word, entries, slot)
        assert torch.equal(found, slot) and torch.equal(windowed_found, slot)
        assert torch.equal(plain.memory[torch.arange(B), slot, :Z], word)
    torch.testing.assert_close(memory.end_window(windowed), plain)


@pytest.mark.parametrize("name", ["merlin", "ftw", "rl-mem"])
def test_an_agent_learns_with_a_memory_that_somebody_else_wrote(name):
    agent = make_agent(name, memory=f"{__name__}:Queue")
    is_first = torch.rand(T, B, generator=torch.Generator().manual_seed(0)) < 0.2
    unroll, initial, final, _ = act(agent, is_first)
    assert unroll.extras.slots is None
    losses, after = agent.losses(unroll, initial)
    losses.total.backward()
    assert losses.metrics["policy_kl_nats"].abs() < 1e-5
    torch.testing.assert_close(agent.memory_state(after).words, agent.memory_state(final).words)
    if name == "merlin":
        learnt = {n: p.grad.clone() for n, p in agent.policy.named_parameters() if p.grad is not None}
        assert {n.partition(".")[0] for n in learnt} == {"lstm", "head"}, "a mean needs no key"
        agent.zero_grad()
        agent.policy_losses(unroll, initial).total.backward()
        for n, gradient in learnt.items():
            torch.testing.assert_close(agent.policy.get_parameter(n).grad, gradient, rtol=1e-4, atol=1e-6)
    else:
        writer = agent.projection if name == "rl-mem" else agent.core.fast_writer
        assert writer.weight.grad.any(), "its words have gradients"


@pytest.mark.parametrize("name", ["merlin", "ftw", "rl-mem"])
@pytest.mark.parametrize("dtype, is_autocast", [(torch.float64, False), (torch.bfloat16, False), (torch.float32, True)])
def test_somebody_elses_memory_is_of_the_agents_type_and_is_written_in_its_own(name, dtype, is_autocast):
    agent = make_agent(name, memory=f"{__name__}:Unread").to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
        unroll, initial, final, _ = act(agent, torch.rand(T, B, generator=torch.Generator().manual_seed(0)) < 0.2)
        losses, after = agent.losses(unroll, initial)
    losses.total.backward()
    assert {agent.memory_state(state).words.dtype for state in (initial, final, after)} == {dtype}


def test_a_policy_that_learns_again_reads_what_the_predictors_reads_wrote():
    agent = make_agent("merlin", memory=f"{__name__}:Unread")
    unroll, initial, _, _ = act(agent, torch.rand(T, B, generator=torch.Generator().manual_seed(0)) < 0.1)
    agent.losses(unroll, initial)[0].total.backward()
    learnt = [p.grad.clone() for p in agent.policy.parameters()]
    agent.zero_grad()
    agent.policy_losses(unroll, initial).total.backward()
    for parameter, gradient in zip(agent.policy.parameters(), learnt, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_an_end_of_a_window_is_cut_from_the_graph():
    memory = make_memory(Z, MemoryConfig(memory=f"{__name__}:Queue", memory_size=N))
    state = memory.begin_window(memory.initial_state(B), T)
    state, _ = memory.write(state, torch.randn(B, Z, requires_grad=True), torch.zeros(B, K, N))
    assert state.words.requires_grad and not memory.end_window(state).words.requires_grad
    assert memory.last_word(map_state(torch.clone, state)) is None
