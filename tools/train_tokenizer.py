"""Train a tokenizer, which turns patches into tokens for BEiT.

See `python tools/train_tokenizer.py --help`.
"""

import sys

from ssl_vit.cli.main import main

if __name__ == "__main__":
    main(["train_tokenizer", *sys.argv[1:]])
