"""The test suite; LEPTON_LONG_TESTS=1 asks for its long form: more kills, fuzzing and models."""

import os

LONG = bool(os.environ.get('LEPTON_LONG_TESTS'))
