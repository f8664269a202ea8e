"""Pretrain an encoder: python tools/pretrain.py method=mae [recipe=digits] [key=value ...] [--help] [--dry-run]."""

from ssl_vit.cli.main import guarded, read_run_args
from ssl_vit.config.help import resolved_table, run_help

USAGE = "python tools/pretrain.py method=mae [recipe=digits] [key=value ...] [--dry-run]"


def main(args: list[str]) -> None:
    if "--help" in args:
        print(run_help(args, USAGE))
        return
    resolved = read_run_args([arg for arg in args if arg != "--dry-run"])
    if "--dry-run" in args:
        from ssl_vit.train.plan import make_plan

        print(resolved_table(resolved), *make_plan(resolved.config).lines(), sep="\n")
        return
    from ssl_vit.train.pretraining import pretrain

    if run_dir := pretrain(resolved.config, resolved.method):
        print(f"next: python tools/linear_probe.py encoder={run_dir}")
        print(f"look: tensorboard --logdir {run_dir}")


if __name__ == "__main__":
    guarded(main)
