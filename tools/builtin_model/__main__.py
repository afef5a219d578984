"""Makes `python -m tools.builtin_model` work. Nothing else lives here."""

import sys

from .make_model import main

sys.exit(main())
