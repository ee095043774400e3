"""Where things are, for tests that run commands or read the source."""

import pathlib

REPOSITORY = pathlib.Path(__file__).parents[1]
