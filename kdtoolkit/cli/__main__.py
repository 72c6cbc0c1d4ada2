"""`python -m kdtoolkit.cli`."""

import sys

from kdtoolkit.cli import main

if __name__ == "__main__":
    sys.exit(main())
