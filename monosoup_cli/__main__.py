"""`python -m monosoup_cli` is `monosoup`."""

from monosoup_cli.cli.app import run

if __name__ == "__main__":
    run()
