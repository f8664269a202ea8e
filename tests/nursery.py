"""Starts commands as processes of their own, with the imports paid for once; a script that tests/conftest.py runs.

A line of JSON starts one, {"args": [tool, ...], "variables": {..}, "folder": .., "output": file}, and is answered by
its process id; {"wait": id} is answered by its exit status, negative for a signal.
"""

import json
import os
import runpy
import sys

if __name__ == "__main__":
    import sklearn.datasets
    import sklearn.linear_model  # noqa: F401
    import torchvision.io  # noqa: F401

    import ssl_vit.train.pretraining  # noqa: F401
    from ssl_vit.methods import beit, dino, mae  # noqa: F401

    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            print(os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1]), flush=True)
            continue
        child = os.fork()
        if child:
            print(child, flush=True)
            continue
        with open(asked["output"], "ab", buffering=0) as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(asked["variables"])
        os.chdir(asked["folder"])
        sys.argv = asked["args"]
        runpy.run_path(sys.argv[0], run_name="__main__")
        raise SystemExit
