"""``python -m bitloss`` is the command line, as the installed script ``bitloss``."""

import sys

_WITH_STEPS = frozenset({"demo", "run", "measure", "sensitivity", "convert", "imatrix", "quantize", "base"})


def entry() -> None:
    """Run the command line; a verb that will run steps gets the process for them started first."""
    arguments = sys.argv[1:]
    if arguments and arguments[0] in _WITH_STEPS and not {"-h", "--help"} & set(arguments):
        from bitloss.run.starting import start_ahead

        start_ahead()
    from bitloss.cli import main

    sys.exit(main())


if __name__ == "__main__":
    entry()
