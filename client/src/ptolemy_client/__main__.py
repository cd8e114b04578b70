"""``python -m ptolemy_client``: the same as ``ptolemy-batch``."""

import sys

from .cli import main

sys.exit(main())
