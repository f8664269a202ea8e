"""Pages of the site that the code says: the settings of every command, from its dataclasses, and the public names."""

import inspect
from typing import Any

from mkdocs.structure.files import File, Files

import ssl_vit
from ssl_vit.cli.main import COMMANDS, command
from ssl_vit.config.checks import kind, shown
from ssl_vit.config.help import field_doc
from ssl_vit.config.pretrain_schema import METHODS
from ssl_vit.config.schema import RunConfig
from ssl_vit.config.tokenizer_schema import TOKENIZERS, TokenizerRun
from ssl_vit.config.values import Setting, settings_of

ROOMS = {"models": "Encoder", "methods": "Methods", "data": "Data", "supervised": "Probes, fine-tuning, classifiers"}
"""Headings of the public names by the package that has them; others are named like their package."""


def on_config(config: Any) -> None:
    """Put a page for each command under Settings."""
    reference = next(group["Reference"] for group in config["nav"] if "Reference" in group)
    next(group for group in reference if "Settings" in group)["Settings"] = [*settings_pages()]


def on_files(files: Files, config: Any) -> None:
    """Add the pages."""
    for path, text in {**settings_pages(), "api.md": public_names()}.items():
        files.append(File.generated(config, path, content=text))


def settings_pages() -> dict[str, str]:
    """Path -> text of a page for each command."""
    return {f"settings/{name}.md": settings_page(name) for name in COMMANDS}


def settings_page(name: str) -> str:
    """Usage, then a table for each section of settings, and for what only one method or tokenizer has."""
    module: Any = command(name)
    kinds = {RunConfig: METHODS, TokenizerRun: TOKENIZERS}.get(module.Config, {})
    variants = {variant: row.config for variant, row in kinds.items()} or {"": module.Config}
    own = getattr(module.Config, "own_section", None)
    sections: dict[tuple[str, str], dict[str, dict[str, Setting]]] = {}
    for variant, config_class in variants.items():
        for key, setting in settings_of(config_class()).items():
            section = key.rpartition(".")[0]
            rows = sections.setdefault((section, variant if section == own else ""), {})
            rows.setdefault(key, {})[variant] = setting
    usage = f"python tools/{name}.py {module.USAGE}"
    lines = [f"# {name}", "", _plain(inspect.getdoc(module)), "", "```bash", usage, "```", "", NOTE]
    for (section, variant), rows in sorted(sections.items(), key=lambda item: bool(item[0][1])):
        about = next(iter(next(iter(rows.values())).values())).owner
        among = variants if section != own else [variant]
        lines += ["", f"## {f'{own}={variant}' if variant else section or 'The command'}", ""]
        lines += [_plain(inspect.getdoc(about)), ""] * bool(section)
        lines += ["| setting | default | meaning |", "|---|---|---|"]
        lines += [f"| `{key}`{{ #{key} }} | {_default(by, among)} | {_meaning(key, by)} |" for key, by in rows.items()]
    return "\n".join([*lines, ""])


NOTE = (
    "Settings are written `key=value`. Defaults are those of the paper, or of the library; a recipe changes some of "
    "them. `--dry-run --all` prints what each setting is in the end, and where that comes from."
)


def _default(by: dict[str, Setting], among: Any) -> str:
    values = {variant: shown(setting.default) for variant, setting in by.items()}
    cells = {variant: f"`{value}`" if value else "empty" for variant, value in values.items()}
    if len(by) == len(among) and len(set(values.values())) == 1:
        return next(iter(cells.values()))
    return "<br>".join(f"{variant} {cell}" for variant, cell in cells.items())


def _meaning(key: str, by: dict[str, Setting]) -> str:
    setting = next(iter(by.values()))
    doc = field_doc(setting.owner, key.rpartition(".")[2])
    return _plain(doc if setting.hint is Any else f"({kind(setting.hint)}) {doc}").replace("|", "\\|")


def _plain(text: str | None) -> str:
    """Text in which Markdown sees no emphasis and no tags."""
    return " ".join((text or "").replace("*", "\\*").replace("_", "\\_").replace("<", "&lt;").split())


def public_names() -> str:
    """What `ssl_vit` has, by package."""
    rooms: dict[str, list[str]] = {}
    for name, home in ssl_vit._HOME.items():
        rooms.setdefault(home.split(".")[1], []).append(f"{home}.{name}")
    lines = ["# Python API", "", API]
    for room in sorted(rooms, key=lambda room: [*ROOMS, room].index(room)):
        lines += ["", f"## {ROOMS.get(room, room.capitalize())}", *(f"\n::: {path}" for path in rooms[room])]
    return "\n".join([*lines, ""])


API = """\
Each name below is one of `ssl_vit`'s: `ssl_vit.MAE`, `ssl_vit.load_encoder`. They are imported when first used, so
`import ssl_vit` takes no time.

What a class takes as `**options` are settings of the commands, as keywords: of a method those under `method.` in
[pretrain](settings/pretrain.md), with `encoder=`, `optim=`, `monitor=` and `readout=` as dicts of what differs from the
defaults; of `ImageDataModule` those under `data.`; of `FineTune` those under `finetune.` in
[finetune](settings/finetune.md).

Letters in shapes: B images, C channels, H and W pixels, N patches, h x w their grid, S = 1 + N tokens, D channels of a
token, K classes. Images are normalized floats `[B, C, H, W]` unless another type is named.
"""
