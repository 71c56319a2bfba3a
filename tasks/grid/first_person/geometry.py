"""The geometry of pictures from inside a grid, as tables: see `renderer`, which looks pictures up in them.

A picture of P x P pixels shows 90 degrees across and down. Everything is seen along rays through the middles of pixels,
whose slopes are odd / even or even / odd numbers, which is why no ray ever meets the corner of a cell.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, Int32, Int64
from torch import Tensor

from ..cells import CELLS, Cell, can_see_behind
from .textures import FOG, SKY, Paint, paint, paints, sprite_of, tile_of, wall_of

EYE_HEIGHT = 0.5
POST_WIDTH = 0.15
SPRITE_SIZE = 0.8
LARGEST_SIGHT = 24  # cells ahead: as many bits as a float32 holds exactly
SAMPLES = np.array([-2 / 3, 0, 2 / 3])  # within a pixel, from −1 to 1
COVERED = 0.4  # of the samples of a pixel that shows a thing, at least
SIDE_SHADE = 0.78


class Rays(NamedTuple):
    """The crossings of the rays of all columns, from left to right and near to far; each column's last is its end."""

    column: Int[np.ndarray, "R"]
    order: Int[np.ndarray, "R"]
    """Its place among the crossings of its column."""
    depth: Float[np.ndarray, "R"]
    """Cells straight ahead to where the ray enters the cell."""
    ahead: Int[np.ndarray, "R"]
    aside: Int[np.ndarray, "R"]
    """To the right."""
    is_side: Bool[np.ndarray, "R"]
    """Whether it enters the cell from its side, not its front."""
    is_end: Bool[np.ndarray, "R"]


class Tables(NamedTuple):
    """Tables that a picture is looked up in: C = P columns, R crossings, V cells ahead up to the sight distance D.

    Columns are in the order 0, 4, 8, ..., 1, 5, 9, ..., which lets `renderer` pack four at a time.
    """

    ahead: Int64[Tensor, "V"]
    aside: Int64[Tensor, "V"]
    first: Int64[Tensor, "C"]
    """The first crossing of each column."""
    cell: Int64[Tensor, "R"]
    in_front: Int32[Tensor, "R"]
    """A bit, as in `sprite_weights`, for each cell ahead whose middle is nearer."""
    walls: Int32[Tensor, "R walls P"]
    stop_weights: Float32[Tensor, "V C"]
    """4^−order where a ray crosses a cell."""
    post_weights: Float32[Tensor, "V C"]
    """The same, only where it would meet the post of a door."""
    end_weights: Float32[Tensor, "C"]
    floor_cell: Int64[Tensor, "pixels"]
    floor_pixel: Int32[Tensor, "pixels"]
    floors: Int32[Tensor, "floors pixels"]
    first_slot: Int64[Tensor, "C"]
    """The first slot of each column: the one for nothing; those of the cells D, ..., 1 ahead follow."""
    sprite_cell: Int64[Tensor, "slots"]
    """The one cell at each distance in which a thing can stand before a ray."""
    sprite_weights: Float32[Tensor, "V C"]
    """2^(D − ahead) for these cells."""
    sprites: Int32[Tensor, "slots sprites rows"]
    hands: Int32[Tensor, "hands 4 quarter side"]
    hides: Float32[Tensor, "codes"]
    is_open: Float32[Tensor, "codes"]
    stands: Float32[Tensor, "codes"]
    wall_kind: Int64[Tensor, "codes"]
    floor_kind: Int32[Tensor, "codes"]
    """Where in `floors` it begins."""
    sprite_kind: Int64[Tensor, "codes"]
    hand_kind: Int64[Tensor, "codes"]


def slopes(picture_size: int) -> Float[np.ndarray, "P"]:
    """Return how far aside a column looks, and how far down a row, for each cell ahead."""
    return (2 * np.arange(picture_size) + 1 - picture_size) / picture_size


def number(ahead: Int[np.ndarray, "*#N"], aside: Int[np.ndarray, "*N"]) -> Int[np.ndarray, "*N"]:
    """Return the number of a cell ahead; 45 degrees to either side show only those with |aside| ≤ ahead."""
    return ahead * (ahead + 1) + aside


def sprite_rows(picture_size: int) -> tuple[int, int]:
    """Return the first row, and the one after the last, in which a thing can stand: it is at least 1 cell away."""
    half = picture_size / 2
    return int(half * (1 + EYE_HEIGHT - SPRITE_SIZE)), int(np.ceil(half * (1 + EYE_HEIGHT)))


def trace(picture_size: int, sight_distance: int) -> Rays:
    """Return what the rays of the columns cross."""
    rows, fronts = [], np.arange(sight_distance) + 0.5
    for column, slope in enumerate(slopes(picture_size)):
        sides = fronts / max(abs(slope), 1e-9)
        crossings = [(depth, int(depth + 0.5), round(depth * slope), False, False) for depth in fronts]
        crossings += [
            (depth, round(depth), int(np.sign(slope)) * (i + 1), True, False)
            for i, depth in enumerate(sides)
            if depth < sight_distance
        ]
        crossings = [*sorted(crossings), (sight_distance, 0, 0, False, True)]
        rows += [(column, order, *crossing) for order, crossing in enumerate(crossings)]
    column, order, depth, *others = (np.array(x) for x in zip(*rows, strict=True))
    return Rays(column, order, depth.astype(float), *others)


@lru_cache(maxsize=8)
def tables(picture_size: int, sight_distance: int, cells: tuple[Cell, ...] = CELLS) -> Tables:
    """Return the tables of a picture size and a sight distance, made once."""
    rays = trace(picture_size, sight_distance)
    ahead, aside = np.array([(i, j) for i in range(sight_distance + 1) for j in range(-i, i + 1)]).T
    columns, slope, depths = np.arange(picture_size), slopes(picture_size), np.arange(sight_distance + 1)
    wall_paints, wall_kind = paints(wall_of, cells)
    floor_paints, floor_kind = paints(tile_of, cells)
    sprite_paints, sprite_kind = paints(sprite_of, cells)
    stands = np.array([sprite_of(cell) is not None for cell in cells])

    across = _across(rays, picture_size)
    stop_weights, post_weights, sprite_weights = (np.zeros((len(ahead), picture_size)) for _ in range(3))
    entry, cell = ~rays.is_end, number(rays.ahead, rays.aside)
    powers = 4.0**-rays.order
    stop_weights[cell[entry], rays.column[entry]] = powers[entry]
    post = entry & (abs(across.mean(-1) - 0.5) > 0.5 - POST_WIDTH)
    post_weights[cell[post], rays.column[post]] = powers[post]

    sprite_aside = np.round(depths * slope[:, None]).astype(int)
    sprite_cell = number(depths, sprite_aside)
    bits = 2.0 ** (sight_distance - depths)
    bits[0] = 0  # where the agent stands nothing else does
    sprite_weights[sprite_cell, columns[:, None]] = bits

    floor_cell, floors = _floors(picture_size, sight_distance, floor_paints)
    fours = np.arange(picture_size).reshape(-1, 4).T.ravel()
    made = Tables(
        ahead=ahead,
        aside=aside,
        first=np.flatnonzero(rays.order == 0)[fours],
        cell=cell,
        in_front=((depths < rays.depth[:, None]) * bits).sum(1).astype(np.int32),
        walls=_walls(rays, across, picture_size, sight_distance, wall_paints),
        stop_weights=stop_weights[:, fours].astype(np.float32),
        post_weights=post_weights[:, fours].astype(np.float32),
        end_weights=powers[rays.is_end][fours].astype(np.float32),
        floor_cell=floor_cell[fours].ravel(),
        floor_pixel=np.arange(floor_cell.size, dtype=np.int32),
        floors=floors[:, fours].reshape(len(floors), -1),
        first_slot=columns * (sight_distance + 1),
        sprite_cell=np.pad(sprite_cell[:, :0:-1], ((0, 0), (1, 0)))[fours].ravel(),
        sprite_weights=sprite_weights[:, fours].astype(np.float32),
        sprites=np.concatenate(_sprites(picture_size, sight_distance, sprite_aside, sprite_paints)[fours]),
        hands=_hands(picture_size, sprite_paints),
        hides=np.array([not can_see_behind(cell) for cell in cells], np.float32),
        is_open=np.array([can_see_behind(cell) and wall_of(cell) is not None for cell in cells], np.float32),
        stands=stands.astype(np.float32),
        wall_kind=wall_kind,
        floor_kind=(floor_kind * floor_cell.size).astype(np.int32),
        sprite_kind=sprite_kind,
        hand_kind=(sprite_kind + 1) * stands,
    )
    return Tables(*(torch.from_numpy(np.ascontiguousarray(table)) for table in made))


def _across(rays: Rays, picture_size: int) -> Float[np.ndarray, "R samples"]:
    """Return where rays within a column enter a cell, from 0 to 1 along the side they enter by."""
    slope = slopes(picture_size)[rays.column, None] + SAMPLES / picture_size
    front = (rays.ahead[:, None] - 0.5) * slope - rays.aside[:, None]
    side = (abs(rays.aside[:, None]) - 0.5) / abs(slope) - rays.ahead[:, None]
    return (np.where(rays.is_side[:, None], side, front) + 0.5).clip(0, 1)


def _walls(
    rays: Rays, across: Float[np.ndarray, "R samples"], picture_size: int, sight_distance: int, kinds: list[Paint]
) -> Int32[np.ndarray, "R walls P"]:
    """Return each column of pixels that ends at a crossing; the floor in it is left out, 0."""
    down = slopes(picture_size)
    is_wall = (abs(down) * rays.depth[:, None] <= EYE_HEIGHT + 1e-9) & ~rays.is_end[:, None]
    ray, row = np.nonzero(is_wall)
    heights = EYE_HEIGHT - (down[row, None] + SAMPLES / picture_size) * rays.depth[ray, None]
    colours = paint(kinds, *_pairs(across[ray], heights.clip(0, 1))).colours
    colours *= np.where(rays.is_side, SIDE_SHADE, 1)[ray, None]
    sky = np.array(FOG) + (np.array(SKY) - FOG) * abs(down)[:, None] ** 0.7
    pixels = np.tile(np.where(down <= 0, _pack(sky, 0), 0), (len(rays.depth), len(kinds), 1))
    pixels[ray, :, row] = _pack(_fade(colours, rays.depth[ray], sight_distance), 1).T
    return pixels


def _floors(
    picture_size: int, sight_distance: int, kinds: list[Paint]
) -> tuple[Int[np.ndarray, "C rows"], Int32[np.ndarray, "floors C rows"]]:
    """Return which cell's floor the pixels below the horizon show, and how they look."""
    slope = slopes(picture_size)
    down = slope[picture_size // 2 :]
    depth = np.broadcast_to(EYE_HEIGHT / down, (picture_size, len(down)))
    is_far = depth > sight_distance  # fog alone
    ahead, aside = (np.where(is_far, 0, x.round(9).round()).astype(int) for x in (depth, depth * slope[:, None]))
    sideways, depths = _pairs(
        (slope[:, None] + SAMPLES / picture_size)[:, None], EYE_HEIGHT / (down[:, None] + SAMPLES / picture_size)
    )
    colours = paint(kinds, (sideways * depths + 0.5) % 1, (depths + 0.5) % 1).colours
    return number(ahead, aside), _pack(_fade(colours, depth, sight_distance), 0)


def _sprites(
    picture_size: int, sight_distance: int, aside: Int[np.ndarray, "C depths"], kinds: list[Paint]
) -> Int32[np.ndarray, "C slots sprites rows"]:
    """Return each column of pixels of each thing at each distance, 0 where it covers nothing."""
    slope, depths = slopes(picture_size), np.arange(sight_distance, 0.0, -1)
    down = slope[slice(*sprite_rows(picture_size))]
    sideways = (slope[:, None] + SAMPLES / picture_size)[:, None] * depths[:, None] - aside[:, :0:-1, None]
    heights = EYE_HEIGHT - (down[:, None] + SAMPLES / picture_size) * depths[:, None, None]
    across, height = _pairs(sideways[:, :, None] / SPRITE_SIZE + 0.5, heights / SPRITE_SIZE)
    seen = paint(kinds, across, height)
    colours = _fade(seen.colours, depths[:, None], sight_distance)
    pixels = np.where(seen.covered < COVERED, 0, _pack(colours, 1 + np.arange(1, sight_distance + 1)[:, None]))
    return np.pad(pixels.transpose(1, 2, 0, 3), ((0, 0), (1, 0), (0, 0), (0, 0)))


def _hands(picture_size: int, kinds: list[Paint]) -> Int32[np.ndarray, "hands 4 quarter side"]:
    """Return the corner of the picture with nothing in hand, 0, and with each thing in its slot."""
    side = picture_size // 16 * 4
    places = (np.arange(side)[:, None] + 0.5 + SAMPLES / 2) / side
    across, height = (1.3 * (x - 0.5) + 0.5 for x in _pairs(places[:, None], 1 - places[None]))
    seen = paint(kinds, across, height)
    edge = np.minimum(np.arange(side), np.arange(side)[::-1]) == 0
    slot = np.where((edge | edge[:, None])[..., None], 220, 40) + np.zeros(3)
    pixels = np.where(seen.covered < COVERED, _pack(slot, 127), _pack(seen.colours, 127))
    return np.pad(pixels, ((1, 0), (0, 0), (0, 0))).reshape(-1, side // 4, 4, side).swapaxes(1, 2)


def _pairs(one: Float[np.ndarray, "*#N S"], other: Float[np.ndarray, "*#N S"]) -> list[Float[np.ndarray, "*N SS"]]:
    """Return every sample across with every sample of height."""
    pairs = np.broadcast_arrays(one[..., :, None], other[..., None, :])
    return [x.reshape(*x.shape[:-2], -1) for x in pairs]


def _fade(
    colours: Float[np.ndarray, "kinds *N 3"], depth: Float[np.ndarray, "*#N"], sight_distance: int
) -> Float[np.ndarray, "kinds *N 3"]:
    """Return colours as they are seen through fog."""
    part = (depth / sight_distance).clip(0, 1)[..., None] ** 1.5
    return colours * (1 - part) + np.array(FOG) * part


def _pack(colours: Float[np.ndarray, "*N 3"], priority: int | Int[np.ndarray, "*#N"]) -> Int32[np.ndarray, "*N"]:
    red, green, blue = np.moveaxis(colours.round().astype(np.int32), -1, 0)
    return (red | green << 8 | blue << 16 | np.asarray(priority, np.int32) << 24).astype(np.int32)
