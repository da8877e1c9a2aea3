"""`python -m raylign` is the `raylign` command."""

from raylign.app.cli import main

main()
