"""Entry point of `python -m stepgraph.cli`."""

import sys

from stepgraph.cli import main

sys.exit(main())
