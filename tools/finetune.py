"""Fine-tune an encoder on labeled images.

See `python tools/finetune.py --help`.
"""

import sys

from ssl_vit.cli.main import main

if __name__ == "__main__":
    main(["finetune", *sys.argv[1:]])
