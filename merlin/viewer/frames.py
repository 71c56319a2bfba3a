"""The picture of one step: the task, what the agent sees and decodes, does, expects and recalls."""

import numpy as np
from gymnasium import spaces

from merlin.networks.categories import sizes_and_starts
from merlin.viewer.canvas import BLUE, EMPTY, FAINT, GREEN, GREY, INK, LINE, ORANGE, RED, Canvas, Number, mix
from merlin.viewer.episodes import Episode
from merlin.viewer.memory_maps import draw_memory, height_of_memory
from merlin.viewer.observations import coloured_entry, draw_entry, height_of, is_picture, label

WIDTH, MARGIN, GAP = 960, 24, 28
TOP = 96  # where the upper panels begin
LOWEST, HIGHEST = 150, 208  # how high they are
MOST_BARS = 16
SCENE = 2  # times as wide as high, and more than half as many pixels as the page: a picture that has a row of its own


def draw_step(episode: Episode, step: int, heading: str = "", least_height: Number = 0) -> Canvas:
    """Return the picture of one step of an episode.

    Args:
        heading: Above the title, small: whose episode this is.
        least_height: Of the sheet, as the pictures of a film are all of one size.
    """
    has_memory, picture = episode.steps[0].slot is not None, episode.steps[step].picture
    height, inside, row = _height_of_panels(episode), WIDTH - 2 * MARGIN, _height_of_row(picture)
    has_row = row > 0
    canvas = Canvas(WIDTH, max(least_height, height_of_step(episode, step)))
    _draw_title(canvas, episode, step, heading)
    names = ["sees", "will do", "expects"]
    widths = {"task": 1.0, "sees": 1.0, "will do": 1.0, "expects": 1.15}
    if picture is not None and not has_row:
        names.insert(0, "task")
    share = (inside - (len(names) - 1) * GAP) / sum(widths[name] for name in names)
    x = MARGIN
    for name in names:
        width = share * widths[name]
        PANELS[name](canvas, x, width, height, episode, step)
        x += width + GAP
    if picture is not None and has_row:
        canvas.picture(MARGIN, TOP + height + 16, inside, row, picture)
    if has_memory:
        draw_memory(canvas, MARGIN, TOP + height + row + 16, inside, episode, step)
    return canvas


def height_of_step(episode: Episode, step: int) -> Number:
    """Return how high `draw_step` draws."""
    memory = 0 if episode.steps[0].slot is None else height_of_memory(episode)
    return TOP + _height_of_panels(episode) + _height_of_row(episode.steps[step].picture) + MARGIN + memory


def _height_of_row(picture: np.ndarray | None) -> Number:
    """Return the room for a task's picture that has a row of its own; 0 for another."""
    if picture is None or not needs_row(picture):
        return 0
    return (WIDTH - 2 * MARGIN) * picture.shape[0] / picture.shape[1] + 16


def needs_row(picture: np.ndarray) -> bool:
    """Return whether a task's picture shows too much for a panel among others."""
    rows, columns = picture.shape[:2]
    return columns >= SCENE * rows and columns > WIDTH / 2


def _height_of_panels(episode: Episode) -> Number:
    """Return how high the upper panels are: as they need, within bounds."""
    rooms = [0 if is_picture(space) else 23 + height_of(space) for space in episode.spaces.values()]
    if any(map(is_picture, episode.spaces.values())) or not episode.has_choices:
        return HIGHEST
    bars = len(episode.steps[0].policy)
    return min(HIGHEST, max(LOWEST, sum(rooms), 28 * bars if bars <= MOST_BARS else HIGHEST))


def signed(reward: Number) -> str:
    """Return a reward with its sign, 0 without."""
    return f"{reward:+.3g}".replace("-", "−") if reward else "0"


def _draw_title(canvas: Canvas, episode: Episode, step: int, heading: str) -> None:
    now = episode.steps[step]
    canvas.text(MARGIN, 22, heading, 10.5, GREY, width=WIDTH - 2 * MARGIN)
    x = MARGIN + canvas.text(MARGIN, 47, f"Step {step + 1} of {len(episode.steps)}", 19, bold=True)
    x += 14 + canvas.text(x + 14, 47, f"{episode.action_name(step)},", 19, width=WIDTH - MARGIN - x - 360)
    colour = GREEN if now.reward > 0 else RED if now.reward < 0 else GREY
    canvas.text(x + 7, 47, f"reward {signed(now.reward)}", 19, colour, bold=bool(now.reward))
    total = f"return so far {sum(past.reward for past in episode.steps[: step + 1]):.3g}".replace("-", "−")
    if step == len(episode.steps) - 1 and not np.isnan(episode.success):
        total += f", {episode.outcome}"
    canvas.text(WIDTH - MARGIN, 47, total, 12, GREY, "rm")


def _head(canvas: Canvas, x: Number, words: str, width: Number | None = None) -> None:
    canvas.text(x, TOP - 14, words, 11, INK, bold=True, width=width)


def _draw_task(canvas: Canvas, x: Number, width: Number, height: Number, episode: Episode, step: int) -> None:
    _head(canvas, x, "task")
    picture = episode.steps[step].picture
    assert picture is not None, "the panel is left out where the task draws nothing"
    canvas.picture(x, TOP, width, height, picture)


def _draw_observation(canvas: Canvas, x: Number, width: Number, height: Number, episode: Episode, step: int) -> None:
    now = episode.steps[step]
    decodes = now.reconstruction
    column = width if decodes is None else (width - 12) / 2
    _head(canvas, x, "sees")
    if decodes is not None:
        _head(canvas, x + column + 12, "decodes")
    # Pictures share the height that the other entries leave.
    entries = episode.spaces
    heads = {name: 15 if label(name) else 0 for name in entries}
    fixed = sum(heads[name] + 8 + (0 if is_picture(space) else height_of(space)) for name, space in entries.items())
    pictures = sum(map(is_picture, entries.values()))
    picture_height = min(column, max(40, (height - fixed) / pictures)) if pictures else 0
    y, bottom = TOP, TOP + height
    for i, (name, space) in enumerate(entries.items()):
        room = picture_height if is_picture(space) else height_of(space)
        if y + heads[name] + room > bottom + (
            9 if i == len(entries) - 1 else -6
        ):  # where others follow, or are told of
            canvas.text(x, bottom + 2, f"and {len(entries) - i} more", 9.5, GREY)
            break
        if heads[name]:
            canvas.text(x, y + 6, label(name), 9.5, GREY, width=width)
            y += heads[name]
        is_coloured = name == coloured_entry(entries)
        draw_entry(canvas, x, y, column, room, space, now.observation[name], None, is_coloured)
        if decodes is not None:
            truth = now.observation[name]
            draw_entry(canvas, x + column + 12, y, column, room, space, decodes[name], truth, is_coloured)
        y += room + 8


def _draw_policy(canvas: Canvas, x: Number, width: Number, height: Number, episode: Episode, step: int) -> None:
    _head(canvas, x, "policy")
    if not episode.has_choices:
        _draw_gaussians(canvas, x, width, height, episode.steps[step].policy)
        return
    names, taken = choices(episode, step)
    probabilities = episode.steps[step].policy
    if len(probabilities) > MOST_BARS:
        cell, base = width / len(probabilities), TOP + height - 8
        for i, p in enumerate(probabilities):
            bar = max(0.5, (height - 16) * float(p))
            canvas.box(x + i * cell, base - bar, max(0.5, cell - 0.5), bar, ORANGE if i in taken else BLUE)
        canvas.line([(x, base), (x + width, base)], FAINT, 0.5)
        return
    row = min(28.0, height / len(probabilities))
    room = min(0.45 * width, 12 + 6.2 * max(map(len, names)))
    bar = width - room - 38
    for i, (name, p) in enumerate(zip(names, probabilities, strict=True)):
        y, is_taken = TOP + i * row, i in taken
        size = min(10.5, 0.6 * row)
        canvas.text(x, y + row / 2, name, size, INK if is_taken else GREY, bold=is_taken, width=room - 4)
        canvas.box(x + room, y + 0.15 * row, bar, 0.7 * row, EMPTY, radius=2)
        if p > 0.004:
            colour = ORANGE if is_taken else mix(BLUE, 0.55)
            canvas.box(x + room, y + 0.15 * row, max(2, bar * float(p)), 0.7 * row, colour, radius=2)
        canvas.text(x + width, y + row / 2, f"{100 * p:.0f}%", size, INK if is_taken else GREY, "rm", bold=is_taken)


def choices(episode: Episode, step: int) -> tuple[list[str], set[int]]:
    """Return the names of all choices, of several variables side by side, and which of them were taken."""
    names: list[str] = []
    taken: set[int] = set()
    for path, space, values in episode.action_parts(step):
        if isinstance(space, spaces.Box):
            continue
        sizes, starts = sizes_and_starts(space)
        for i, (size, start, value) in enumerate(zip(sizes, starts, values.astype(int), strict=True)):
            variable = ".".join(filter(None, [path, str(i) if len(sizes) > 1 else ""]))
            taken.add(len(names) + int(value) - start)
            names += [f"{variable}: {start + j}" if variable else str(start + j) for j in range(size)]
    return names if episode.action_names is None else list(episode.action_names), taken


def _draw_gaussians(canvas: Canvas, x: Number, width: Number, height: Number, policy: np.ndarray) -> None:
    """Draw each number of a Box action on its range: one standard deviation around the mean, and what was taken."""
    means, deviations, actions = policy.tolist()
    shown = min(len(means), 10)
    row = min(32.0, height / shown)

    def place(value: Number) -> Number:
        return x + 16 + (width - 20) * (0.5 + 0.5 * float(np.clip(value, -1, 1)))

    for i in range(shown):
        y = TOP + (i + 0.5) * row
        canvas.text(x, y, str(i), min(10.5, 0.6 * row), GREY)
        canvas.box(place(-1), y - 0.3 * row, width - 20, 0.6 * row, EMPTY, radius=2)
        left, right = place(means[i] - deviations[i]), place(means[i] + deviations[i])
        canvas.box(left, y - 0.3 * row, max(1, right - left), 0.6 * row, mix(BLUE, 0.35), radius=2)
        canvas.line([(place(means[i]), y - 0.3 * row), (place(means[i]), y + 0.3 * row)], BLUE, 1.5)
        canvas.disc(place(actions[i]), y, 4, ORANGE)
    if shown < len(means):
        canvas.text(x, TOP + height + 6, f"and {len(means) - shown} more", 9.5, GREY)


def _draw_value(canvas: Canvas, x: Number, width: Number, height: Number, episode: Episode, step: int) -> None:
    """Draw the value up to now, and the rewards as they came."""
    _head(canvas, x, "value")
    canvas.text(x + width, TOP - 14, "▪ reward", 9.5, GREEN, "rm")
    values = np.array([past.value for past in episode.steps])
    rewards = np.array([past.reward for past in episode.steps])
    low, high = min(0.0, values.min(), rewards.min()), max(0.0, values.max(), rewards.max())
    span = (high - low) or 1.0
    low, high = low - (0.06 * span if low < 0 else 0), high + 0.08 * span
    left, right, top, bottom = x + 30, x + width - 4, TOP + 2, TOP + height - 16

    def at(index: Number, value: Number) -> tuple[Number, Number]:
        along = index / max(1, len(values) - 1)
        return left + 6 + (right - left - 12) * along, bottom - (bottom - top) * (value - low) / (high - low)

    for tick in _ticks(low, high):
        y = at(0, tick)[1]
        canvas.line([(left, y), (right, y)], FAINT if tick == 0 else LINE, 0.5)
        canvas.text(left - 5, y, f"{tick:g}".replace("-", "−"), 9, GREY, "rm")
    for index in sorted({0, len(values) - 1}):
        canvas.text(at(index, 0)[0], TOP + height - 6, str(index + 1), 9, GREY, "mm")
    bar = max(1.0, min(8.0, 0.5 * (right - left) / len(values)))
    for index in np.flatnonzero(rewards[: step + 1]).tolist():
        (place, y), zero = at(index, rewards[index]), at(index, 0)[1]
        canvas.box(place - bar / 2, min(y, zero), bar, abs(zero - y), mix(GREEN if rewards[index] > 0 else RED, 0.75))
    points = [at(index, value) for index, value in enumerate(values[: step + 1])]
    if step:
        canvas.line(points, BLUE, 1.5)
    if len(values) <= 40:
        for point in points[:-1]:
            canvas.disc(*point, 2, BLUE)
    canvas.disc(*points[-1], 4, BLUE, "#ffffff")


def _ticks(low: Number, high: Number) -> list[float]:
    """Return a handful of round numbers between low and high."""
    step = 10.0 ** np.floor(np.log10((high - low) / 2))
    step = next(step * k for k in (1, 2, 5, 10) if (high - low) / (step * k) <= 5)
    return [round(float(tick), 10) + 0.0 for tick in step * np.arange(np.ceil(low / step), np.floor(high / step) + 1)]


PANELS = {"task": _draw_task, "sees": _draw_observation, "will do": _draw_policy, "expects": _draw_value}
