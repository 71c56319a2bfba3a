"""What README and docs print works: Python runs, commands are understood, links and files are there.

Commands run in tests/test_commands_of_the_documentation.py.
"""

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gymnasium
import pytest

from merlin.cli import parse_arguments
from merlin.cli.compare import default_name
from merlin.moved import MOVED

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = [str(path.relative_to(ROOT)) for kind in ("py", "ipynb") for path in (ROOT / "examples").glob(f"*.{kind}")]
TEXTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in PAGES}


def blocks(text: str, languages: str) -> list[str]:
    """Return the fenced blocks whose language matches `languages`."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [block for language, block in found if re.fullmatch(languages, language)]


def shell_blocks(text: str) -> list[tuple[str, str]]:
    """Return the blocks of commands, each with the reason why it is not run, or nothing."""
    found = re.findall(r"(?:^<!-- not run: (.+) -->\n)?^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [(reason, block) for reason, language, block in found if language == "bash"]


def named_files(text: str) -> dict[str, str]:
    """Return the blocks that begin with the name of a file in a comment, by that name."""
    found = re.findall(r"^```\w+\n# (\w+\.\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return dict(found)


@contextmanager
def ids_forgotten() -> Iterator[None]:
    """Forget the environments that are registered meanwhile by their classes, so that others may use their names."""
    before = set(gymnasium.registry)
    try:
        yield
    finally:
        for name in set(gymnasium.registry) - before:
            if callable(gymnasium.registry[name].entry_point):
                del gymnasium.registry[name]


def prose(text: str) -> str:
    """Return the page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def command_lines() -> list[tuple[str, str]]:
    """Return every line of every block of commands, without its comment, with its page."""
    lines = [
        (page, line) for page, text in TEXTS.items() for block in blocks(text, "|bash") for line in block.split("\n")
    ]
    return [(page, re.split(r"\s+#", line)[0]) for page, line in lines if line]


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


COMMANDS = command_lines()
SNIPPETS = [(page, block) for page, text in TEXTS.items() for block in blocks(text, "python")]
MERLIN = [(page, line) for page, line in COMMANDS if re.match(r"(torchrun .*-m )?merlin ", line)]


def test_pages_are_found():
    assert {"README.md", "RESULTS.md", "CONTRIBUTING.md", "docs/index.md", "docs/tasks.md"} <= TEXTS.keys()
    assert len(SNIPPETS) >= 4 and len(MERLIN) >= 40


@pytest.mark.parametrize("page, snippet", SNIPPETS, ids=[page for page, _ in SNIPPETS])
def test_python_runs(page, snippet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # runs of the snippet go there
    with ids_forgotten():
        exec(compile(snippet, page, "exec"), {"__name__": "snippet"})


@pytest.mark.parametrize("page, command", MERLIN)
def test_commands_are_understood(page, command):
    arguments = shlex.split(command[command.index("merlin ") :])[1:]
    try:
        assert parse_arguments(arguments).command == arguments[0]
    except SystemExit:
        pytest.fail(f"{page}: {command}")


@pytest.mark.parametrize("page", TEXTS)
def test_files_that_are_named_exist(page):
    lines = [line for where, line in COMMANDS if where == page]
    words = {word for line in [*lines, *re.findall(r"`([^`\n]+)`", prose(TEXTS[page]))] for word in line.split()}
    named = {word for word in words if word.startswith(("examples/", "benchmarks/", "docs/")) or word == ".ci/run"}
    assert [word for word in sorted(named) if not (ROOT / word).exists()] == []


@pytest.mark.parametrize("page", TEXTS)
def test_links_resolve(page):
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(TEXTS[page])):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / name).resolve() if name else ROOT / page
        is_broken = not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8")))
        broken += [link] if is_broken else []
    assert broken == []


def old_names(text: str) -> set[str]:
    """Return the modules that a text calls by the name that they had once."""
    named = set(re.findall(r"(?<![\w./])merlin(?:\.\w+)+", text))
    return {old for old in MOVED for name in named if f"{name}.".startswith(f"{old}.")}


def test_an_old_name_would_be_seen():
    assert old_names("from merlin.predictor import Predictor; `merlin.presets.preset`") == {
        "merlin.predictor",
        "merlin.presets",
    }
    assert not old_names("from merlin.agents.merlin.predictor import Predictor; merlin.preset(); merlin.runs.presets")


@pytest.mark.parametrize("page", [*TEXTS, *EXAMPLES])
def test_modules_are_called_by_their_present_names(page):
    """Editors and type checkers find no other, as old ones are looked up when they are imported."""
    assert old_names((ROOT / page).read_text(encoding="utf-8")) == set()


def test_the_page_of_comparisons_names_the_directory_that_they_go_to():
    assert f"`runs/{default_name('merlin/TMaze-v0', {'length': 20})}`" in TEXTS["docs/compare.md"]


def test_index_lists_every_page():
    linked = set(re.findall(r"\]\((\w+\.md)\)", TEXTS["docs/index.md"]))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"} <= linked


def test_readme_is_short_and_has_its_two_commands():
    readme = TEXTS["README.md"]
    assert len(readme.splitlines()) <= 150
    assert "pip install . && merlin train" in readme and "pip install '.[test]' && pytest" in readme
