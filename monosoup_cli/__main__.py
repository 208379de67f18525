"""`python -m monosoup_cli` is `monosoup`."""

from monosoup_cli.cli.app import main

if __name__ == "__main__":
    raise SystemExit(main())
