"""`python -m tokenissuer`."""

import sys

from tokenissuer.cli import main

sys.exit(main())
