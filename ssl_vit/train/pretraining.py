"""Pretraining from a config: build the method and its data, train, save the encoder."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from ssl_vit import __version__
from ssl_vit.callbacks.online_eval import OnlineProbe
from ssl_vit.config.pretrain_schema import TokenizedRun
from ssl_vit.config.schema import RunConfig
from ssl_vit.methods import method_named
from ssl_vit.methods.base import Method
from ssl_vit.run.directory import open_run
from ssl_vit.train.tokenizing import tokenizer_for
from ssl_vit.train.trainer import data_of, fit, quiet_lightning


def pretrain(config: RunConfig, method_name: str) -> Path | None:
    """Train to the end; the run directory, which then holds the encoder.

    Of several processes the first one writes and has it, the others have None.

    Raises:
        ValueError, OSError: bad input or a full disk; what is written stays, and the log says how to go on.
    """
    quiet_lightning()
    if isinstance(config, TokenizedRun) and not config.tokenizer:
        config = replace(config, tokenizer=str(tokenizer_for(config)))
    pl.seed_everything(config.seed, verbose=False)
    method = method_named(method_name).from_run(config)  # what does not fit shows before anything is written
    run_dir, checkpoint = open_run(config, method_name, method_name)
    if config.init_from and not checkpoint:
        method.start_from(config.init_from)
    look = OnlineProbe(config.monitor, config.readout, run_dir)
    trained = fit(config, method, data_of(config, method), run_dir, checkpoint, look)
    if trained is None:
        return None
    print(f"saved {trained.export(run_dir, **run_metadata(config, method_name, trained))}")
    return run_dir


def run_metadata(config: RunConfig, method_name: str, method: Method) -> dict[str, Any]:
    """What encoder.json says beside the architecture."""
    return {
        "method": method_name,
        "recipe": config.recipe,
        "mean": config.data.mean,
        "std": config.data.std,
        "data": asdict(config.data),
        "readout": asdict(config.readout),
        "step": method.global_step,
        "seed": config.seed,
        "ssl_vit": __version__,
        "torch": torch.__version__,
    }
