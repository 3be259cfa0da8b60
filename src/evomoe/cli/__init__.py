"""The command line: ``evomoe``, or ``python -m evomoe.cli``."""
