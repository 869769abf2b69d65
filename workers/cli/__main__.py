"""`python -m workers.cli`: the same as the command `channelindex`."""

import sys

from workers.cli import main

sys.exit(main())
