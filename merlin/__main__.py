"""`python -m merlin` is the command `merlin`."""

import contextlib
import os
import sys

if __name__ == "__main__":  # worker processes that are spawned import this module too
    with contextlib.suppress(OSError):  # there is no working directory any more
        # Python would import modules from the working directory, which may be anybody's run directory.
        if os.path.abspath(sys.path[0] or ".") == os.getcwd():
            del sys.path[0]

    from merlin.cli import main

    sys.exit(main())
