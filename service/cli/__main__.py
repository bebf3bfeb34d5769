"""So that ``python -m service.cli`` is the command."""

from service.cli.main import main

main()
