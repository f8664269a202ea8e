"""Judge an encoder by k-NN: python tools/knn.py [encoder=RUN_OR_FILE] [key=value ...] [--help]."""

from ssl_vit.cli.main import guarded, read_probe_args
from ssl_vit.config.evaluation_schema import KNNConfig
from ssl_vit.config.help import help_text

USAGE = "python tools/knn.py [encoder=RUN_OR_FILE] [key=value ...]"


def main(args: list[str]) -> None:
    if "--help" in args:
        print(help_text(KNNConfig, USAGE))
        return
    config = read_probe_args(args, KNNConfig).config
    from ssl_vit.supervised.report import evaluate, show

    show(evaluate(config))


if __name__ == "__main__":
    guarded(main)
