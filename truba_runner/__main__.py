"""Entry point of `python -m truba_runner`; the same as `truba`."""

import sys

from truba_runner.python_check import refuse_older_python

refuse_older_python()

from truba_runner.cli.main import main  # noqa: E402  # Python older than 3.9 cannot import it.

if __name__ == "__main__":
    sys.exit(main())
