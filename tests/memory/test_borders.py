"""What `merlin.memory` is passed: shapes that do not fit are told by name, and flags may be numbers."""

import pytest
import torch
from jaxtyping import TypeCheckError

from merlin import memory as memories
from merlin.errors import MerlinError

B, K, N, Z = 3, 2, 5, 4
W = 2 * Z


def written_state():
    state = memories.initial_state(B, N, W)
    for number in range(3):
        word = torch.randn(B, Z, generator=torch.Generator().manual_seed(number))
        state = memories.write(state, word, torch.full((B, K, N), 0.2), 0.9)
    return state


def raises(message: str):
    """Expect the sentence; where the tests' own checks of annotations are quicker than it, theirs."""
    return pytest.raises((MerlinError, TypeCheckError), match=f"{message}|Type-check error")


@pytest.mark.parametrize("width", [1, 3, 5, 9, W])
def test_words_of_another_width_are_refused(width):
    """Never cut, nor broadcast."""
    with pytest.raises(MerlinError, match=rf"word must have the shape \[{B}, {Z}\], but it has \[{B}, {width}\]"):
        memories.write(written_state(), torch.ones(B, width), torch.zeros(B, K, N), 0.9)
    if width != W:
        with pytest.raises(MerlinError, match=rf"word must have the shape \[{B}, {W}\]"):
            memories.write(written_state(), torch.ones(B, width), torch.zeros(B, K, N))


def test_a_slot_of_odd_width_has_no_halves():
    with pytest.raises(MerlinError, match=r"twice as wide as a word.*its width is 7"):
        memories.write(memories.initial_state(B, N, 7), torch.ones(B, 3), torch.zeros(B, K, N), 0.9)


@pytest.mark.parametrize("discount", [-0.1, 1.0, 2.0])
def test_a_discount_is_at_least_0_and_below_1(discount):
    with pytest.raises(MerlinError, match="retroactive_discount must be in"):
        memories.write(written_state(), torch.ones(B, Z), torch.zeros(B, K, N), discount)


@pytest.mark.parametrize("shape", [(B, K, N - 1), (B, K, 1), (1, K, N), (B, N)])
def test_read_weights_are_those_of_all_slots(shape):
    with raises(rf"read_weights must have the shape \[{B}, K, {N}\]"):
        memories.write(written_state(), torch.ones(B, Z), torch.zeros(shape), 0.9)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"keys": torch.zeros(B, K, W - 1)}, r"keys must have the shape \[3, K, 8\], but it has \[3, 2, 7\]"),
        ({"keys": torch.zeros(1, K, W)}, r"keys must have the shape \[3, K, 8\]"),
        ({"keys": torch.zeros(B, W)}, r"keys must have the shape"),
        ({"strengths": torch.zeros(B, 1)}, r"strengths must have the shape \[3, 2\], but it has \[3, 1\]"),
        ({"strengths": torch.zeros(B, K, 1)}, r"strengths must have the shape"),
        ({"readable": torch.zeros(1, N, dtype=torch.bool)}, r"readable must have the shape \[3, 5\]"),
        ({"memory": torch.zeros(B, W)}, r"A memory has the axes \[B, N, W\]"),
        ({"top_k": 0}, r"top_k must be at least 1, or None, but it is 0"),
    ],
)
def test_reads_of_another_shape_are_refused(changed, message):
    fits = {"memory": torch.zeros(B, N, W), "keys": torch.zeros(B, K, W), "strengths": torch.zeros(B, K)}
    memories.read(**fits)
    with raises(message):
        memories.read(**fits | changed)


@pytest.mark.parametrize("sizes", [(B, 0, W), (B, N, 0), (-1, N, W)])
def test_a_memory_has_slots_of_some_width(sizes):
    with pytest.raises(MerlinError, match="at least one slot"):
        memories.initial_state(*sizes)


@pytest.mark.parametrize("arguments", [(0, W, K), (4, 0, K), (4, W, 0), (4, W, K, 0.0)])
def test_a_reader_has_keys_of_some_width(arguments):
    with pytest.raises(MerlinError, match="sizes must be at least 1 and its strength above 0"):
        memories.Reader(*arguments)


def test_a_reader_reads_hidden_states_of_its_width():
    with pytest.raises(MerlinError, match=r"hidden must have the shape \[B, 7\], but it has \[3, 6\]"):
        memories.Reader(7, W, K)(torch.zeros(B, 6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool])
def test_flags_may_be_numbers(dtype):
    state, flags = written_state(), torch.tensor([1, 0, 1])
    found = memories.reset(state, flags.to(dtype))
    for x, y in zip(found, state, strict=True):
        assert (x[flags == 1] == 0).all() and torch.equal(x[1], y[1])


@pytest.mark.parametrize("shape", [(), (1,), (B, 1), (B + 1,)])
def test_there_is_a_flag_for_each_row(shape):
    with raises(rf"is_first must have the shape \[{B}\]"):
        memories.reset(written_state(), torch.ones(shape, dtype=torch.bool))


@pytest.mark.parametrize("discount", [0.9, None])
def test_autocast_leaves_the_types_of_reads_and_writes(discount):
    reader, width = memories.Reader(8, W, K), Z if discount else W
    layer, hidden = torch.nn.Linear(8, width), torch.randn(B, 8)
    states = []
    for is_on in (False, True):
        state = memories.initial_state(B, N, W)
        with torch.autocast("cpu", torch.bfloat16, enabled=is_on):
            for _ in range(N + 2):
                read = memories.read(state.memory, *reader(hidden), memories.written(state))
                state = memories.write(state, layer(hidden), read.weights, discount)
                assert {x.dtype for x in (*read, *state[:4])} == {torch.float32}
        states.append(state)
    for x, y in zip(*states, strict=True):
        torch.testing.assert_close(x, y, atol=0.05, rtol=0.05)


def test_usage_counts_on_where_bfloat16_would_not():
    state = memories.initial_state(1, 2, W, dtype=torch.bfloat16)
    assert state.memory.dtype == torch.bfloat16 and state.usage.dtype == torch.float32
    for _ in range(300):
        state = memories.write(state, torch.zeros(1, Z, dtype=torch.bfloat16), torch.ones(1, 1, 2), 0.9)
    assert (state.usage > 256).all() and state.write_weights.dtype == torch.bfloat16


@pytest.mark.parametrize("discount", [0.9, None])
def test_a_batch_may_be_of_none(discount):
    state, width = memories.initial_state(0, N, W), Z if discount else W
    read = memories.read(state.memory, *memories.Reader(8, W, K)(torch.zeros(0, 8)), memories.written(state))
    state = memories.write(state, torch.zeros(0, width), read.weights, discount)
    assert read.words.shape == (0, K, W) and state.memory.shape == (0, N, W)


@pytest.mark.parametrize("memory_type", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("key_type", [torch.float64, torch.float32, torch.bfloat16])
def test_keys_of_another_type_are_taken_in_the_memorys(memory_type, key_type):
    """As words are: a model in float64 meets a memory in float32, which `initial_state` makes unless told."""
    memory, keys, strengths = torch.eye(W).expand(B, W, W), torch.eye(W)[:K].expand(B, K, W), torch.full((B, K), 4.0)
    read = memories.read(memory.to(memory_type), keys.to(key_type), strengths.to(key_type))
    assert read.words.dtype == read.weights.dtype == memory_type
    torch.testing.assert_close(read.weights, memories.read(memory, keys, strengths).weights, check_dtype=False)
