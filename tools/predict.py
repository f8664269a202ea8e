"""Classify images by a fine-tuned model, into a table.

See `python tools/predict.py --help`.
"""

import sys

from ssl_vit.cli.main import main

if __name__ == "__main__":
    main(["predict", *sys.argv[1:]])
