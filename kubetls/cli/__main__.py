"""`python -m kubetls.cli`, where no script is installed."""

import sys

from kubetls.cli.command import main

sys.exit(main())
