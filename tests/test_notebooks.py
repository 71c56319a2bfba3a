"""The notebooks of examples/ run in a kernel, with few steps, and show what a notebook can show."""

import importlib.util
import json
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")  # what moves a terminal's cursor, and escapes


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def shown(cell: dict) -> list[dict]:
    """Return what a cell showed, by type."""
    return [x["data"] if "data" in x else {"text/plain": x.get("text", "")} for x in cell["outputs"]]


def check(notebook: dict) -> None:
    """Check that nothing failed, nothing needs a terminal, and that the last cell shows a picture."""
    cells = code_cells(notebook)
    kinds = {x["output_type"] for cell in cells for x in cell["outputs"]}
    assert kinds <= {"stream", "display_data", "execute_result"}
    texts = ["".join(x["text/plain"]) for cell in cells for x in shown(cell)]
    assert not [text for text in texts if CONTROL.search(text)]
    (training,) = (cell for cell in cells if "merlin.train(" in "".join(cell["source"]))
    bar, curve = (x for x in shown(training) if len(x) > 1)
    assert "<progress" in "".join(bar["text/html"]) and "100%" in "".join(bar["text/plain"]) and "image/png" in curve
    assert any("image/png" in x for x in shown(cells[-1]))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_a_notebook_keeps_is_small_and_of_its_code(path):
    assert path.stat().st_size < 250_000
    notebook = json.loads(path.read_text(encoding="utf-8"))
    check(notebook)
    assert [cell["execution_count"] for cell in code_cells(notebook)] == [*range(1, len(code_cells(notebook)) + 1)]
    assert "/tmp/" not in path.read_text(encoding="utf-8"), "of whoever ran it"


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("nbclient", "ipykernel"))), reason="needs nbclient and ipykernel"
)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path, tmp_path, monkeypatch):
    """In another process, which has warnings of its own."""
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # a kernel has its own
    notebook = nbformat.read(path, as_version=4)
    first = code_cells(notebook)[0]
    first["source"], count = re.subn(r"STEPS = [\d_]+", "STEPS = 2_000", first["source"])
    assert count == 1
    NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    check(notebook)
