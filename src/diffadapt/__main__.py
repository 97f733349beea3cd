"""`python -m diffadapt`, for `accelerate launch -m diffadapt train ...` and checkouts that are not installed."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
