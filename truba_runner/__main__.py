"""Entry point of `python -m truba_runner`; the same as `truba`."""

import sys

from truba_runner.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
