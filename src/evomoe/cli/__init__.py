"""The command line: ``evomoe``, ``python -m evomoe.cli``, or ``main(arguments)`` from your own script."""

from evomoe.cli.command_line import main

__all__ = ["main"]
