"""A codebook in an autoencoder: views of a maze from inside, each told by 64 of 128 codes.

    python examples/codebook.py [--seeds 1 2 3] [--steps 600] [--out codebook.png]

It trains four codebooks on the same views: moved by the gradient of their loss or by moving averages (EMA), with dead
codes seeded again or not. It tells what reconstruction and codes are of held-out views, as a table in Markdown, and
draws some of them above what is made of their codes. A seed takes about a minute of one core.
"""

import argparse
import functools
import statistics
from pathlib import Path

import gymnasium
import torch
from PIL import Image
from torch import Tensor, nn

import merlin  # noqa: F401  registers the tasks
from merlin.networks.codebook import Codebook, draw_apart

SIZE, WIDTH, HIDDEN, BATCH, PIXELS = 128, 16, 48, 16, 32
FORMS = {"loss": ("loss", 0.0), "loss, re-seeded": ("loss", 0.01), "EMA": ("ema", 0.0), "EMA, re-seeded": ("ema", 0.01)}
"""How the codes learn, and below which part of the mean usage they are seeded again."""


class Autoencoder(nn.Module):
    """A picture of 32 x 32 pixels as 8 x 8 encodings, each the nearest of the codes, and back."""

    def __init__(self, update: str, reseed_below: float) -> None:
        super().__init__()
        conv = functools.partial(nn.Conv2d, kernel_size=3, padding=1)
        self.encoder = nn.Sequential(
            *(nn.Conv2d(3, HIDDEN, 4, 4), nn.ReLU(), conv(HIDDEN, HIDDEN), nn.ReLU(), nn.Conv2d(HIDDEN, WIDTH, 1)),
            nn.BatchNorm2d(WIDTH, affine=False),  # encodings that all move together would leave the codes behind
        )
        self.codebook = Codebook(SIZE, WIDTH, update=update, decay=0.95, reseed_below=reseed_below)
        self.decoder = nn.Sequential(
            *(conv(WIDTH, HIDDEN), nn.ReLU(), conv(HIDDEN, HIDDEN), nn.ReLU(), nn.ConvTranspose2d(HIDDEN, 3, 4, 4))
        )

    def forward(self, views: Tensor, generator: torch.Generator | None = None):
        """Return what is made of views, and their codes."""
        quantized = self.codebook(self.encoder(views).movedim(1, -1), generator)
        return self.decoder(quantized.vectors.movedim(-1, 1)), quantized


def collect(seed: int, num_envs: int = 128, steps: int = 24) -> Tensor:
    """Return views of a random walk through mazes of rooms, pixels from 0 to 1."""
    maze = {"size": 13, "rooms_per_side": 3, "view": "first_person", "picture_size": PIXELS}
    env = gymnasium.make_vec("merlin/GoalMaze-v0", num_envs, vectorization_mode="vector_entry_point", **maze)
    generator, views = torch.Generator().manual_seed(seed), []
    env.reset(seed=seed)
    for _ in range(steps):
        for _ in range(4):  # steps between two views, which would be much alike
            observation = env.step(torch.randint(3, (num_envs,), generator=generator))[0]
        views.append(observation["image"].clone())
    return torch.cat(views).movedim(-1, 1) / 255


def train(form: str, seed: int, steps: int, views: Tensor) -> Autoencoder:
    torch.manual_seed(seed)
    generator, model = torch.Generator().manual_seed(seed), Autoencoder(*FORMS[form])
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(steps):
        batch = views[torch.randint(len(views), (BATCH,), generator=generator)]
        restored, quantized = model(batch, generator)
        loss = (restored - batch).square().mean() / views.var() + quantized.loss.mean() / WIDTH
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def measure(model: Autoencoder, views: Tensor) -> tuple[float, float, int]:
    """Return the squared error by the views' variance, the perplexity of their codes, and how many these are."""
    restored, quantized = model(views)
    lost = (restored - views).square().mean() / views.var()
    return float(lost), float(quantized.perplexity), int(quantized.codes_used)


@torch.no_grad()
def draw(model: Autoencoder, views: Tensor, path: Path, scale: int = 2, gap: int = 4) -> None:
    """Draw views above what is made of their codes."""
    rows = torch.stack([views, model(views)[0].clamp(0, 1)])
    rows = nn.functional.pad(rows.repeat_interleave(scale, -1).repeat_interleave(scale, -2), [gap] * 4, value=1.0)
    pixels = rows.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    Image.fromarray((pixels * 255).round().byte().numpy()).save(path, optimize=True)


def main(seeds: list[int], steps: int, out: Path) -> dict[str, list[tuple[float, float, int]]]:
    torch.set_num_threads(1)
    views, held_out = collect(1_000), collect(2_000, steps=4)
    found: dict[str, list[tuple[float, float, int]]] = {form: [] for form in FORMS}
    print("| codebook | seed | reconstruction loss | perplexity | codes used |\n|---|---|---|---|---|")
    for form, rows in found.items():
        for seed in seeds:
            model = train(form, seed, steps, views)
            rows.append(measure(model, held_out))
            print("| {} | {} | {:.3f} | {:.0f} | {} |".format(form, seed, *rows[-1]), flush=True)
        print("| {} | mean | {:.3f} | {:.0f} | {:.0f} |".format(form, *map(statistics.fmean, zip(*rows, strict=True))))
    pixels = held_out.flatten(1)
    shown = draw_apart(pixels, pixels[:0], 12, torch.Generator().manual_seed(0))
    draw(model, shown.view(12, *held_out.shape[1:]), out)
    print(f"\n{out}: views, and what {form} made of them")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--out", type=Path, default=Path("codebook.png"))
    main(**vars(parser.parse_args()))
