"""Pretrain an encoder on unlabeled images.

See `python tools/pretrain.py --help`.
"""

import sys

from ssl_vit.cli.main import main

if __name__ == "__main__":
    main(["pretrain", *sys.argv[1:]])
