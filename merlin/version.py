"""The version, which setup.cfg says: beside the package in a checkout, else in what was installed from it."""

import configparser
import importlib.metadata
from pathlib import Path

_NAME = "merlin-agents"


def _read() -> str:
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[1] / "setup.cfg", encoding="utf-8")
    if setup.get("metadata", "name", fallback=None) == _NAME:  # an installed version may be an older one
        return setup["metadata"]["version"]
    return importlib.metadata.version(_NAME)


__version__ = _read()
