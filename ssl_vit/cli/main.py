"""What every command shares: resuming a run with its own settings, and errors as one line. Imports no torch."""

import ctypes
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from omegaconf import OmegaConf

from ssl_vit.config.evaluation_schema import TIMM, EvaluationConfig, LinearProbeConfig
from ssl_vit.config.finetune_schema import FinetuneRun
from ssl_vit.config.recipes import FINETUNE, TOKENIZER, recipes
from ssl_vit.config.resolve import ConfigError, Resolved, read, read_finetune, read_run
from ssl_vit.config.schema import TrainingRun
from ssl_vit.config.tokenizer_schema import TokenizerRun
from ssl_vit.run.files import CONFIG, metadata_of, newest_run, run_prefix
from ssl_vit.run.launch import require_started
from ssl_vit.run.signals import Stopped

Run = TypeVar("Run", bound=TrainingRun)
Evaluation = TypeVar("Evaluation", bound=EvaluationConfig)
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h


def guarded(main: Callable[[list[str]], None]) -> NoReturn:
    """Run a command; a mistake in its input becomes one line on standard error and exit status 2 or 1.

    A run that a signal has stopped says by which command it goes on; exit status 128 + the signal's number: 130 for
    Ctrl-C, 143 for SIGTERM. SSL_VIT_TRACEBACK=1 shows where an error comes from.
    """
    keep_freed_memory()
    try:
        main(sys.argv[1:])
    except Stopped as stop:
        print(f"{stop}; go on with: {stop.command(sys.argv)}", file=sys.stderr)
        raise SystemExit(stop.status) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        if os.environ.get("SSL_VIT_TRACEBACK"):
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, ConfigError) else 1) from None
    raise SystemExit(0)


def keep_freed_memory() -> None:
    """Let this process keep the memory it frees, where its C library is glibc; done nowhere else.

    glibc gives large blocks back to the kernel at once, which clears every page of them when the next step asks again:
    on a CPU each step allocates its activations, and each batch its images, anew. MALLOC_* variables in the
    environment, glibc's own settings of this, have precedence.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None and not any(name.startswith("MALLOC_") for name in os.environ):
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)  # never: a step may free more than any threshold that mallopt takes


def read_run_args(args: list[str], read_args: Callable[[list[str]], Resolved[Run]] = read_run) -> Resolved[Run]:
    """A run's settings; with resume= they are those of the run it continues, and run_dir is its directory.

    Args:
        read_args: read_run for a pretraining, read_tokenizer for a tokenizer's training, and so on.

    Raises:
        ConfigError, FileNotFoundError: a setting is wrong; the run to continue is not there.
    """
    resolved = read_args(args)
    run = resumed_run(resolved)
    if run is not None:
        if any(arg.startswith("recipe=") for arg in args):
            resolved = read_args(args)
        else:
            resolved = read_args([*args, f"recipe={run / CONFIG}"])
            resolved.config.recipe = OmegaConf.load(run / CONFIG).recipe  # what it was made by, and goes on to be
        resolved.config.run_dir = str(run)
    require_started(resolved.config.trainer)
    return resolved


def resumed_run(resolved: Resolved[Run]) -> Path | None:
    """The run that resume= means: itself, that of a checkpoint, or for `auto` run_dir or the newest of its kind.

    None without resume=, and for `auto` where there is nothing to continue yet.
    """
    config = resolved.config
    if not config.resume:
        return None
    if config.resume != "auto":
        path = Path(config.resume)
        if not path.exists():
            raise FileNotFoundError(f"resume={config.resume}: there is no such run or checkpoint")
        return path if path.is_dir() else path.parents[1]
    if config.run_dir:
        return Path(config.run_dir) if (Path(config.run_dir) / CONFIG).exists() else None
    try:
        name = TOKENIZER if isinstance(config, TokenizerRun) else resolved.method
        return newest_run(run_prefix(name, config.recipe), CONFIG)
    except FileNotFoundError:
        return None


def read_finetune_args(args: list[str]) -> Resolved[FinetuneRun]:
    """A fine-tuning's settings: its data is by default what the encoder was trained on, its recipe the one so named.

    Raises:
        ConfigError, FileNotFoundError: a setting is wrong; there is no such encoder, or no such run to continue.
    """
    return read_run_args(args, _read_on_encoder)


def _read_on_encoder(args: list[str]) -> Resolved[FinetuneRun]:
    given = {arg.partition("=")[0] for arg in args}
    resolved = read_finetune(args)
    if "recipe" not in given and resolved.config.resume not in ("", "auto"):
        return resolved  # the run to continue has it all
    encoder = Path(resolved.config.encoder) if resolved.config.encoder else newest_run()
    if not encoder.exists():
        raise FileNotFoundError(f"encoder={encoder}: there is no such file or run")
    metadata = metadata_of(encoder)
    if "recipe" not in given:
        args = [*args, f"recipe={_recipe_for(encoder, metadata)}"]
        resolved = read_finetune(args)
    set_above = {key for key, origin in resolved.origin.items() if origin != "default"}
    resolved = read_finetune(args, {"data": _images_of(metadata, resolved.config, set_above)})
    resolved.config.encoder = str(encoder)
    if "recipe" not in given:
        resolved.origin["recipe"] = "encoder"
    return resolved


def _recipe_for(encoder: Path, metadata: dict[str, Any]) -> str:
    """The recipe named as that of the encoder's pretraining."""
    legal, name = recipes(FINETUNE), metadata.get("recipe", "")
    if name not in legal:
        said = f"its recipe={name} has no counterpart" if name else "it does not say by which recipe it was trained"
        raise ConfigError(f"recipe= is missing for encoder={encoder}: {said}; give one of {', '.join(legal)}")
    return name


def _images_of(metadata: dict[str, Any], config: FinetuneRun, set_above: set[str]) -> dict[str, Any]:
    """An encoder's data settings, without its place where another source or path is given."""
    data: dict[str, Any] = dict(metadata.get("data", {}))
    if data.get("source") == "digits" and "data.path" in set_above:
        del data["source"]  # which has no path: then it is a folder's
    if "data.path" in set_above or ("data.source" in set_above and config.data.source != data.get("source")):
        data |= {"path": "", "test_path": ""}
    return data


def read_probe_args(args: list[str], config_class: type[Evaluation]) -> Resolved[Evaluation]:
    """An evaluation's settings; the data is by default what the encoder was trained on."""
    encoder = _encoder_of(args, config_class)
    known: dict[str, Any] = {}
    if not encoder.startswith(TIMM):
        if not Path(encoder).exists():
            raise FileNotFoundError(f"encoder={encoder}: there is no such file or run")
        known = metadata_of(Path(encoder))
    lower = {"data": known["data"]} if "data" in known else {}
    readout = dict(known.get("readout", {}))
    protocol = readout.pop("protocol", None)
    if protocol and config_class is LinearProbeConfig:
        lower["protocol"] = protocol
    config = read(config_class, args, lower).config
    if config.few and readout.get("layer") == "best":
        readout["layer"] = "last"  # few images leave none to choose it on
    lower |= readout if config.as_trained else {}
    resolved = read(config_class, args, lower)
    if "data" not in lower and not any(arg.startswith("data.") for arg in args):
        raise ConfigError(f"encoder={encoder} does not say what it was trained on: give data.source= and data.path=")
    resolved.config.encoder = encoder
    return resolved


def _encoder_of(args: list[str], config_class: type[Evaluation]) -> str:
    """What is to be judged, by default the newest run; a mistake in the args is reported before its absence."""
    given = next((arg.partition("=")[2] for arg in args if arg.startswith("encoder=")), "")
    if given:
        return given
    try:
        return str(newest_run())
    except FileNotFoundError:
        read(config_class, args)
        raise
