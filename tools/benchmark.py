"""Time a part beside what the field uses for the same work, or see where a run's time goes (suite=doctor).

See `python tools/benchmark.py --help`.
"""

import sys

from ssl_vit.cli.main import main

if __name__ == "__main__":
    main(["benchmark", *sys.argv[1:]])
