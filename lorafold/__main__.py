"""`python -m lorafold`, which torchrun and accelerate need."""

import sys

from lorafold.cli import main

sys.exit(main())
