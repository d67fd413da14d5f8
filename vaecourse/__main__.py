"""``python -m vaecourse`` is the command ``vaecourse``."""

import sys

from vaecourse.cli import main

if __name__ == "__main__":
    sys.exit(main())
