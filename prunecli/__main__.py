"""`prune`, and `python -m prunecli`, which is the same program."""

import sys


def main() -> None:
    """Run the program; an interrupt while it is still being loaded is told as any other."""
    try:
        from prunecli.cli.app import main as program
    except KeyboardInterrupt:
        print("error: interrupted; nothing was written\nhint: run the command again", file=sys.stderr)
        sys.exit(130)
    program()


if __name__ == "__main__":
    main()
