"""``python -m bitloss`` is the command line."""

from bitloss.cli import entry

entry()
