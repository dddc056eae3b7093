"""``job`` and ``python -m job``."""

from __future__ import annotations

import sys

from job.cli import main

if __name__ == "__main__":
    sys.exit(main())
