"""Pretraining from a config: build the method and its data, train, save the encoder."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from ssl_vit.config.checks import given_as
from ssl_vit.config.pretrain_schema import TokenizedRun
from ssl_vit.config.schema import RunConfig
from ssl_vit.methods import method_named
from ssl_vit.methods.base import Method
from ssl_vit.train.rehearsal import rehearse
from ssl_vit.train.tokenizing import tokenizer_for
from ssl_vit.train.trainer import Session, data_of


def pretrain(config: RunConfig, method_name: str, session_of: Callable[..., Session] = Session) -> Path | None:
    """Train to the end; the run directory, which then holds the encoder, on the first rank, None on the others.

    Raises:
        ValueError, OSError: bad input or a full disk; what is written stays, and the log has how to resume.
    """
    if isinstance(config, TokenizedRun) and not config.tokenizer:
        rehearse(config)  # or a tokenizer would be trained before the rest is refused
        config = replace(config, tokenizer=str(tokenizer_for(config)))
    session = session_of(config, method_name, prefix=method_name)
    method = method_named(method_name).from_run(config)
    if config.init_from and not config.resume:
        start_from(config, method)
    session.open()
    if config.init_from and config.resume and not session.checkpoint:
        start_from(config, method)
    trained = session.fit(method, data_of(config, method.transform()))
    if trained is None:
        return None
    session.export(trained.export, readout=asdict(config.readout))
    return session.run_dir


def start_from(config: RunConfig, method: Method) -> None:
    """Begin with the weights of init_from, which every error names."""
    with given_as("init_from", config.init_from):
        method.start_from(config.init_from)
