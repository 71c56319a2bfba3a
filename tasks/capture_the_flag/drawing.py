"""Pictures of a game from above."""

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw, ImageFont

from ..grid.framed import FramedWorld
from .rules import MATES, State, flag_places, is_carried

TILE, HEADER = 20, 24  # pixels
TEAMS = ((226, 62, 58), (64, 122, 255))
WALL, FLOOR, INK = (84, 86, 92), (26, 27, 31), (236, 236, 240)
LIT = 0.12  # of the team's colour on what one of its players sees
OWN_LIT = 0.24  # where it is the player of the row
POLE = (214, 204, 180)
CORNERS = ((0.92, 0.5), (0.12, 0.9), (0.3, 0.5), (0.12, 0.1))  # of a player that heads right


def draw(
    world: FramedWorld, state: State, views: Bool[np.ndarray, "4 Y X"], seat: int, steps_left: int
) -> UInt8[np.ndarray, "y x 3"]:
    """Return one game from above, with score and time.

    Stands are frames. Flags are pennants, on their side where they lie. Players are arrows, with a pennant while they
    carry one; who is out is not on the map. What each player sees is lit in its team's colour, and more where it is the
    player of this seat.
    """
    is_wall = (state.cells[0][world.grid_positions] < 0).cpu().numpy()
    ground = np.where(is_wall[..., None], WALL, FLOOR).astype(float)
    for player, is_seen in enumerate(views):
        share = OWN_LIT if player == seat else LIT
        ground[is_seen] = (1 - share) * ground[is_seen] + share * np.array(TEAMS[player // MATES])
    side = world.width * TILE
    picture = Image.new("RGB", (side, side + HEADER), (12, 12, 14))
    tiles = ground.round().astype(np.uint8).repeat(TILE, 0).repeat(TILE, 1)
    tiles[::TILE], tiles[:, ::TILE] = tiles[::TILE] * 0.8, tiles[:, ::TILE] * 0.8
    picture.paste(Image.fromarray(tiles), (0, HEADER))
    pen = ImageDraw.Draw(picture)

    def at(position: torch.Tensor) -> tuple[int, int]:
        x, y = world.coordinates(position)
        return int(x) * TILE, int(y) * TILE + HEADER

    places, gone = flag_places(state)[0], is_carried(state.carries)[0]
    for team in state.flag_timer[0].argsort().tolist():  # what was dropped last is on top
        colour, (x, y) = TEAMS[team], at(state.stand[0, team])
        pen.rectangle((x + 2, y + 2, x + TILE - 2, y + TILE - 2), outline=colour, width=2)
        if not gone[team]:
            _draw_flag(pen, *at(places[team]), colour, bool(state.flag_timer[0, team]))
    for player, colour in enumerate(TEAMS[player // MATES] for player in range(len(state.out[0]))):
        if state.out[0, player] > 0:
            continue
        x, y = at(state.position[0, player])
        corners = np.array(CORNERS) - 0.5
        for _ in range(int(state.heading[0, player])):
            corners = np.stack([-corners[:, 1], corners[:, 0]], 1)
        outline = "white" if player == seat else None
        pen.polygon([(x + TILE * (i + 0.5), y + TILE * (j + 0.5)) for i, j in corners], colour, outline)
        if state.carries[0, player]:
            _draw_flag(pen, x, y - TILE // 3, TEAMS[1 - player // MATES])
    font, middle = ImageFont.load_default(13), HEADER / 2
    red, blue = state.captures[0].tolist()
    pen.text((6, middle), f"red {red}", TEAMS[0], font, anchor="lm")
    pen.text((side - 6, middle), f"{blue} blue", TEAMS[1], font, anchor="rm")
    pen.text((side / 2, middle), str(steps_left), INK, font, anchor="mm")
    return np.asarray(picture)


def _draw_flag(pen: ImageDraw.ImageDraw, x: int, y: int, colour: tuple[int, int, int], lies: bool = False) -> None:
    """Draw a pennant in the cell at these pixels, on a pole that stands or lies."""

    def at(*places: tuple[float, float]) -> list[tuple[float, float]]:
        places = tuple((j, 1.2 - i) for i, j in places) if lies else places
        return [(x + i * TILE, y + j * TILE) for i, j in places]

    pen.polygon(at((0.35, 0.12), (0.9, 0.3), (0.35, 0.5)), colour)
    pen.line(at((0.35, 0.12), (0.35, 0.88)), POLE, 2)
