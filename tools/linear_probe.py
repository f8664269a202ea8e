"""Evaluate an encoder by a linear classifier on its frozen features.

See `python tools/linear_probe.py --help`.
"""

import sys

from ssl_vit.cli.main import main

if __name__ == "__main__":
    main(["linear_probe", *sys.argv[1:]])
