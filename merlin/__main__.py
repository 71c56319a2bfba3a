"""`python -m merlin` is the command `merlin`."""

import sys

from merlin.cli import main

if __name__ == "__main__":  # worker processes that are spawned import this module too
    sys.exit(main())
