import sys

from evomoe.cli.main import main

sys.exit(main())
