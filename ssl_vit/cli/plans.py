"""What the commands that read images and write files would do, for --dry-run: opened, but nothing is written."""

from pathlib import Path
from typing import Any

from ssl_vit.config.checks import ConfigError, require
from ssl_vit.config.schema import DataConfig


def files_plan(images: str, network: str, writes: str) -> list[str]:
    """Of a command that shows the images of a file or a folder to a network. Raises what the command would."""
    from ssl_vit.data.sources.folder import Folder

    require(bool(images), "images", images, "an image, or a folder of images", ConfigError)
    files = Folder.at("images", images, DataConfig(), 3)
    return [network, f"images        {len(files):,} in {images}", f"writes        {writes}"]


def encoder_line(encoder: str) -> tuple[str, Path]:
    """Which encoder is read, by default the newest run's, and where it lies."""
    from ssl_vit.models.weights import load_encoder
    from ssl_vit.run.files import newest_run

    source = Path(encoder) if encoder else newest_run()
    config: Any = load_encoder(source).config
    (embed_dim, depth, _), (height, width) = config.shape, config.height_width
    return f"encoder       {source}: ViT {embed_dim} wide, {depth} deep, {height} x {width} pixels", source
