import sys

from evomoe.cli import main

sys.exit(main())
