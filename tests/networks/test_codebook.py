"""The codebook against slow loops in NumPy, and the identities of its gradients."""

import math

import numpy as np
import pytest
import torch

from merlin import distributed
from merlin.errors import MerlinError
from merlin.networks.codebook import SMOOTHING, Codebook, draw_apart, perplexity
from tests.runs.test_distributed import ends, together

UPDATES = ["loss", "ema"]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def make(update: str, size: int = 5, width: int = 3, **options) -> Codebook:
    """Return a codebook in float64 that has seen a batch, with codes of its own."""
    codebook = Codebook(size, width, update=update, **options).double()
    with torch.no_grad():
        codebook.codes.copy_(randn(size, width, seed=7))
        codebook.usage.copy_(torch.arange(2.0, 2 + size))
        if update == "ema":
            codebook.sums.copy_(codebook.codes * codebook.usage.unsqueeze(1))
    return codebook


def snapshot(codebook: Codebook) -> dict[str, torch.Tensor]:
    return {name: x.clone() for name, x in codebook.state_dict().items()}


def clusters(centres: torch.Tensor, rows: int, seed: int = 0) -> torch.Tensor:
    """Return rows close around centres, as many of each."""
    return centres.repeat_interleave(rows, 0) + 1e-3 * randn(len(centres) * rows, centres.shape[1], seed=seed)


@pytest.mark.parametrize("update", UPDATES)
def test_every_encoding_becomes_exactly_the_nearest_code(update):
    codebook, u = make(update, commitment_cost=0.4).eval(), randn(4, 6, 3)
    q = codebook(u)
    used = set()
    for place in np.ndindex(4, 6):
        distances = [
            sum((a - b) ** 2 for a, b in zip(u[place].tolist(), e.tolist(), strict=True)) for e in codebook.codes
        ]
        nearest = int(np.argmin(distances))
        used.add(nearest)
        assert q.indices[place] == nearest and torch.equal(q.vectors[place], codebook.codes[nearest])
        assert q.loss[place].item() == pytest.approx(distances[nearest] * (1.4 if update == "loss" else 0.4))
    assert 1 < len(used) == q.codes_used


def test_codes_are_the_nearest_far_from_the_origin_too():
    codes, u = randn(64, 16, seed=7) + 1000, randn(512, 16) + 1000
    codebook = Codebook(64, 16, update="loss").eval()
    codebook.codes.data.copy_(codes)
    nearest = (u.float().double().unsqueeze(1) - codebook.codes.double()).square().sum(-1).argmin(-1)
    assert torch.equal(codebook(u.float()).indices, nearest)


@pytest.mark.parametrize("update", UPDATES)
def test_encoder_gets_the_decoders_gradient_and_the_commitment_codes_their_loss_alone(update):
    codebook, u, weights = make(update, commitment_cost=0.4), randn(4, 6, 3).requires_grad_(), randn(4, 6, 3, seed=1)
    before = codebook.codes.detach().clone()
    q = codebook(u)
    chosen = before[q.indices]
    torch.tanh(q.vectors * weights).sum().backward()
    leaf = chosen.clone().requires_grad_()
    (of_decoder,) = torch.autograd.grad(torch.tanh(leaf * weights).sum(), leaf)
    assert torch.equal(u.grad, of_decoder)
    assert codebook.codes.grad is None, "reconstruction teaches no code"

    q.loss.sum().backward()
    torch.testing.assert_close(u.grad, of_decoder + 2 * 0.4 * (u.detach() - chosen))
    if update == "ema":
        assert not codebook.codes.requires_grad and list(codebook.parameters()) == []
        return
    expected = torch.zeros_like(before)
    for row, index in zip(u.detach().view(-1, 3), q.indices.flatten(), strict=True):
        expected[index] += 2 * (before[index] - row)
    torch.testing.assert_close(codebook.codes.grad, expected)


def test_moving_averages_equal_a_slow_loop():
    codebook = make("ema", decay=0.9, reseed_below=0.0)
    codes, usage, sums = (x.numpy().copy() for x in (codebook.codes, codebook.usage, codebook.sums))
    for step in range(20):
        u = randn(2, 7, 3, seed=step) + 0.1 * step
        codebook(u)
        counts, total = np.zeros(5), np.zeros((5, 3))
        for row in u.reshape(-1, 3).numpy():
            k = int(np.argmin([((row - code) ** 2).sum() for code in codes]))
            counts[k] += 1
            total[k] += row
        for k in range(5):
            usage[k] = 0.9 * usage[k] + 0.1 * counts[k]
            sums[k] = 0.9 * sums[k] + 0.1 * total[k]
        n = sum(usage)
        for k in range(5):
            codes[k] = sums[k] / ((usage[k] + SMOOTHING) / (n + 5 * SMOOTHING) * n)
    for ours, slow in ((codebook.codes, codes), (codebook.usage, usage), (codebook.sums, sums)):
        np.testing.assert_allclose(ours.numpy(), slow, rtol=1e-10)


def test_without_decay_a_batch_is_a_step_of_k_means():
    codebook = make("ema", decay=0.0, reseed_below=0.0)
    with torch.no_grad():
        codebook.codes[4] = 1e3  # of which no encoding is near
    before, u = codebook.codes.clone(), randn(200, 3)
    indices = codebook(u).indices
    for k in range(4):
        torch.testing.assert_close(codebook.codes[k], u[indices == k].mean(0), rtol=1e-4, atol=1e-5)
    assert torch.equal(codebook.codes[4], before[4]), "no mean of nothing"


def test_usage_is_the_moving_mean_of_counts_in_both_forms_of_update():
    u = randn(50, 3)
    usage = [(codebook := make(update, decay=0.75), codebook(u), codebook.usage)[-1] for update in UPDATES]
    counts = torch.bincount(make("ema").eval()(u).indices, minlength=5)
    for x in usage:
        torch.testing.assert_close(x, 0.75 * torch.arange(2.0, 7.0).double() + 0.25 * counts)


@pytest.mark.parametrize("update", UPDATES)
def test_eval_mode_changes_nothing(update):
    for codebook in (make(update).eval(), Codebook(5, 3, update=update).double().eval()):
        before = snapshot(codebook)
        codebook(randn(50, 3))
        after = codebook.state_dict()
        assert all(torch.equal(x, after[name]) for name, x in before.items())


@pytest.mark.parametrize("update", UPDATES)
def test_the_first_batch_seeds_the_codes_far_apart(update):
    centres = 10 * torch.eye(8, dtype=torch.float64)
    codebook, u = Codebook(8, 8, update=update, decay=0.9).double(), clusters(centres, 20)
    q = codebook(u, torch.Generator().manual_seed(0))
    assert q.perplexity.item() == pytest.approx(8) and q.codes_used == 8, "a code for each cluster"
    torch.testing.assert_close(codebook.usage, torch.full((8,), 20.0).double())
    if update == "loss":
        assert all((u == code).all(1).any() for code in codebook.codes), "codes are encodings"
    else:
        torch.testing.assert_close(codebook.sums, codebook.usage.unsqueeze(1) * codebook.codes, rtol=1e-5, atol=1e-4)
    before = codebook.codes.detach().clone()
    codebook(u + 1)
    assert update == "ema" or torch.equal(codebook.codes, before), "once"


@pytest.mark.parametrize("update", UPDATES)
def test_dead_codes_alone_are_seeded_again_where_encodings_are_far_from_codes(update):
    centres = 10 * torch.eye(5, dtype=torch.float64)
    codebook = make(update, width=5, decay=0.99, reseed_below=0.1)
    with torch.no_grad():
        codebook.codes.copy_(centres)
        codebook.codes[[1, 3]] = 1e3
        codebook.usage.copy_(torch.tensor([10, 0.59, 10, 0.5, 10]))  # a tenth of the mean is 0.62
        if update == "ema":
            codebook.sums.copy_(codebook.codes * codebook.usage.unsqueeze(1))
    u = clusters(centres, 8)
    q = codebook(u, torch.Generator().manual_seed(0))
    assert q.codes_used == 5
    torch.testing.assert_close(codebook.codes[[0, 2, 4]], centres[[0, 2, 4]], rtol=1e-3, atol=1e-3)
    assert ((codebook.codes[[1, 3]].unsqueeze(1) - centres[[1, 3]]).norm(dim=2).amin(0) < 0.1).all()
    torch.testing.assert_close(codebook.usage[[1, 3]], torch.full((2,), 8.0).double())


def test_codes_above_the_limit_and_all_codes_without_one_stay():
    far, u = 1e3 * torch.ones(3, dtype=torch.float64), randn(50, 3)
    for reseed_below, usage in ((0.1, 0.7), (0.0, 1e-300)):
        codebook = make("loss", reseed_below=reseed_below)
        with torch.no_grad():
            codebook.codes[2] = far
            codebook.usage.copy_(torch.tensor([7, 7, usage, 7, 7]))
        codebook(u)
        assert torch.equal(codebook.codes[2], far)


def test_seeds_follow_the_generator_alone():
    u = randn(300, 3)
    books = [Codebook(16, 3).double() for _ in range(3)]
    for book, seed in zip(books, (1, 1, 2), strict=True):
        torch.manual_seed(id(book) % 1000)
        book(u, torch.Generator().manual_seed(seed))
    assert torch.equal(books[0].codes, books[1].codes) and not torch.equal(books[0].codes, books[2].codes)


def test_rows_are_drawn_by_their_squared_distance():
    rows = torch.tensor([[0.0], [1.0], [2.0], [5.0]], dtype=torch.float64)
    generator, draws = torch.Generator().manual_seed(0), 1500
    drawn = torch.stack([draw_apart(rows, rows[:1], 1, generator)[0, 0] for _ in range(draws)])
    for place, part in ((0.0, 0), (1.0, 1 / 30), (2.0, 4 / 30), (5.0, 25 / 30)):
        frequency = (drawn == place).double().mean().item()
        assert abs(frequency - part) <= 5 * math.sqrt(part * (1 - part) / draws)
    assert sorted(draw_apart(rows, rows[:0], 4, generator).flatten().tolist()) == rows.flatten().tolist()
    assert draw_apart(rows[:1], rows[:0], 3, generator).tolist() == [[0.0]] * 3, "fewer rows than draws"


def test_perplexity_of_uniform_use_is_the_size():
    assert perplexity(torch.full((7,), 3.0).double()).item() == pytest.approx(7, abs=1e-12)
    assert perplexity(torch.tensor([0.0, 5, 0])) == 1
    assert perplexity(torch.tensor([1.0, 3]).double()).item() == pytest.approx(0.25**-0.25 * 0.75**-0.75)


@pytest.mark.parametrize("update", UPDATES)
def test_buffers_travel_and_training_goes_on_exactly(update):
    first, second = make(update, decay=0.9), Codebook(5, 3, update=update, decay=0.9).double()
    first(randn(50, 3))
    second.load_state_dict(first.state_dict())
    assert {"usage", "codes"} <= set(first.state_dict())
    for codebook in (first, second):
        codebook(randn(50, 3, seed=1))
    assert all(torch.equal(x, second.state_dict()[name]) for name, x in first.state_dict().items())


def test_autocast_does_not_round_what_is_counted():
    u = randn(200, 3).float()
    exact, cast = Codebook(16, 3), Codebook(16, 3)
    exact(u, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        cast(u, torch.Generator().manual_seed(0))
    assert torch.equal(exact.codes, cast.codes)


@pytest.mark.parametrize("update", UPDATES)
def test_training_lessens_the_distance_to_the_codes(update):
    u = randn(400, 3)
    codebook = Codebook(8, 3, update=update, decay=0.5).double()
    optimizer = torch.optim.SGD([*codebook.parameters(), torch.zeros(1, requires_grad=True)], lr=0.5)
    distances = []
    for _ in range(30):
        q = codebook(u, torch.Generator().manual_seed(0))
        optimizer.zero_grad()
        if update == "loss":
            (8 * q.loss.mean() / 2).backward()
        optimizer.step()
        distances.append((u - q.vectors).square().sum(-1).mean().item())
    assert distances[-1] < 0.85 * distances[0]


def learn_a_share(update: str) -> dict[str, torch.Tensor]:
    """Return what a codebook learns of this process's share of a batch, some of its codes being dead."""
    codebook, u = make(update, decay=0.9, reseed_below=0.3), randn(40, 3)
    share = u.view(distributed.world_size(), -1, 3)[distributed.rank()]
    codebook.usage[:2] = 0.01
    perplexities = [codebook(share, torch.Generator().manual_seed(3)).perplexity for _ in range(2)]
    return snapshot(codebook) | {"perplexities": torch.stack(perplexities)}


LEARN_A_SHARE = """
import sys, torch
from tests.networks.test_codebook import UPDATES, learn_a_share
from merlin import distributed
with distributed.joined(torch.device("cpu")):
    torch.save([learn_a_share(update) for update in UPDATES], f"{sys.argv[1]}.{distributed.rank()}")
"""


def test_processes_have_one_codebook(tmp_path):
    path = tmp_path / "codebooks"
    for code, output, errors in ends(together(["-c", LEARN_A_SHARE, str(path)])):
        assert code == 0, output + errors
    learnt = [torch.load(f"{path}.{rank}") for rank in range(2)]
    for update, *books in zip(UPDATES, *learnt, strict=True):
        assert all(torch.equal(x, books[1][name]) for name, x in books[0].items())
        reference, u = make(update, decay=0.9, reseed_below=0.3), randn(40, 3)
        reference.usage[:2] = 0.01
        rows = u[:20]  # the first process's encodings are the seeds
        seeds = draw_apart(rows, reference.codes.detach()[2:], 2, torch.Generator().manual_seed(3))
        with torch.no_grad():
            reference.codes[:2] = seeds
        reference.usage[:2] = 8
        if update == "ema":
            reference.sums[:2] = 8 * seeds
        expected = [reference(u).perplexity for _ in range(2)]
        torch.testing.assert_close(books[0]["perplexities"], torch.stack(expected))
        for name, x in reference.state_dict().items():
            torch.testing.assert_close(books[0][name], x)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"size": 1}, "size of a codebook must be a whole number of at least 2, but 1 came"),
        ({"width": 0}, "width of a codebook must be a whole number of at least 1, but 0 came"),
        ({"commitment_cost": -0.1}, "commitment_cost of a codebook must be at least 0 and finite, but -0.1 came"),
        ({"commitment_cost": math.nan}, "commitment_cost of a codebook must be"),
        ({"decay": 1.0}, "decay of a codebook must be at least 0 and less than 1, but 1.0 came"),
        ({"decay": -0.5}, "decay of a codebook must be at least 0"),
        ({"reseed_below": 1.0}, "reseed_below of a codebook must be at least 0 and less than 1, but 1.0 came"),
    ],
)
def test_what_is_out_of_range_is_told(options, told):
    with pytest.raises(MerlinError, match=told):
        Codebook(**{"size": 4, "width": 3, **options})


@pytest.mark.parametrize("shape", [(5, 4), (4, 3, 7), (0, 3), (6,)])
def test_encodings_of_another_shape_are_told(shape):
    codebook = Codebook(4, 3)
    before = snapshot(codebook)
    with pytest.raises(MerlinError, match=r"rows of 3 numbers, the codebook's width, but their shape is"):
        codebook(torch.zeros(shape))
    assert all(torch.equal(x, codebook.state_dict()[name]) for name, x in before.items())


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_codebook_of_few_digits_counts_as_one_of_many(update, dtype):
    few, many = (make(update, reseed_below=0.0).to(of) for of in (dtype, torch.float64))
    for t in range(200):
        rows = clusters(4 * randn(5, 3), 1000, seed=t).to(dtype)
        found, expected = (x(y, torch.Generator().manual_seed(t)) for x, y in ((few, rows), (many, rows.double())))
    assert found.vectors.dtype == found.loss.dtype == few.codes.dtype == dtype
    torch.testing.assert_close(few.usage, many.usage, rtol=0.01, atol=0)
    torch.testing.assert_close(few.codes.double(), many.codes.double(), rtol=0.02, atol=0.05)
    assert (found.indices == expected.indices).float().mean() > 0.98
