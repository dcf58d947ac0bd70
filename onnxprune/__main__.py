"""``python -m onnxprune`` is the command ``onnxprune``."""

import sys

from onnxprune.cli import main

if __name__ == "__main__":
    sys.exit(main())
