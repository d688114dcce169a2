"""`python -m flame_backend.cli`, where no script is installed."""

import sys

from flame_backend.cli import main

sys.exit(main())
