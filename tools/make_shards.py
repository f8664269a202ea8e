"""Pack images of any source into tar shards.

See `python tools/make_shards.py --help`.
"""

import sys

from ssl_vit.cli.main import main

if __name__ == "__main__":
    main(["make_shards", *sys.argv[1:]])
