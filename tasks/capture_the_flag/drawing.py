"""Pictures of a game: from above, as its four players see it, and its events in words.

Teams have their colours in all of them. Stands are frames. Flags are pennants, on their side where they lie. Players
are arrows, with a pennant while they carry one; who is out is not on the map.
"""

import re
from collections import deque
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..grid.framed import FramedWorld
from . import cells
from .rules import EVENTS, MATES, NUM_PLAYERS, State, flag_places, is_carried

Colour = tuple[int, int, int]

TEAMS: tuple[Colour, Colour] = ((226, 62, 58), (64, 122, 255))
WALL, FLOOR, HIDDEN, GROUND = (84, 86, 92), (26, 27, 31), (12, 12, 14), (12, 12, 14)
INK, GREY = (236, 236, 240), (150, 152, 160)
LIT = 0.12  # of the team's colour on what one of its players sees
OWN_LIT = 0.24  # where it is the player of the row
POLE = (214, 204, 180)
CORNERS = ((0.92, 0.5), (0.12, 0.9), (0.3, 0.5), (0.12, 0.1))  # of a player that heads right
UP = 3

TILE, HEADER = 20, 24  # pixels, of the map alone
SCALE = 2  # the whole picture is drawn so much larger, so that its edges are smooth
WIDTH, HEIGHT, MARGIN, GAP = 912, 380, 12, 14
MAP, MAP_HEADER = 324, 30  # at most, of the map in it
VIEW, LABEL, BETWEEN = 154, 20, 8
LINE, SIZE, STEP = 18, 12, 28  # of the events' text: a line, its letters, its step's number
NAMES = re.compile(rf"((?:{'|'.join(cells.COLOURS)}) [01](?: and [01])?)")


class Scene(NamedTuple):
    """One game as it is now, [1, ...] in the state, and what its players see of it."""

    world: FramedWorld
    state: State
    is_lit: Bool[np.ndarray, "4 Y X"]
    """The cells of the map that each player sees."""
    views: Int[np.ndarray, "4 y x"]
    """The codes of the cells ahead of each player, from the furthest row to its own; 0 where it sees nothing."""
    pictures: UInt8[np.ndarray, "4 p p 3"] | None
    """What each sees from inside, if that is what it is given."""
    seat: int
    """The player whose picture it is."""
    are_bots: Sequence[bool]
    steps_left: int


class Thing(NamedTuple):
    """Something in a cell: a stand, a flag or a player, as `cells.Cell` has them."""

    kind: str
    team: int
    state: int
    x: int
    y: int
    is_marked: bool = False


class Report:
    """The last events of a game in words, each with its step, the newest first."""

    def __init__(self) -> None:
        self.lines: deque[tuple[int, str]] = deque(maxlen=32)

    def add(self, step: int, happened: Int[Tensor, "4 13"]) -> None:
        """Add the events of a step."""
        self.lines.extendleft((step, words) for words in events_in_words(happened))

    def clear(self) -> None:
        """Forget all, as when a game begins."""
        self.lines.clear()


def events_in_words(happened: Int[Tensor, "4 13"]) -> list[str]:
    """Return what happened in a step, in the order of the rules.

    Who tagged whom is told as far as `EVENTS` know it: of two who tagged two others in one step, together.
    """

    def who(event: str, team: int) -> list[int]:
        players = range(team * MATES, (team + 1) * MATES)
        return [player for player in players if happened[player, EVENTS.index(event)] > 0]

    found = []
    for team in range(len(TEAMS)):
        for tag, tagged in (("I tagged a carrier", "I was tagged carrying"), ("I tagged another", "I was tagged")):
            if taggers := who(tag, team):
                found.append(f"{_names(taggers)} tagged {_names(who(tagged, 1 - team))}")
    for event, words in (
        ("I was tagged carrying", "dropped the flag"),
        ("I returned", "returned the flag"),
        ("I captured", "captured"),
        ("I picked up", "picked up the flag"),
    ):
        found += [f"{_names([player])} {words}" for team in range(len(TEAMS)) for player in who(event, team)]
    return found


def _names(players: Sequence[int]) -> str:
    """Return what players of one team are called."""
    return f"{cells.COLOURS[players[0] // MATES]} {' and '.join(str(player % MATES) for player in players)}"


def draw_above(scene: Scene) -> UInt8[np.ndarray, "y x 3"]:
    """Return one game from above, with score and time.

    What each player sees is lit in its team's colour, and more where it is the player of the scene's seat.
    """
    return np.asarray(_above(scene, TILE, HEADER, str(scene.steps_left)))


def draw_game(scene: Scene, report: Report) -> UInt8[np.ndarray, "y x 3"]:
    """Return one game from above, beside it what its four players see, and its last events."""
    sheet = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), GROUND)
    pen = ImageDraw.Draw(sheet)
    clock = f"{scene.steps_left} steps left"
    above = _above(scene, MAP * SCALE // scene.world.width, MAP_HEADER * SCALE, clock)
    sheet.paste(above, (MARGIN * SCALE, (HEIGHT * SCALE - above.height) // 2))
    left = MARGIN + MAP + GAP
    for player in range(NUM_PLAYERS):
        x = left + player // MATES * (VIEW + BETWEEN)
        y = MARGIN + player % MATES * (LABEL + VIEW + BETWEEN)
        _draw_label(pen, scene, player, x, y)
        view = _view(scene, player).resize((VIEW * SCALE,) * 2, Image.Resampling.NEAREST)
        corner = x * SCALE, (y + LABEL) * SCALE
        sheet.paste(view, corner)
        if steps := int(scene.state.out[0, player]):
            middle = ((x + VIEW / 2) * SCALE, (y + LABEL + VIEW / 2) * SCALE)
            pen.text(middle, f"out, back in {steps}", GREY, _font(SIZE * SCALE), anchor="mm")
        edge = INK if player == scene.seat else TEAMS[player // MATES]
        pen.rectangle((*corner, corner[0] + VIEW * SCALE - 1, corner[1] + VIEW * SCALE - 1), outline=edge, width=SCALE)
    _draw_report(pen, report, int(scene.state.num_steps), left + 2 * VIEW + BETWEEN + GAP, MARGIN)
    return np.asarray(sheet.reduce(SCALE))


def _above(scene: Scene, tile: int, header: int, clock: str) -> Image.Image:
    world, state = scene.world, scene.state
    is_wall = (state.cells[0][world.grid_positions.cpu()] < 0).numpy()
    ground = np.where(is_wall[..., None], WALL, FLOOR).astype(float)
    for player, is_lit in enumerate(scene.is_lit):
        share = OWN_LIT if player == scene.seat else LIT
        ground[is_lit] = (1 - share) * ground[is_lit] + share * np.array(TEAMS[player // MATES])
    board = _board(ground, _things(scene), tile)
    picture = Image.new("RGB", (board.width, board.height + header), GROUND)
    picture.paste(board, (0, header))
    pen, font, middle, inset = ImageDraw.Draw(picture), _font(13 * header // HEADER), header / 2, header // 4
    red, blue = state.captures[0].tolist()
    pen.text((inset, middle), f"red {red}", TEAMS[0], font, anchor="lm")
    pen.text((board.width - inset, middle), f"{blue} blue", TEAMS[1], font, anchor="rm")
    pen.text((board.width / 2, middle), clock, INK, font, anchor="mm")
    return picture


def _things(scene: Scene) -> Iterable[Thing]:
    """Yield all that is on the map, what is on top last."""
    state = scene.state

    def at(position: Tensor) -> tuple[int, int]:
        x, y = scene.world.coordinates(position)
        return int(x), int(y)

    places, gone = flag_places(state)[0], is_carried(state.carries)[0]
    for team in state.flag_timer[0].argsort().tolist():  # what was dropped last is on top
        yield Thing("stand", team, 0, *at(state.stand[0, team]))
        if not gone[team]:
            yield Thing("flag", team, int(state.flag_timer[0, team] > 0), *at(places[team]))
    for player in range(NUM_PLAYERS):
        if state.out[0, player] == 0:
            pose = int(state.heading[0, player] + 4 * state.carries[0, player])
            yield Thing("player", player // MATES, pose, *at(state.position[0, player]), player == scene.seat)


def _view(scene: Scene, player: int) -> Image.Image:
    """Return what a player sees: ahead is up."""
    if scene.pictures is not None:
        return Image.fromarray(scene.pictures[player])
    codes, things = scene.views[player], []
    for y, x in zip(*codes.nonzero(), strict=True):
        cell = cells.CELLS[codes[y, x]]
        if cell.kind in ("stand", "flag", "player"):
            turn = UP - int(scene.state.heading[0, player])
            pose = (cell.state + turn & 3) + (cell.state & 4) if cell.kind == "player" else cell.state
            things.append(Thing(cell.kind, cells.COLOURS.index(cell.colour), pose, int(x), int(y)))
    ground = np.full((*codes.shape, 3), FLOOR, float)
    ground[codes == 0], ground[codes == cells.WALL] = HIDDEN, WALL
    return _board(ground, things, VIEW * SCALE // len(codes))


def _board(ground: np.ndarray, things: Iterable[Thing], tile: int) -> Image.Image:
    """Return cells of these colours, [Y, X, 3], with things on them."""
    tiles = ground.round().astype(np.uint8).repeat(tile, 0).repeat(tile, 1)
    for line in range(max(1, tile // TILE)):
        tiles[line::tile], tiles[:, line::tile] = tiles[line::tile] * 0.8, tiles[:, line::tile] * 0.8
    board = Image.fromarray(tiles)
    pen, line = ImageDraw.Draw(board), max(2, tile // 10)
    for thing in things:
        x, y, colour = thing.x * tile, thing.y * tile, TEAMS[thing.team]
        if thing.kind == "stand":
            pen.rectangle((x + line, y + line, x + tile - line, y + tile - line), outline=colour, width=line)
        elif thing.kind == "flag":
            _draw_flag(pen, x, y, tile, colour, thing.state == cells.LYING)
        else:
            corners = np.array(CORNERS) - 0.5
            for _ in range(thing.state & 3):
                corners = np.stack([-corners[:, 1], corners[:, 0]], 1)
            outline = "white" if thing.is_marked else None
            pen.polygon([(x + tile * (i + 0.5), y + tile * (j + 0.5)) for i, j in corners], colour, outline, line // 2)
            if thing.state & 4:
                _draw_flag(pen, x, y - tile // 3, tile, TEAMS[1 - thing.team])
    return board


def _draw_flag(pen: ImageDraw.ImageDraw, x: int, y: int, tile: int, colour: Colour, lies: bool = False) -> None:
    """Draw a pennant in the cell at these pixels, on a pole that stands or lies."""

    def at(*places: tuple[float, float]) -> list[tuple[float, float]]:
        places = tuple((j, 1.2 - i) for i, j in places) if lies else places
        return [(x + i * tile, y + j * tile) for i, j in places]

    pen.polygon(at((0.35, 0.12), (0.9, 0.3), (0.35, 0.5)), colour)
    pen.line(at((0.35, 0.12), (0.35, 0.88)), POLE, max(2, tile // 10))


def _draw_label(pen: ImageDraw.ImageDraw, scene: Scene, player: int, x: int, y: int) -> None:
    team, state = player // MATES, scene.state
    middle, font = (y + LABEL / 2 - 1) * SCALE, _font(SIZE * SCALE)
    pen.text((x * SCALE, middle), name := _names([player]), TEAMS[team], font, anchor="lm")
    along = x * SCALE + font.getlength(name)
    if state.carries[0, player]:
        tile = (LABEL - 4) * SCALE
        _draw_flag(pen, round(along), round(middle - tile / 2), tile, TEAMS[1 - team])
    if scene.are_bots[player]:
        pen.text(((x + VIEW) * SCALE, middle), "bot", GREY, font, anchor="rm")


def _draw_report(pen: ImageDraw.ImageDraw, report: Report, now: int, x: int, y: int) -> None:
    """Write the events, each after its step; those of the last step white, and the names in their teams' colours."""
    font = _font(SIZE * SCALE)
    for row, (step, words) in enumerate(list(report.lines)[: (HEIGHT - 2 * MARGIN) // LINE]):
        middle, ink = (y + (row + 0.5) * LINE) * SCALE, INK if step == now else GREY
        along = (x + STEP) * SCALE
        pen.text((along - (GAP // 2) * SCALE, middle), str(step), ink, font, anchor="rm")
        for part in NAMES.split(words):
            colour = TEAMS[cells.COLOURS.index(part.split()[0])] if NAMES.fullmatch(part) else ink
            pen.text((along, middle), part, colour, font, anchor="lm")
            along += font.getlength(part)


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
