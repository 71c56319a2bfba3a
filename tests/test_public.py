"""The public names, as users and their type checkers see them, and the version."""

import ast
import configparser
import shutil
import subprocess
import sys
from pathlib import Path

import merlin

ROOT = Path(__file__).parents[1]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")


def test_type_checkers_see_the_names_that_there_are():
    """What is imported for type checkers alone, each under its own name, which says that it is public."""
    tree = ast.parse(Path(merlin.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {}
    for node in block.body:
        (alias,) = node.names
        assert alias.name == alias.asname
        seen.setdefault(node.module, set()).add(alias.name)
    assert seen == {module: set(names) for module, names in merlin._PUBLIC.items()}
    assert sorted(name for names in seen.values() for name in names) == merlin.__all__


def test_type_checkers_are_told_of_types_and_of_no_lazy_names():
    """A module-level `__getattr__` that they saw would make every misspelt name right."""
    tree = ast.parse(Path(merlin.__file__).read_text(encoding="utf-8"))
    assert not any(isinstance(node, ast.FunctionDef) for node in tree.body)
    assert (ROOT / "merlin" / "py.typed").exists()
    assert SETUP["options.package_data"]["merlin"] == "py.typed"


def test_the_citation_is_of_the_version_of_setup_cfg():
    (version,) = (
        line.removeprefix("version:").strip()
        for line in (ROOT / "CITATION.cff").read_text(encoding="utf-8").splitlines()
        if line.startswith("version:")
    )
    assert version == SETUP["metadata"]["version"]


def test_the_version_is_that_of_setup_cfg(tmp_path):
    assert merlin.__version__ == SETUP["metadata"]["version"]
    # As installed, without a setup.cfg beside it: from the metadata.
    shutil.copy(ROOT / "merlin" / "version.py", tmp_path / "copied.py")
    (tmp_path / "merlin_agents-9.8.7.dist-info").mkdir()
    (tmp_path / "merlin_agents-9.8.7.dist-info" / "METADATA").write_text("Name: merlin-agents\nVersion: 9.8.7\n")
    code = "import copied; print(copied.__version__)"
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert found.stdout == "9.8.7\n", found.stderr
