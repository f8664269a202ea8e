"""Fine-tune an encoder on labeled images: python tools/finetune.py [encoder=RUN_OR_FILE] [key=value ...]."""

import json

from ssl_vit.cli.main import guarded, read_finetune_args
from ssl_vit.config.help import finetune_help, resolved_table

USAGE = "python tools/finetune.py [encoder=RUN_OR_FILE] [recipe=digits] [key=value ...] [--dry-run]"


def main(args: list[str]) -> None:
    if "--help" in args:
        print(finetune_help(USAGE))
        return
    resolved = read_finetune_args([arg for arg in args if arg != "--dry-run"])
    if "--dry-run" in args:
        from ssl_vit.supervised.classifier import start_of
        from ssl_vit.train.plan import make_plan

        _, architecture = start_of(resolved.config)
        print(resolved_table(resolved), *make_plan(resolved.config, architecture).lines(), sep="\n")
        return
    from ssl_vit.train.finetuning import finetune

    if done := finetune(resolved.config):
        run_dir, result = done
        print(f"next: python tools/predict.py model={run_dir} images=FOLDER")
        print(json.dumps(result))


if __name__ == "__main__":
    guarded(main)
