"""Writes what the documentation takes from the code: a card for each task, and the marked parts of other pages.

python benchmarks/pages.py

A marked part stands between two comments in a page of docs/, and is written anew from what the first of them names:

    <!-- docstring: module.Name -->                what a class says of itself, without its arguments and differences
    <!-- differences: module.Name -->              its differences from the paper
    <!-- settings: AGENT -->                       settings, with the paper's values
    <!-- end -->
"""

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gallery import card_name, picture
from PIL import Image

from merlin import tasks
from merlin.networks.spaces import describe_entries, flatten_space
from merlin.runs.presets import DEFAULT_TASK, paper_values, preset, recommended
from merlin.runs.settings import list_settings

DOCS = Path(__file__).parents[1] / "docs"
MARKED = re.compile(r"(<!-- (docstring|differences|settings): ([\w.-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
DIFFERENCES = re.compile(r"Differences? from the paper")


def card(task_id: str) -> str:
    """Return the page of a task."""
    task = tasks.TASKS[task_id]
    module = importlib.import_module(task.module)
    batched, name = getattr(module, task.vector_name), card_name(task_id)
    with gymnasium.make(task_id) as env:
        spaces, action_space = flatten_space(env.observation_space), env.action_space
    read_as = dict(part.split(": ", 1) for part in describe_entries(spaces))
    entries = [f"| `{entry}` | `{_short(space)}` | {read_as[entry]} |" for entry, space in spaces.items()]
    about = [to_markdown(inspect.getdoc(owner) or "") for owner in (module, batched)]
    about[1] = re.sub(r"\A.*, batched\.\n*", "", about[1])
    parts = [
        f"# {task_id.removeprefix('merlin/').removesuffix('-v0')}",
        f"{task.summary[0].upper()}{task.summary[1:]}.",
        f"![{task_id} from above]({name}.png)",
        "## Make it",
        "```python\nimport gymnasium\nimport merlin  # registers the tasks\n\n"
        f'env = gymnasium.make("{task_id}")  # one, of numpy arrays\n'
        "# a batch, of tensors:\n"
        f'envs = gymnasium.make_vec("{task_id}", num_envs=4, vectorization_mode="vector_entry_point")\n```',
        f"`merlin train {task_id}` trains on it, `merlin play {task_id}` lets you try it.",
        "## What happens",
        *about,
        "## Spaces",
        "\n".join(["| entry of the observation | space | read as |", "|---|---|---|", *entries]),
        f"Action: `{_short(action_space)}`.",
        "## Settings",
        arguments(batched),
        "## Scores",
        "\n".join(["| settings | random | memoryless | oracle |", "|---|---|---|---|", *scores(task_id)]),
        "What ≥ and ≤ mean, and the scores of the other tasks: [tasks](../tasks.md).",
        f"Written by `python benchmarks/pages.py` from `{task.module}`.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def cards() -> str:
    """Return the page that leads to all cards."""
    rows = ["| task | | what is asked |", "|---|---|---|"]
    for task_id, task in tasks.TASKS.items():
        link, title = f"tasks/{card_name(task_id)}", task_id.removeprefix("merlin/").removesuffix("-v0")
        rows.append(f"| [{title}]({link}.md) | ![{title}]({link}.png) | {task.summary} |")
    about = (
        "A card for each task: how to make it, what happens, spaces, settings, scores. All scores: [tasks](tasks.md)."
    )
    by = "Written by `python benchmarks/pages.py`."
    return "\n\n".join(["# Cards of the tasks", about, "\n".join(rows), by]) + "\n"


def scores(task_id: str) -> list[str]:
    """Return the rows of a task in docs/tasks.md, without what is told elsewhere."""
    rows, current = [], ""
    for line in (DOCS / "tasks.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        current = cells[0] or current
        if len(cells) == 7 and f"`{task_id}`" in current:
            rows.append(f"| {' | '.join(cells[1:5])} |")
    return rows


def arguments(cls: type) -> str:
    """Return the table of what a task is made with."""
    found = {}
    for owner in reversed(cls.__mro__):
        for name, text in re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", _section(inspect.getdoc(owner) or ""), re.M):
            found[name] = " ".join(text.split())
    parameters: dict[str, inspect.Parameter] = {}
    for owner in reversed(cls.__mro__):  # what a class passes on to those that it extends
        if "__init__" in vars(owner) and owner.__module__.startswith("merlin.tasks"):
            parameters |= inspect.signature(owner.__init__).parameters
    own = inspect.signature(cls.__init__).parameters
    passes_on = any(p.kind is p.VAR_KEYWORD for p in own.values())
    found.pop("num_grids", None)  # for classes that extend the world
    names = [*own, *(name for name in found if name in parameters and name not in own and passes_on)]
    rows = [
        f"| `{name}` | `{parameters[name].default!r}` | {found.get(name, COMMON.get(name, ''))} |"
        for name in names
        if name in parameters and parameters[name].default is not inspect.Parameter.empty
    ]
    return "\n".join(["| keyword | default | meaning |", "|---|---|---|", *rows])


COMMON = {
    "num_envs": "Episodes side by side; `gymnasium.make` has one.",
    "device": "Where the tensors are.",
    "render_mode": '`"rgb_array"`, or `"human"` for a window.',
}
"""What all tasks take alike, where a docstring does not say it."""


def _section(doc: str) -> str:
    """Return the arguments that a docstring lists."""
    return doc.partition("\nArgs:\n")[2].partition("\n\n")[0]


def _short(space: gymnasium.Space) -> str:
    """Return a space in one line."""
    if isinstance(space, gymnasium.spaces.MultiDiscrete) and space.nvec.ndim > 1:
        return f"MultiDiscrete{list(space.shape)}"
    return re.sub(r"\s+", " ", str(space))


def to_markdown(doc: str) -> str:
    """Return a docstring up to its arguments and differences, its indented blocks fenced."""
    doc = DIFFERENCES.split(doc.partition("\nArgs:\n")[0])[0].strip()
    blocks = re.split(r"(?m)((?:^    .*\n?|^\n(?=    ))+)", doc + "\n")
    written = [
        f"\n```text\n{inspect.cleandoc(block)}\n```\n" if block.startswith(("    ", "\n    ")) else block.strip("\n")
        for block in blocks
        if block.strip()
    ]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(written)).strip()


def differences(doc: str) -> str:
    """Return the list of differences from the paper that a docstring has."""
    after = DIFFERENCES.split(doc, maxsplit=1)[1].partition("\nArgs:\n")[0].strip()
    head, colon, listed = after.partition(":\n\n")
    if not colon:  # one sentence
        sentence = after.removeprefix(":").strip().partition("\n\n")[0]
        return sentence[0].upper() + sentence[1:]
    head = head.removeprefix(",").strip()
    return f"{head[0].upper()}{head[1:]}:\n\n{listed}" if head else listed


def settings(agent: str) -> str:
    """Return the table of the settings that the preset "paper" changes, or states as the paper's."""
    small, large = (preset(agent, DEFAULT_TASK, name=name) for name in (None, "paper"))
    stated = paper_values(agent, DEFAULT_TASK, {})
    ours, papers = ({x.path: x for x in list_settings(config)} for config in (small, large))
    differing = {path for path, x in ours.items() if x.value != papers[path].value}
    heads = ["setting", "`merlin train`", "`--preset paper`", *(["said by"] if stated else []), "meaning"]
    rows = [heads, ["---"] * len(heads)]
    for path in sorted((differing | _paths(recommended(agent, DEFAULT_TASK, {}, "paper"))) - {"preset", *RECORDS}):
        said_by = [stated.get(path, ("", "ours"))[1]] if stated else []
        values = [_value(found[path].value) for found in (ours, papers)]
        rows.append([f"`{path}`", *values, *said_by, _meaning(ours[path].text)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


RECORDS = ("preset_reason", "steps", "num_envs")
"""What is no setting of an agent."""


def _paths(table: Any, prefix: str = "") -> set[str]:
    """Return the dotted names of the settings of a table."""
    if not isinstance(table, dict):
        return {prefix}
    return {path for name, x in table.items() for path in _paths(x, f"{prefix}.{name}" if prefix else name)}


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else f"{value}"


def _meaning(text: str) -> str:
    """Return the first sentence of what a setting means."""
    return re.split(r"(?<=[.;])\s", text)[0].rstrip(".;").replace("|", "\\|")


def filled(page: str) -> str:
    """Return a page with its marked parts written anew."""

    def part(match: re.Match) -> str:
        begin, kind, name, end = match.groups()
        if kind == "settings":
            text = settings(name)
        else:
            module, _, attribute = name.rpartition(".")
            doc = inspect.getdoc(getattr(importlib.import_module(module), attribute)) or ""
            text = to_markdown(doc) if kind == "docstring" else differences(doc)
        return f"{begin}\n{text}\n\n{end}"

    return MARKED.sub(part, page)


def drawn(task_id: str) -> np.ndarray:
    """Return the picture of a task's card, at least 160 pixels wide."""
    pixels = picture(task_id)
    return pixels.repeat(scale := max(1, round(240 / pixels.shape[1])), 0).repeat(scale, 1)


def written() -> dict[Path, str]:
    """Return every page that has something of the code, as it should be."""
    pages = {DOCS / "tasks" / f"{card_name(task_id)}.md": card(task_id) for task_id in tasks.TASKS}
    pages[DOCS / "cards.md"] = cards()
    for path in sorted(DOCS.glob("*.md")):
        page = path.read_text(encoding="utf-8")
        pages |= {path: filled(page)} if MARKED.search(page) else {}
    return pages


def main() -> None:
    for path, text in written().items():
        path.write_text(text, encoding="utf-8")
    for task_id in tasks.TASKS:
        Image.fromarray(drawn(task_id)).save(DOCS / "tasks" / f"{card_name(task_id)}.png", optimize=True)


if __name__ == "__main__":
    main()
