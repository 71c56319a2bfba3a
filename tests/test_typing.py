"""A type checker's view of the package: of itself no complaint, of a user's code what is wrong with it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHECKER = shutil.which("basedpyright", path=str(Path(sys.executable).parent)) or shutil.which("basedpyright")

pytestmark = [
    pytest.mark.skipif(CHECKER is None, reason="needs basedpyright"),
    pytest.mark.timeout(600),  # it reads PyTorch first
]


def complaints(directory, *files):
    """Return (file, line, message) of each complaint about some files, or about what the settings there name."""
    assert CHECKER is not None
    arguments = [CHECKER, "--pythonpath", sys.executable, "--outputjson", *files]
    result = subprocess.run(arguments, cwd=directory, text=True, capture_output=True)
    try:
        found = json.loads(result.stdout)["generalDiagnostics"]
    except (ValueError, KeyError):
        pytest.fail(result.stdout + result.stderr)
    return [(Path(x["file"]).name, x["range"]["start"]["line"] + 1, x["message"]) for x in found]


@pytest.fixture(scope="module")
def of_users(tmp_path_factory):
    """Return the complaints about a user's files, checked outside the repository by settings of the user's own."""
    directory = tmp_path_factory.mktemp("user")
    files = [shutil.copy(ROOT / "tests" / "typing" / name, directory) for name in ("user.py", "mistakes.py")]
    settings = {"typeCheckingMode": "standard", "pythonVersion": "3.11", "extraPaths": [str(ROOT)]}
    (directory / "pyrightconfig.json").write_text(json.dumps(settings))
    return complaints(directory, *files)


@pytest.mark.slow  # `.ci/run` runs the type checker as well
def test_the_package_has_no_errors():
    assert complaints(ROOT) == []


def test_a_user_of_the_public_names_hears_no_complaint(of_users):
    assert [x for x in of_users if x[0] == "user.py"] == []


def test_every_mistake_of_a_user_is_found_and_nothing_else(of_users):
    lines = (ROOT / "tests" / "typing" / "mistakes.py").read_text(encoding="utf-8").splitlines()
    mistakes = [number for number, line in enumerate(lines, 1) if line.endswith("# mistake")]
    found = [x for x in of_users if x[0] == "mistakes.py"]
    assert sorted({line for _, line, _ in found}) == mistakes, found
