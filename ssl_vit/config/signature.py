"""Options in signatures: of a class that takes them as keywords, and of one that has no configuration of its own.

LightningCLI, editors and `inspect` read signatures and docstrings; both are made of the dataclasses here.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import fields, make_dataclass
from inspect import Parameter
from types import MappingProxyType
from typing import Any, get_type_hints

from ssl_vit.config.checks import fresh, hints_of
from ssl_vit.config.help import field_doc
from ssl_vit.config.schema import TrainingRun

GIVEN = "_given"
"""Attribute of an exposed class's object while it is made: what each __init__ was given for its own parameters."""
REST = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


def own_parameters(init: Callable[..., None]) -> dict[str, Parameter]:
    """Named parameters of an __init__ as it is written, types resolved."""
    init = inspect.unwrap(init)
    hints, found = get_type_hints(init, include_extras=True), inspect.signature(init).parameters
    named = [parameter for name, parameter in found.items() if name != "self" and parameter.kind not in REST]
    return {parameter.name: parameter.replace(annotation=hints.get(parameter.name, Any)) for parameter in named}


def parameters(cls: type) -> dict[str, Parameter]:
    """Named parameters of a class and of the bases whose __init__ it hands the others on to, as keywords."""
    found: dict[str, Parameter] = {}
    for init in [vars(base)["__init__"] for base in cls.__mro__ if "__init__" in vars(base)]:
        found = own_parameters(init) | found
        if not inspect.getfullargspec(inspect.unwrap(init)).varkw:
            break
    return {name: parameter.replace(kind=Parameter.KEYWORD_ONLY) for name, parameter in found.items()}


def config_of(cls: type, base: type[TrainingRun]) -> type[TrainingRun]:
    """A class's run configuration where it declares none: its base's, and what its own __init__ has a default for.

    So `def __init__(self, mask_ratio: float = 0.6, **kwargs)` has a setting method.mask_ratio.
    """
    known = {item.name for item in fields(base)}
    own = own_parameters(vars(cls)["__init__"]).items()
    options = [
        (name, type(p.default) if p.annotation is Any else p.annotation, fresh(copy, x=p.default))
        for name, p in own
        if p.default is not Parameter.empty and name not in known
    ]
    if not options:
        return base
    section, module = base.own_section, {"__module__": cls.__module__}
    bases = (type(base().own_config),)
    config = make_dataclass(f"{cls.__name__}Config", options, bases=bases, kw_only=True, namespace=module)
    setting = (section, config, fresh(config))
    return make_dataclass(f"{cls.__name__}Run", [setting], bases=(base,), kw_only=True, namespace=module)


def expose(cls: type, options: Any, sections: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Give a class that takes **options a signature and docs with the fields of the dataclass that they go into.

    sections: dataclasses of other parameters, by name; they, and the options, are the defaults.
    """
    init, named = cls.__init__, parameters(cls)
    for name in named.keys() & sections.keys():
        named[name] = named[name].replace(default=sections[name], annotation=type(sections[name]))
    for name, hint in hints_of(type(options)).items():
        named[name] = Parameter(name, Parameter.KEYWORD_ONLY, default=getattr(options, name), annotation=hint)
    own = own_parameters(init) if "__init__" in vars(cls) else {}

    @functools.wraps(init)
    def exposed(self: Any, *args: Any, **kwargs: Any) -> None:
        outermost, given = GIVEN not in vars(self), vars(self).setdefault(GIVEN, {})
        if own:
            bound = inspect.signature(init).bind(self, *args, **kwargs)
            bound.apply_defaults()
            given |= {name: bound.arguments[name] for name in own}
        init(self, *args, **kwargs)
        if outermost:  # no copy of the object shall hold what it was made of
            del vars(self)[GIVEN]

    first = Parameter("self", Parameter.POSITIONAL_OR_KEYWORD)
    exposed.__signature__ = inspect.Signature([first, *named.values()])  # pyright: ignore[reportAttributeAccessIssue]
    exposed.__doc__ = arguments(type(options))
    for section in sections.values():
        type(section).__init__.__doc__ = arguments(type(section))
    cls.__init__ = exposed


def arguments(config: type) -> str:
    """The fields of a dataclass as a docstring has them."""
    docs = (f"    {name}: {field_doc(config, name)}" for name in hints_of(config))
    return "\n".join(["Keywords and their meaning.", "", "Args:", *docs])
