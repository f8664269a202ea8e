"""Features of images as a table: names, labels, features.

See `python tools/embed.py --help`.
"""

import sys

from ssl_vit.cli.main import main

if __name__ == "__main__":
    main(["embed", *sys.argv[1:]])
