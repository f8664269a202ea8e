"""Compare runs: one table of the settings that differ and of what came of them, with mean and std over seeds."""

from ssl_vit.config.checks import require
from ssl_vit.config.evaluation_schema import CompareConfig as Config
from ssl_vit.config.resolve import Resolved

USAGE = "RUN [RUN ...] [out=FOLDER]"
POSITIONAL = "runs"


def run(resolved: Resolved[Config]) -> None:
    """Print the table, and write it as CSV, Markdown and PNG where out= says."""
    from pathlib import Path

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from ssl_vit.run.compare import comparison, read_run, write_comparison

    require(bool(resolved.config.runs), "runs", "", "directories of runs, one or more")
    runs = [read_run(Path(folder)) for folder in resolved.config.runs]
    rows = comparison(runs)
    table = Table()
    for name in rows[0]:
        table.add_column(escape(name), overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row.values()))
    Console().print(table)
    if resolved.config.out:
        print(*write_comparison(runs, Path(resolved.config.out)), sep="\n")
