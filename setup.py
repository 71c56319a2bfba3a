"""The folder `tasks/` is installed as `merlin.tasks`, so that a user's own `tasks` does not collide; see setup.cfg."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["merlin", "merlin.*"]),
        *(f"merlin.{name}" for name in find_packages(include=["tasks", "tasks.*"])),
    ],
    package_dir={"merlin.tasks": "tasks"},
)
