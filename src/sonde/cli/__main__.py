"""`python -m sonde.cli`."""

from sonde.cli import main

main()
