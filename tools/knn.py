"""Evaluate an encoder by k-nearest neighbors of its frozen features.

See `python tools/knn.py --help`.
"""

import sys

from ssl_vit.cli.main import main

if __name__ == "__main__":
    main(["knn", *sys.argv[1:]])
