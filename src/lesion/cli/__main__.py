"""`python -m lesion.cli` is the `lesion` command."""

from lesion.cli import main

main()
