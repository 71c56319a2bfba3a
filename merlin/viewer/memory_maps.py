"""Memories being read: slots across, a row of weights for each read key."""

from pathlib import Path

import numpy as np

from merlin.errors import MerlinError
from merlin.networks.spaces import kind, shape_of
from merlin.viewer.canvas import BLUE, EMPTY, FAINT, GREEN, GREY, INK, LINE, ORANGE, RED, Canvas, Number, mix
from merlin.viewer.episodes import Episode, Step
from merlin.viewer.observations import coloured_entry, draw_entry, draw_word, in_words, is_picture, is_word, label

POLICY, PREDICTOR = "#6a3d9a", BLUE
LABELS, ROW, HEAD = 108, 25, 30  # room for the names of rows; heights of a row and of the headline
FEWEST_SLOTS = 8  # that are drawn; of more only those that the episode writes
WIDEST, NARROWEST = 90, 9  # a slot, in points; narrower ones are drawn as strips
DIFFUSE = 0.25  # a read of which no slot has more
MOST_ENTRIES, MOST_NUMBERS = 3, 8  # that are shown of what a slot holds


def read_rows(step: Step) -> list[tuple[str, str, np.ndarray]]:
    """Return (name, colour, weights over slots) of each read key of a step, the policy's first."""
    rows = []
    if step.policy_read_weights is not None:
        many = len(step.policy_read_weights) > 1
        for k, weights in enumerate(step.policy_read_weights):
            rows.append((f"policy {k + 1}" if many else "policy", POLICY, weights))
    if step.read_weights is not None:
        whose = "predictor" if rows else "key"
        rows += [(f"{whose} {k + 1}", PREDICTOR, weights) for k, weights in enumerate(step.read_weights)]
    return rows


def num_shown_slots(episode: Episode) -> int:
    """Return how many slots are worth drawing."""
    memory_size = read_rows(episode.steps[0])[0][2].shape[0]
    written = {slot for step in episode.steps for slot in (step.slot, step.slot_before_reads) if slot is not None}
    return min(memory_size, max(FEWEST_SLOTS, 1 + max(written)))


def height_of_memory(episode: Episode) -> Number:
    """Return how high `draw_memory` draws."""
    return HEAD + _height_of_contents(episode) + 6 + ROW * len(read_rows(episode.steps[0])) + 34


def draw_memory(canvas: Canvas, x: Number, y: Number, width: Number, episode: Episode, step: int) -> None:
    """Draw what each slot holds, how much each key reads from it, and which one is written."""
    now, held, count = episode.steps[step], episode.held(step), num_shown_slots(episode)
    before = episode.held_before_reads(step)
    full = {*held, *before}
    assert now.slot is not None, "a memory is drawn where there is one"
    rows = read_rows(now)
    x_slots = x + LABELS
    cell = min(WIDEST, (width - LABELS) / count)
    x_end = x_slots + cell * count
    canvas.line([(x, y), (x + width, y)], LINE, 0.75)
    end = x + 12 + canvas.text(x, y + 20, "memory", 11, bold=True)
    canvas.text(end, y + 20, in_a_sentence(episode, step, held, before), 11, rows[0][1], width=x + width - end)

    y += HEAD + 6
    is_new = now.slot >= 0 and now.slot not in full
    y = _draw_contents(canvas, x, y, cell, episode, held | ({now.slot: step} if is_new else {}), now.slot)
    for name, colour, weights in rows:
        canvas.text(x, y + ROW / 2 - 1, f"{name} reads", 10.5, INK)
        _draw_weights(canvas, x_slots, y, cell, ROW - 2, colour, weights[:count], full)
        y += ROW
    place = x_slots + (now.slot + 0.5) * cell
    if 0 <= now.slot < count:
        canvas.triangle(place, y + 1, 7, ORANGE)
        words = "written now" if is_new else "overwritten now"
        half = 0.5 * (44 if is_new else 62) + 6
        canvas.text(min(max(place, x_slots + half), x + width - half), y + 16, words, 9.5, ORANGE, "mm", bold=True)
    total = weights.shape[0]
    canvas.text(x, y + 16, f"{count} of {total} slots" if count < total else f"{total} slots", 9.5, GREY)
    if cell < NARROWEST:
        canvas.box(x_slots, y - ROW * len(rows), x_end - x_slots, ROW * len(rows) - 2, outline=LINE, line=0.5)


def memory_picture(episode: Episode, path: Path, title: str = "") -> None:
    """Write a picture of an episode's memory: time down, slots across, a panel of read weights for each key.

    Raises:
        MerlinError: The agent has no memory, or the file cannot be written.
    """
    if episode.steps[0].slot is None:
        raise MerlinError("A picture of a memory needs an agent that has one: take a run of merlin or rl-mem.")
    rows, count, num_steps = read_rows(episode.steps[0]), num_shown_slots(episode), len(episode.steps)
    cell = min(24.0, max(3.0, 210 / count))
    line = min(24.0, max(3.0, 420 / num_steps))
    wordy = line >= 11 and any(is_word(space) for space in episode.spaces.values())
    story = 196 if wordy else 40
    gap, top = 24, (40 if title else 14) + 22 + (_height_of_contents(episode, cell) + 6 if cell >= 16 else 0)
    panel = cell * count
    canvas = Canvas(24 + story + len(rows) * (panel + gap), top + line * num_steps + 40)
    if title:
        canvas.text(24, 24, title, 14, bold=True)
    last = episode.held(num_steps)
    for k, (name, _, _) in enumerate(rows):
        x = 24 + story + k * (panel + gap)
        contents = top - 6 - (_height_of_contents(episode, cell) if cell >= 16 else 0)
        canvas.text(x + panel / 2, contents - 10, f"{name} reads", 11, bold=True, anchor="mm")
        if cell >= 16:
            _draw_contents(canvas, 42 if k == 0 and wordy else None, contents, cell, episode, last, None, x_slots=x)
    for index, step in enumerate(episode.steps):
        y, full = top + index * line, {*episode.held(index), *episode.held_before_reads(index)}
        if wordy:
            canvas.text(24, y + line / 2, str(index + 1), 9.5, GREY)
            seen = in_words(episode.spaces, step.observation)
            canvas.text(42, y + line / 2, f"{seen} → {episode.action_name(index)}", 9.5, width=story - 52)
            if step.reward:
                canvas.disc(24 + story - 8, y + line / 2, 3, GREEN if step.reward > 0 else RED)
        elif index == 0 or index == num_steps - 1:
            canvas.text(24, y + line / 2, str(index + 1), 9.5, GREY)
        for k, (_, colour, weights) in enumerate(read_rows(step)):
            x = 24 + story + k * (panel + gap)
            height = line - (1.5 if line > 8 else 0)
            _draw_weights(canvas, x, y, cell, height, colour, weights[:count], full, percent=False)
            if step.slot is not None and 0 <= step.slot < count and cell >= NARROWEST:
                canvas.box(x + step.slot * cell, y, cell - 1.5, line - 1.5, outline=ORANGE, line=1.25, radius=2)
    y = top + line * num_steps + 20
    x = 24 + story
    for fill, outline, words in (
        (mix(POLICY, 0.85), None, "read, the darker the more"),
        (EMPTY, ORANGE, "written"),
        (EMPTY, None, "empty"),
        (GREEN, None, "rewarded"),
    ):
        if fill == GREEN:
            canvas.disc(x + 7, y, 3, fill)
        else:
            canvas.box(x, y - 6, 12, 12, fill, outline, 1.25)
        x += 18 + canvas.text(x + 18, y, words, 9.5, GREY) + 18
    canvas.save(path)


def in_a_sentence(episode: Episode, step: int, held: dict[int, int], before: dict[int, int] | None = None) -> str:
    """Return in words what the sharpest key of the policy reads, or of whoever reads.

    Args:
        held: See `Episode.held`.
        before: See `Episode.held_before_reads`.
    """
    before = before or {}
    rows = read_rows(episode.steps[step])
    name, _, weights = max((row for row in rows if row[1] == rows[0][1]), key=lambda row: row[2].max())
    if not held and not before:
        return "is empty"
    slot = int(weights.argmax())
    if slot in held:
        seen = in_words(episode.spaces, episode.steps[held[slot]].observation)
        what = f"step {held[slot] + 1}" + (f", when it saw {seen}" if seen else "")
    elif slot in before:
        what = f"step {before[slot] + 1}, before it looked"
    else:
        return f"{name} reads empty slots"
    if weights[slot] < DIFFUSE and len(held) + len(before) > 1:
        return f"{name} reads no slot much: at most {100 * weights[slot]:.0f}%, from {what}"
    return f"{name} reads most from {what}: {100 * weights[slot]:.0f}%"


def _shown_entries(episode: Episode) -> list[str]:
    """Return the entries that a slot is small enough for."""
    small = [
        name
        for name, space in episode.spaces.items()
        if is_picture(space) or is_word(space) or (kind(space) == "vector" and np.prod(shape_of(space)) <= MOST_NUMBERS)
    ]
    return small[:MOST_ENTRIES]


def _heights(episode: Episode, cell: Number) -> dict[str, Number]:
    spaces = {name: episode.spaces[name] for name in _shown_entries(episode)}
    return {name: min(cell, 44) + 2 if is_picture(space) else 21 for name, space in spaces.items()}


def _height_of_contents(episode: Episode, cell: Number | None = None) -> Number:
    if cell is None:
        cell = min(WIDEST, (912 - LABELS) / num_shown_slots(episode))
    return sum(_heights(episode, cell).values()) if cell >= NARROWEST else 0


def _draw_contents(canvas, x, y, cell, episode, held, written, x_slots=None) -> Number:
    """Draw what was seen when each slot was written, in a row for each entry; return where the next row begins."""
    if cell < NARROWEST:
        return y
    begin, x_slots = y, x + LABELS if x_slots is None else x_slots
    coloured = coloured_entry(episode.spaces)
    for name, height in _heights(episode, cell).items():
        if x is not None:
            canvas.text(x, y + height / 2 - 1, label(name) or "holds", 10.5, GREY, width=LABELS - 24)
        for slot in range(num_shown_slots(episode)):
            place = x_slots + slot * cell
            if slot not in held:
                canvas.box(place, y, cell - 2, height - 2, EMPTY, radius=2)
                continue
            space, value = episode.spaces[name], episode.steps[held[slot]].observation[name]
            if is_word(space):
                size = min(10.5, 0.55 * cell)
                draw_word(canvas, place, y, cell - 2, height - 2, space, int(value), name == coloured, size)
            else:
                draw_entry(canvas, place, y, cell - 2, height - 2, space, value, is_centred=True)
        y += height
    if written is not None and 0 <= written < num_shown_slots(episode):
        canvas.box(x_slots + written * cell - 2, begin - 2, cell + 2, y - begin + 2, outline=ORANGE, line=1.5, radius=4)
    return y + 6


def _draw_weights(canvas, x, y, cell, height, colour, weights, full, percent=True) -> None:
    """Draw a key's weights as cells, darker where it reads more; slots that hold nothing are hatched."""
    if cell < NARROWEST:
        shades = [_shade(colour, float(w)) if slot in full else EMPTY for slot, w in enumerate(weights)]
        canvas.strip(x, y, cell * len(weights), height, shades)
        return
    for slot, weight in enumerate(weights):
        place, share = x + slot * cell, float(weight)
        if slot not in full and share < 0.005:
            canvas.hatched(place, y, cell - 2, height)
            continue
        canvas.box(place, y, cell - 2, height, _shade(colour, share), mix(FAINT, 0.5), 0.5, 2)
        if percent and cell >= 24 and share >= 0.005:
            ink = "#ffffff" if share > 0.4 else INK if share > 0.1 else GREY
            canvas.text(place + cell / 2 - 1, y + height / 2, f"{100 * share:.0f}", 9.5, ink, "mm", bold=share > 0.4)


def _shade(colour: str, weight: Number) -> str:
    """Return the colour of a weight: by its root, or reads spread over many slots would be white."""
    return mix(colour, weight**0.6, "#fafbfc")
