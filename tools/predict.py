"""Classify images: python tools/predict.py images=FILE_OR_FOLDER [model=RUN_OR_FILE] [out=predictions.csv]."""

from ssl_vit.cli.main import guarded
from ssl_vit.config.finetune_schema import PredictConfig
from ssl_vit.config.help import help_text
from ssl_vit.config.resolve import read

USAGE = "python tools/predict.py images=FILE_OR_FOLDER [model=RUN_OR_FILE] [out=predictions.csv] [top=5]"


def main(args: list[str]) -> None:
    if "--help" in args:
        print(help_text(PredictConfig, USAGE))
        return
    config = read(PredictConfig, args).config
    from ssl_vit.supervised.predict import predict

    out, table = predict(config)
    unread = [row for row in table if row["error"]]
    print(f"{len(table) - len(unread)} images classified, {len(unread)} could not be read: {out}")


if __name__ == "__main__":
    guarded(main)
