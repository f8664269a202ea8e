"""Signatures made of dataclasses: LightningCLI, editors and `inspect` read them and the docstring."""

import inspect
from inspect import Parameter
from typing import Any

from ssl_vit.config.checks import hints_of
from ssl_vit.config.help import field_doc


def expose(cls: type, options: Any) -> None:
    """Give a class that takes **options a signature, and docs, with the fields of the dataclass that they go into."""
    hints, init = hints_of(type(options)), vars(cls)["__init__"]
    own = [p for p in inspect.signature(init).parameters.values() if p.kind is not Parameter.VAR_KEYWORD]
    added = [Parameter(n, Parameter.KEYWORD_ONLY, default=getattr(options, n), annotation=h) for n, h in hints.items()]
    init.__signature__ = inspect.Signature(own + added)
    docs = "\n".join(f"    {name}: {field_doc(type(options), name)}" for name in hints)
    before, _, rest = inspect.cleandoc(cls.__doc__ or "").partition("Args:\n")
    own_docs, _, after = rest.partition("\n\n")
    cls.__doc__ = f"{before}Args:\n{own_docs}\n{docs}\n\n{after}"
