"""The console script. `python -m monosoup_cli` is `monosoup`."""

import gc
import os
import sys

from monosoup_cli.errors import ON_WINDOWS

if os.name == "nt":
    sys.exit(f"error: {ON_WINDOWS}")

from monosoup_cli.cli.process import end_at_signals, guard_streams


def run() -> None:
    """Run the command line. Signals and streams are seen to before the commands are imported."""
    gc.disable()  # makes imports a quarter faster; `import_torch` enables it again
    end_at_signals()
    guard_streams()

    from monosoup_cli.cli.app import main

    sys.exit(main())


if __name__ == "__main__":
    run()
