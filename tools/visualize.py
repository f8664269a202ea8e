"""Draw what an encoder attends to and how its patch features differ.

See `python tools/visualize.py --help`.
"""

import sys

from ssl_vit.cli.main import main

if __name__ == "__main__":
    main(["visualize", *sys.argv[1:]])
