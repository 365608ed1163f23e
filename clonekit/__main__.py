"""`python -m clonekit`: the command line."""

from __future__ import annotations

import sys

from clonekit.cli import main

sys.exit(main())
