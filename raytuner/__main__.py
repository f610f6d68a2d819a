"""``python -m raytuner``."""

from raytuner.cli import main

main()
