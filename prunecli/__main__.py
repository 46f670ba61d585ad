"""`python -m prunecli` is the same program as `prune`."""

from prunecli.cli.app import main

if __name__ == "__main__":
    main()
