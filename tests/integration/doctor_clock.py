"""`tokenissuer` on a machine whose clock is wrong: the first argument says by how many seconds."""

import sys
import time

_seconds = float(sys.argv.pop(1))
_right = time.time
time.time = lambda: _right() + _seconds

if __name__ == "__main__":
    from tokenissuer.cli import main

    sys.exit(main())
