"""``python -m trtsparse`` is the ``trtsparse`` command."""

import sys

from trtsparse.cli.main import main

sys.exit(main())
