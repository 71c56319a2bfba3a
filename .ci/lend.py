"""Lends another virtual environment what the wheel of this package requires, extras left out, by links.

python .ci/lend.py ENVIRONMENT

So a wheel is tried with what it says that it needs and nothing else, without another minute of installing PyTorch.
"""

import sys
import sysconfig
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement


def required(name: str, found: set[str]) -> set[str]:
    """Return the names of all distributions that one needs, in `found` too."""
    for line in distribution(name).requires or ():
        requirement = Requirement(line)
        needed = requirement.name.lower().replace("_", "-")
        if (requirement.marker is None or requirement.marker.evaluate({"extra": ""})) and needed not in found:
            found.add(needed)
            required(needed, found)
    return found


def main(environment: Path) -> None:
    source = Path(sysconfig.get_path("purelib"))
    target = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    for name in required("merlin-agents", set()):
        for entry in {file.parts[0] for file in distribution(name).files or ()} - {"..", "__pycache__"}:
            if not (target / entry).exists():
                (target / entry).symlink_to(source / entry)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
