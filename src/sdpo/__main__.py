"""The command line as a module: `python -m sdpo`, and `accelerate launch -m sdpo`."""

import sys

from sdpo.cli.main import main

sys.exit(main())
