"""Tables as CSV: every text in quotes, none of them a formula, each of them UTF-8."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")  # what begins one in a spreadsheet; some also take the full-width ones


def as_csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """The text of a CSV file; a text that a spreadsheet would take for a formula begins with an apostrophe (OWASP)."""
    text = io.StringIO()
    text.write(",".join(columns) + "\n")
    writer = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    for row in rows:
        writer.writerow(harmless(value) for value in row)
    return text.getvalue()


def readable(text: str) -> str:
    """A file's name, or a text with one, as UTF-8 can have it: a byte that is none as Python writes it, `\\udcff`."""
    return text.encode(errors="backslashreplace").decode()


def harmless(value: Any) -> Any:
    """A cell's value; a text that would be a formula with an apostrophe before it."""
    is_formula = isinstance(value, str) and (value.startswith(("\t", "\r", "\n")) or value.lstrip().startswith(FORMULA))
    return f"'{value}" if is_formula else value
