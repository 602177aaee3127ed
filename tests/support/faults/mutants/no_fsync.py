"""A commit that syncs nothing: after a loss of power names stand before their bytes."""

import os

os.fsync = lambda descriptor: None
