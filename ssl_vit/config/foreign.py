"""What a file may ask for: to be read, and that files of this machine are. All else the user has to type.

Such files are recipes, but for those that the project brings along, a run's config.yaml and an encoder's metadata.
"""

from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any

from ssl_vit.config.checks import ConfigError, shown
from ssl_vit.config.evaluation_schema import TIMM
from ssl_vit.config.resolve import Resolved
from ssl_vit.config.schema import DataConfig


def require_typed(resolved: Resolved[Any], needs_download: Callable[[DataConfig], bool]) -> None:
    """ConfigError where values out of a file would import code, reach the network or create a folder.

    needs_download: whether data of torchvision or Hugging Face is not on this machine.
    """
    for effect, keys in _beyond_reading(resolved.config):
        files = [(key, resolved.files[origin]) for key in keys if (origin := resolved.origin[key]) in resolved.files]
        if files and (effect != DOWNLOAD or needs_download(resolved.config.data)):
            values = {key: shown(attrgetter(key)(resolved.config)) for key in keys}
            (key, file), typed = files[0], " ".join(f"{key}={value}" for key, value in values.items())
            line = f"{key}={values[key]} comes from {file}, and would {effect}"
            raise ConfigError(f"{line}: to allow that, give {typed} on the command line")


DOWNLOAD = "download it"


def _beyond_reading(config: Any) -> Iterator[tuple[str, list[str]]]:
    """(effect, keys that cause it) of settings that do more than to have files of this machine read."""
    data: DataConfig | None = getattr(config, "data", None)
    if data is not None:
        paths = [key for key in ("data.path", "data.test_path") if attrgetter(key)(config)]
        if ":" in data.source:
            yield "import it", ["data.source"]
        elif data.source == "torchvision":
            yield DOWNLOAD, ["data.source"]
        elif data.source == "hf":
            yield DOWNLOAD, ["data.source", *paths]
        elif data.source == "webdataset":  # a name with a colon may be a URL, or become one where it has braces
            urls = [key for key in paths if ":" in (path := attrgetter(key)(config)) and not path.startswith("/")]
            yield from (("open it as a URL", [key]) for key in urls)
    if hasattr(config, "distill") and config.distill.teacher.startswith(TIMM):
        yield "have it downloaded", ["distill.teacher"]
    if "wandb" in getattr(getattr(config, "trainer", None), "logger", ()):
        yield "send the run's curves away", ["trainer.logger"]
