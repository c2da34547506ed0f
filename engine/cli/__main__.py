"""``python -P -m engine.cli``: the ``flightlog`` command."""

from engine.cli import main

main()
