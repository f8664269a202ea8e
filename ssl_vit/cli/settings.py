"""Settings that depend on what lies on the disk: of a run that is resumed, of an encoder that is worked on."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ssl_vit.config.auto_source import AUTO
from ssl_vit.config.checks import Bounded, require, shown
from ssl_vit.config.evaluation_schema import PROTOCOLS, TIMM, EvaluationConfig, LinearProbeConfig
from ssl_vit.config.finetune_schema import FinetuneRun, PredictConfig
from ssl_vit.config.foreign import require_typed
from ssl_vit.config.help import resolved_table
from ssl_vit.config.plain_yaml import read_yaml
from ssl_vit.config.reading import require_regular
from ssl_vit.config.recipes import FINETUNE, OF_ONE_RUN, family, recipes
from ssl_vit.config.resolve import Automatic, ConfigError, Resolved, resolve
from ssl_vit.config.schema import DataConfig, RunConfig, TrainingRun
from ssl_vit.config.values import settings_of, usual_values
from ssl_vit.run.files import CONFIG, ENCODER, MODEL, metadata_of, newest_run, require_own_files, run_prefix
from ssl_vit.run.launch import require_started

Run = TypeVar("Run", bound=TrainingRun)
Evaluation = TypeVar("Evaluation", bound=EvaluationConfig)
OF_A_RUN = ("method=", "tokenizer=", "recipe=", "run_dir=", "resume=", "encoder=", "data.path=")
"""Arguments that say which run resume= means begin with these."""


def resolve_command(config_class: type, args: Sequence[str]) -> Resolved[Any]:
    """The settings of any command; ConfigError also where a file asks for more than to be read."""
    if issubclass(config_class, TrainingRun):
        resolved = resolve_run(config_class, args)
    elif issubclass(config_class, EvaluationConfig):
        resolved = resolve_evaluation(config_class, args)
    else:
        resolved = resolve(config_class, args)
        require_effect(resolved)
        _take_images(resolved)
    require_typed(resolved, needs_download)
    if resolved.origin.get("data.source") == "default" and resolved.config.data.source != AUTO:
        resolved.origin["data.source"] = "data.path"
    return resolved


def _take_images(resolved: Resolved[Any]) -> None:
    """The images that a command reads are by default the folder that its encoder, or model, was trained on."""
    config = resolved.config
    if getattr(config, "images", None) != "":
        return
    with suppress(FileNotFoundError):  # of the encoder, which the command says itself
        fallback = partial(newest_run, holding=MODEL if isinstance(config, PredictConfig) else ENCODER)
        named = getattr(config, "encoder", "") or getattr(config, "model", "")
        data = metadata_of(Path(named or fallback())).get("data", {})
        if data.get("source") == "folder" and isinstance(data.get("path"), str):
            config.images, resolved.origin["images"] = data["path"], "run"


def needs_download(data: DataConfig) -> bool:
    """Whether data of torchvision or Hugging Face is not on this machine."""
    from ssl_vit.data.sources import source_class

    return source_class(data.source).needs_download(data)


def require_effect(resolved: Resolved[Any]) -> None:
    """ConfigError for a value, given by the user on the command line or in a recipe of theirs, that nothing reads.

    What is given is not at fault where it is overruled: a recipe's data.path, once the command line has another source.
    """
    config, origins = resolved.config, resolved.origin
    theirs = {"command line": 2}  # how near to the user each origin is
    recipe = Path(getattr(config, "recipe", ""))
    if recipe.suffix in (".yaml", ".yml") and recipe.name != CONFIG:  # which holds every setting of a run
        theirs["recipe"] = 1
    values = {key: setting.default for key, setting in settings_of(config).items()}
    usual = {key: setting.default for key, setting in settings_of(type(config)()).items()}
    for key, cause, why in _unread(config):
        given = theirs.get(origins[key], 0)
        counts = given == 2 or (given == 1 and values[key] != usual[key])
        if values[key] and counts and given >= {"command line": 2, "recipe": 1}.get(origins.get(cause, ""), 0):
            raise ConfigError(f"{key}={shown(values[key])} has no effect: {why}")


def _unread(config: Bounded) -> Iterator[tuple[str, str, str]]:
    """Key, key of the setting that leaves it without effect, and why; of sections too."""
    for unread, names, cause, why in config.unread():
        if unread:
            yield from ((config.key(name), config.key(cause), why) for name in names.split())
    for section in vars(config).values():
        if isinstance(section, Bounded):
            yield from _unread(section)


def resolve_run(config_class: type[Run], args: Sequence[str]) -> Resolved[Run]:
    """A training's settings; with resume= they are those of the run it continues, and run_dir is its directory.

    Raises ConfigError where a setting is wrong, FileNotFoundError without such a run to continue, or such an encoder.
    """
    args = [*args]
    keys, run = {arg.partition("=")[0] for arg in args}, None
    read: Any = _resolve_finetuning if issubclass(config_class, FinetuneRun) else _resolve_training
    if "resume" in keys:  # which run that is takes little to know; what is auto in it was found when it began
        which = [arg for arg in args if arg.startswith(OF_A_RUN)]
        run = resumed_run(read(config_class, which, _usual))
    if run is None:
        resolved = read(config_class, args, _automatic)
    else:
        require_own_files(run)
        args = [arg for arg in args if arg != f"recipe={AUTO}"]  # its settings are in the run
        if any(arg.startswith("recipe=") for arg in args):
            resolved = read(config_class, args, _automatic)
        else:
            own = settings_in(run, next(arg for arg in args if arg.startswith("resume="))[7:])
            began = ["init_from="] if own.get("init_from") else []  # which is behind it
            resolved = read(config_class, [*args, f"recipe={run / CONFIG}", *began], _automatic)
            resolved.config.recipe = own["recipe"]  # what it was made by, and stays
    origin = resolved.origin
    plans = origin["trainer.max_epochs"] == AUTO and issubclass(config_class, RunConfig)
    rule = "left out: it is for trainer.max_epochs=auto of a pretraining"
    require(
        bool(run) or plans or origin["trainer.plan_minutes"] != "command line",
        "trainer.plan_minutes",
        resolved.config.trainer.plan_minutes,
        rule,
        ConfigError,
    )
    require_started(resolved.config.trainer)
    require_effect(resolved)
    resolved.config.run_dir = str(run or resolved.config.run_dir)
    return resolved


def resumed_run(resolved: Resolved[Run]) -> Path | None:
    """The run that resume= means; None without it, and for `auto` where there is nothing to continue yet."""
    config = resolved.config
    if not config.resume:
        return None
    if config.resume != "auto":
        path = Path(config.resume)
        if not path.exists():
            raise FileNotFoundError(f"resume={config.resume}: there is no such run or checkpoint")
        return path if path.is_dir() else require_regular(path, "resume").parent.parent
    if config.run_dir:
        return Path(config.run_dir) if (Path(config.run_dir) / CONFIG).exists() else None
    try:
        return newest_run(run_prefix(family(config.own_section, resolved.name), config.recipe), CONFIG)
    except FileNotFoundError:
        return None


def settings_in(run: Path, resume: str) -> dict[str, Any]:
    """What a run's config.yaml holds. ConfigError: its config.yaml is not there, or no whole one."""
    advice = "give recipe= and the settings that the run was begun with, and it is written again"
    if not (run / CONFIG).exists():
        raise ConfigError(f"resume={resume}: there is no {run / CONFIG}: name a run, or {advice}")
    tree = read_yaml(run / CONFIG)
    if not (tree.keys() >= set(OF_ONE_RUN) and isinstance(tree["recipe"], str)):
        raise ConfigError(f"resume={resume}: {run / CONFIG} is empty or damaged: {advice}")
    return tree


def print_plan(plan: list[str], resolved: Resolved[Any], with_all: bool, measured: bool) -> None:
    """What `--dry-run` answers: the plan; with --measure the time of its steps; with --all every setting's origin."""
    if measured and not isinstance(resolved.config, TrainingRun):
        raise ConfigError("--measure times the steps of a training, and there are none")
    given = [*resolved.origin.values()]
    counts = [f"{given.count(origin)} from the {origin}" for origin in dict.fromkeys(given) if origin != "default"]
    counts += [f"{given.count('default')} defaults"]
    note = "" if with_all else "; --dry-run --all lists them"
    print(*plan, f"settings      {len(given)}: {', '.join(counts)}{note}", sep="\n")
    if measured:
        from ssl_vit.train.stopwatch import measure_steps

        sys.stdout.flush()
        print(*measure_steps(resolved.config, resolved.name), sep="\n")
    if with_all:
        print("", resolved_table(resolved), sep="\n")


def _usual(base: TrainingRun, name: str, values: dict[str, Any], wanted: list[str]) -> dict[str, Any]:
    return usual_values(base, wanted)


def _automatic(base: TrainingRun, name: str, values: dict[str, Any], wanted: list[str]) -> dict[str, Any]:
    from ssl_vit.train.auto import automatic

    return automatic(base, name, values, wanted)


def _resolve_training(config_class: type[Run], args: list[str], automatic: Automatic) -> Resolved[Run]:
    """The recipe is by default auto where data.path is given, else that of the embedded digits."""
    keys = {arg.partition("=")[0] for arg in args}
    own = ["recipe=auto"] if "data.path" in keys and "recipe" not in keys else []
    return resolve(config_class, [*args, *own], automatic=automatic)


def _resolve_finetuning(
    config_class: type[FinetuneRun], args: list[str], automatic: Automatic
) -> Resolved[FinetuneRun]:
    """The data is by default what the encoder was trained on, the recipe that of its pretraining's name.

    With data.path of one's own it is auto.
    """
    resolved = resolve(config_class, args, automatic=_usual)
    named = any(arg.startswith("recipe=") for arg in args)
    if not named and resolved.config.resume not in ("", "auto"):
        return resolved  # the run to continue has it all
    encoder = resolved.config.encoder or str(newest_run())
    metadata, given = _metadata(encoder), {arg.partition("=")[0] for arg in args}
    if not named:
        legal, name = recipes(FINETUNE), metadata.get("recipe", "")
        name = AUTO if "data.path" in given else name
        if name not in legal:
            known = (
                f"its recipe={name} has no counterpart" if name else "it does not say by which recipe it was trained"
            )
            raise ConfigError(f"recipe= is missing for encoder={encoder}: {known}; give one of {', '.join(legal)}")
        args = [*args, f"recipe={name}"]
        resolved = resolve(config_class, args, automatic=_usual)
    data = _data_of(metadata, resolved.config.data.source if "data.source" in given else "", "data.path" in given)
    data = {key: value for key, value in data.items() if key != "global_batch"}  # which was the pretraining's
    resolved = resolve(config_class, args, {"data": data}, file=f"encoder={encoder}", automatic=automatic)
    resolved.config.encoder = encoder
    if not named:
        resolved.origin["recipe"] = "encoder"
    return resolved


def _data_of(metadata: dict[str, Any], source: str, moved: bool) -> Any:
    """The data that an encoder was trained on, without what another source, or path (moved), makes void."""
    data = metadata.get("data", {})
    if not isinstance(data, dict):
        return data  # which is answered where it is read
    other = moved or source not in ("", AUTO, data.get("source"))
    void = ("source", "path", "test_path", "streaming", "epoch_size") if other else ()
    return {key: value for key, value in data.items() if key not in void}


def _metadata(encoder: str) -> dict[str, Any]:
    if not Path(encoder).exists():
        raise FileNotFoundError(f"encoder={encoder}: there is no such file or run")
    return metadata_of(Path(encoder))


def resolve_evaluation(config_class: type[Evaluation], args: Sequence[str]) -> Resolved[Evaluation]:
    """An evaluation's settings; the data, and what is read, are by default those of the encoder's training.

    Raises ConfigError where a setting is wrong or the data is not known, FileNotFoundError without such an encoder.
    """
    args = [arg for arg in args if arg != "protocol=auto"]  # which is the run's, where that has one
    encoder = next((arg.partition("=")[2] for arg in args if arg.startswith("encoder=")), "")
    if not encoder:
        resolve(config_class, args)  # a mistake in the args is reported before the absence of a run
        encoder = str(newest_run())
    known = {} if encoder.startswith(TIMM) else _metadata(encoder)
    source = next((arg.partition("=")[2] for arg in args if arg.startswith("data.source=")), "")
    moved = any(arg.startswith("data.path=") for arg in args)
    lower = {"data": _data_of(known, source, moved)} if "data" in known else {}
    readout = dict(known.get("readout", {}))
    protocol = readout.pop("protocol", None)
    if protocol in PROTOCOLS and config_class is LinearProbeConfig:  # of your own it is no file's to say
        lower["protocol"] = protocol
    config = resolve(config_class, args, lower).config
    if config.few and readout.get("layer") == "best":
        readout["layer"] = "last"  # few images leave none to choose it on
    lower |= readout if config.as_trained else {}
    resolved = resolve(config_class, args, lower, "run", f"encoder={encoder}")
    if "data" not in lower and not any(arg.startswith("data.") for arg in args):
        raise ConfigError(f"encoder={encoder} does not say what it was trained on: give data.path=")
    resolved.config.encoder = encoder
    require_effect(resolved)
    return resolved
