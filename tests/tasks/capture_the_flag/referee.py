"""A second opinion on the rules: one game in loops over players and cells, and what a player sees of it.

Written from the rules in words (`docs/capture_the_flag.md`), not from the batched code.
"""

import numpy as np
from minigrid.core.grid import Grid
from minigrid.core.world_object import Wall

RIGHT, DOWN, LEFT, UP = (1, 0), (0, 1), (-1, 0), (0, -1)
HEADINGS = [RIGHT, DOWN, LEFT, UP]
QUARTERS_OF_MOVE = {1: 0, 2: 2, 3: 3, 4: 1}  # forward, back, left, right
QUARTERS_OF_TURN = {0: 0, 1: 3, 2: 1}


class Flag:
    def __init__(self, stand):
        self.stand, self.state, self.place, self.timer = stand, "home", stand, 0

    def send_home(self):
        self.state, self.place, self.timer = "home", self.stand, 0


class Player:
    def __init__(self, number, cell):
        self.number, self.team = number, number // 2
        self.start_heading = 0 if self.team == 0 else 2
        self.cell, self.heading, self.out, self.cooldown, self.carries = cell, self.start_heading, 0, 0, False

    @property
    def mate(self):
        return self.number ^ 1

    @property
    def opponents(self):
        return [number for number in range(4) if number // 2 != self.team]


class Referee:
    """One game. Cells are (x, y)."""

    def __init__(self, is_open, stands, spawns):
        self.is_open, self.stands, self.spawns = is_open, stands, spawns
        self.players = [Player(number, spawns[number // 2][number % 2]) for number in range(4)]
        self.flags = [Flag(stand) for stand in stands]
        self.captures = [0, 0]
        self.steps = 0

    def is_wall(self, cell):
        return not self.is_open[cell[1], cell[0]]

    def at(self, cell):
        return next((player for player in self.players if player.out == 0 and player.cell == cell), None)

    def step(self, actions):
        events = np.zeros((4, 13), int)
        acting = [player for player in self.players if player.out == 0]

        for player in acting:
            player.heading = (player.heading + QUARTERS_OF_TURN[int(actions[player.number][1])]) % 4
        stood = {player.cell for player in acting}
        wanted = {}
        for player in acting:
            move = int(actions[player.number][0])
            if move:
                x, y = HEADINGS[(player.heading + QUARTERS_OF_MOVE[move]) % 4]
                cell = player.cell[0] + x, player.cell[1] + y
                if not self.is_wall(cell) and cell not in stood:
                    wanted[player] = cell
        for player, cell in wanted.items():
            if list(wanted.values()).count(cell) == 1:
                player.cell = cell

        taggers = [player for player in acting if actions[player.number][2] and player.cooldown == 0]
        tags = []
        for tagger in taggers:
            x, y = HEADINGS[tagger.heading]
            for distance in range(1, 6):
                cell = tagger.cell[0] + distance * x, tagger.cell[1] + distance * y
                other = None if self.is_wall(cell) else self.at(cell)
                if self.is_wall(cell) or other:
                    if other and other.team != tagger.team:
                        tags.append((tagger, other))
                    break
        for player in self.players:
            player.cooldown = 3 if player in taggers else max(player.cooldown - 1, 0)
        tagged = {other for _, other in tags}
        for tagger, other in tags:
            events[tagger.number, 6 if other.carries else 7] += 1
            events[other.number, 8 if other.carries else 9] += 1

        dropped = []
        for player in tagged:
            if player.carries:
                flag = self.flags[1 - player.team]
                flag.state, flag.place, flag.timer = "lying", player.cell, 30
                dropped.append(flag)
                player.carries = False

        back = []
        for player in self.players:
            if player in tagged:
                player.out, player.heading = 10, player.start_heading
            elif player.out:
                if player.out == 1:
                    back.append(player)
                else:
                    player.out -= 1
        for player in back:
            player.cell = next(cell for cell in self.spawns[player.team] if self.at(cell) is None)
            player.out = 0

        def on_the_map():
            return [player for player in self.players if player.out == 0]

        for flag in self.flags:
            if flag.state == "lying" and flag not in dropped:
                flag.timer -= 1
        for player in on_the_map():
            flag = self.flags[player.team]
            if flag.state == "lying" and player.cell == flag.place:
                flag.send_home()
                self.tell(events, player, 2, 5, 12)
        for flag in self.flags:
            if flag.state == "lying" and flag.timer == 0:
                flag.send_home()

        captured = set()
        for player in on_the_map():
            own, theirs = self.flags[player.team], self.flags[1 - player.team]
            if player.carries and player.cell == own.stand and own.state == "home":
                self.captures[player.team] += 1
                player.carries = False
                theirs.send_home()
                captured.add(player)
                self.tell(events, player, 0, 3, 10)

        for player in on_the_map():
            theirs = self.flags[1 - player.team]
            if theirs.state != "carried" and player.cell == theirs.place and player not in captured:
                theirs.state, player.carries = "carried", True
                self.tell(events, player, 1, 4, 11)
        self.steps += 1
        return events

    def tell(self, events, player, mine, of_mate, of_opponents):
        events[player.number, mine] += 1
        events[player.mate, of_mate] += 1
        for number in player.opponents:
            events[number, of_opponents] += 1

    def seen(self, number, size=7):
        """Return the image of a player, [column, row, 3], by MiniGrid's own visibility."""
        player, image = self.players[number], np.zeros((size, size, 3), int)
        if player.out:
            return image
        ahead, right = HEADINGS[player.heading], HEADINGS[(player.heading + 1) % 4]
        grid, cells = Grid(size, size), {}
        for column in range(size):
            for row in range(size):
                far, aside = size - 1 - row, column - size // 2
                x, y = (player.cell[i] + far * ahead[i] + aside * right[i] for i in (0, 1))
                cells[column, row] = x, y
                is_on_map = 0 <= x < self.is_open.shape[1] and 0 <= y < self.is_open.shape[0]
                if not is_on_map or self.is_wall((x, y)):
                    grid.set(column, row, Wall())
        is_seen = grid.process_vis((size // 2, size - 1))
        for (column, row), cell in cells.items():
            if is_seen[column, row]:
                is_wall = grid.get(column, row) is not None
                image[column, row] = (2, 0, 0) if is_wall else self.look(cell, player)
        return image

    def look(self, cell, viewer):
        def side(team):
            return 1 if team == viewer.team else 2

        other = self.at(cell)
        if other:
            return 6, side(other.team), (other.heading - viewer.heading) % 4 + 4 * other.carries
        there = [flag for flag in self.flags if flag.state != "carried" and flag.place == cell]
        if there:  # that which was dropped last is on top
            flag = max(there, key=lambda flag: flag.timer)
            return 4 if flag.state == "home" else 5, side(self.flags.index(flag)), 0
        for team, stand in enumerate(self.stands):
            if stand == cell:
                return 3, side(team), 0
        return 1, 0, 0

    def status(self, number):
        player = self.players[number]
        states = [("home", "lying", "carried").index(self.flags[i].state) for i in (player.team, 1 - player.team)]
        can_tag = player.out == 0 and player.cooldown == 0
        return [*states, int(player.carries), int(can_tag), int(player.out > 0)]
