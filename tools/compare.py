"""Compare runs: one table of the settings that differ and of what came of them.

See `python tools/compare.py --help`.
"""

import sys

from ssl_vit.cli.main import main

if __name__ == "__main__":
    main(["compare", *sys.argv[1:]])
