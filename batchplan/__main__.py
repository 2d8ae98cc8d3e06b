"""``python -m batchplan``."""

from batchplan.cli.main import main

main()
