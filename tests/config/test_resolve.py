"""What the command line and recipe files may say, and every message that answers what they may not."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from ssl_vit.config import recipes as recipes_of
from ssl_vit.config import resolve
from ssl_vit.config.evaluation_schema import KNNConfig
from ssl_vit.config.pretrain_schema import METHODS, MAERun
from ssl_vit.config.recipes import TOKENIZER, recipes
from ssl_vit.config.resolve import ConfigError, from_yaml, read, read_run, read_tokenizer, to_yaml
from ssl_vit.config.schema import DataConfig, OptimConfig
from ssl_vit.config.tokenizer_schema import TOKENIZERS
from ssl_vit.config.tool_schema import ShardsConfig

OPTIM = f"optim has {', '.join(field.name for field in fields(OptimConfig))}"
ROOT = (
    "the settings are recipe, run_dir, seed, resume,"
    " method.*, optim.*, data.*, trainer.*, monitor.*, init_from, encoder.*, readout.*"
)
SHIPPED = [(method, name) for method in METHODS for name in recipes(method)]


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe; returns its path."""

    def write(text: str = "") -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def run(recipe):
    """Reads args over an empty recipe."""
    return lambda *args: read_run(["method=mae", f"recipe={recipe()}", *args])


@pytest.fixture
def acme(tmp_path, monkeypatch):
    """An importable third-party module."""
    (tmp_path / "acme_methods.py").write_text(
        "from dataclasses import dataclass, field\n"
        "from ssl_vit.config.schema import RunConfig\n"
        "@dataclass(kw_only=True)\n"
        "class Options:\n"
        "    ratio: float = 0.5\n"
        "@dataclass(kw_only=True)\n"
        "class SimMIMRun(RunConfig):\n"
        "    method: Options = field(default_factory=Options)\n"
        "@dataclass(kw_only=True)\n"
        "class NamedOptions:\n"
        "    name: str = 'x'\n"
        "@dataclass(kw_only=True)\n"
        "class NamedRun(RunConfig):\n"
        "    method: NamedOptions = field(default_factory=NamedOptions)\n"
        "@dataclass(kw_only=True)\n"
        "class NeedyRun(RunConfig):\n"
        "    must: int\n"
        "class SimMIM:\n"
        "    Config = SimMIMRun\n"
        "class Plain:\n"
        "    Config = RunConfig\n"
        "class Named:\n"
        "    Config = NamedRun\n"
        "class Needy:\n"
        "    Config = NeedyRun\n"
        "class NoConfig: ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "acme_methods"
    sys.modules.pop("acme_methods", None)


def message(call, *arguments, **options) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*arguments, **options)
    return str(caught.value)


def test_nothing_heavy_is_imported():
    heavy = ("torch", "numpy", "pytorch_lightning", "lightly", "torchvision")
    code = f"import sys, ssl_vit.config.resolve, ssl_vit.config.help; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_layers_override_in_order_and_each_value_knows_its_own(recipe):
    path = recipe("data:\n  source: digits\n  batch_size: 32\noptim: {base_lr: 1e-3}\nmonitor:\n")
    resolved = read_run(["method=mae", f"recipe={path}", "data.batch_size=16", "method.mask_ratio=0.6"])
    data, optim = resolved.config.data, resolved.config.optim
    assert (data.source, data.batch_size, optim.base_lr, optim.weight_decay) == ("digits", 16, 1e-3, 0.05)
    assert resolved.config.method.mask_ratio == 0.6
    assert isinstance(resolved.config, MAERun)
    assert resolved.method == "mae"
    assert {key: origin for key, origin in resolved.origin.items() if origin != "default"} == {
        "recipe": "command line",
        "data.source": "recipe",
        "data.batch_size": "command line",
        "optim.base_lr": "recipe",
        "method.mask_ratio": "command line",
    }
    assert "trainer.max_epochs" in resolved.origin


def test_without_words_a_run_is_the_papers(run, recipe):
    assert run().config == MAERun(recipe=str(recipe()))


@pytest.mark.parametrize(
    ("arg", "value"),
    [
        ("optim.base_lr=1e-3", 1e-3),
        ("optim.base_lr=1.5e-4", 1.5e-4),
        ("optim.warmup_epochs=5", 5.0),
        ("optim.betas=[0.9, 0.99]", (0.9, 0.99)),
        ("data.std=[1, 2, 3]", [1.0, 2.0, 3.0]),
        ("data.max_unreadable=1%", 0.01),
        ("data.max_unreadable=0.5%", 0.005),
        ("trainer.max_steps=10", 10),
        ("trainer.max_steps=null", None),
        ("trainer.compile=true", True),
        ("encoder.image_size=32", 32),
        ("encoder.image_size=[32, 64]", [32, 64]),
        ("data.workers=auto", "auto"),
        ("data.workers=2", 2),
        ("trainer.devices=2", 2),
    ],
)
def test_a_word_becomes_its_settings_type(run, arg, value):
    key = arg.partition("=")[0]
    section, name = key.split(".")
    read_back = getattr(getattr(run(arg).config, section), name)
    assert read_back == value
    assert type(read_back) is type(value)


# OmegaConf would evaluate the first four, take the fifth as missing, and YAML would change the others.
AS_IS = [
    "${oc.env:HOME}",
    "${x",
    "$HOME/${y}",
    "a${",
    "???",
    "/a=b/c",
    "#1",
    "a #b",
    "a: b",
    "[a",
    "2024",
    "007",
    "*",
    "yes",
]


@pytest.mark.parametrize("path", AS_IS)
def test_text_on_the_command_line_stays_as_it_is(run, path):
    assert run(f"data.path={path}").config.data.path == path


@pytest.mark.parametrize("path", AS_IS)
def test_text_in_config_yaml_stays_as_it_is(path):
    config = MAERun(data=DataConfig(path=path))
    assert from_yaml(to_yaml(config, "mae")) == ("mae", config)


@pytest.mark.parametrize(
    ("arg", "answer"),
    [
        ("optim.lr=1", f"optim.lr=1 is not a setting; {OPTIM} (did you mean optim.base_lr?)"),
        ("optim.zzz=1", f"optim.zzz=1 is not a setting; {OPTIM}"),
        ("optim=1", f"optim=1 is not a setting; {OPTIM}"),
        ("optim.betas.first=1", f"optim.betas.first=1 is not a setting; {OPTIM}"),
        ("optm.base_lr=1", f"optm.base_lr=1 is not a setting; {ROOT} (did you mean optim.base_lr?)"),
        ("mask_ratio=0.5", f"mask_ratio=0.5 is not a setting; {ROOT} (did you mean method.mask_ratio?)"),
        ("batch_size=3", f"batch_size=3 is not a setting; {ROOT} (did you mean data.batch_size?)"),
        ("optim.epochs=3", f"optim.epochs=3 is not a setting; {OPTIM} (did you mean optim.warmup_epochs?)"),
        ("epochs=3", f"epochs=3 is not a setting; {ROOT} (did you mean trainer.max_epochs?)"),
        ("patch=3", f"patch=3 is not a setting; {ROOT} (did you mean encoder.patch_size?)"),
        ("--seed=3", f"--seed=3 is not a setting; {ROOT} (did you mean seed?)"),
        ("zzz=3", f"zzz=3 is not a setting; {ROOT}"),
    ],
)
def test_an_unknown_key_is_answered_with_the_legal_ones_and_the_nearest(run, arg, answer):
    assert message(run, arg) == answer


@pytest.mark.parametrize(
    ("arg", "rule"),
    [
        ("data.batch_size=abc", "an integer"),
        ("data.batch_size=3.5", "an integer"),
        ("data.batch_size=1e2", "an integer"),
        ("data.batch_size=true", "an integer"),
        ("data.batch_size=null", "an integer"),
        ("data.batch_size=a: b", "an integer"),
        ("data.batch_size=${seed}", "an integer"),
        ("trainer.max_steps=2.5", "an integer or null"),
        ("trainer.max_steps=", "an integer or null"),
        ("trainer.max_steps=#3", "an integer or null"),
        ("optim.base_lr=high", "a number"),
        ("optim.base_lr=true", "a number"),
        ("optim.base_lr=nan", "a number"),
        ("optim.base_lr=.inf", "a number"),
        ("optim.base_lr=1" + "0" * 400, "a number"),
        ("trainer.compile=1", "true or false"),
        ("resume=null", "a string"),
        ("data.mean=three", "a list of numbers, such as [0.485, 0.456, 0.406]"),
        ("data.mean=[a, 1, 2]", "a list of numbers, such as [0.485, 0.456, 0.406]"),
        ("optim.betas=0.9,0.95", "a list of 2 numbers, such as [0.9, 0.95]"),
        ("optim.betas=[1, 2, 3]", "a list of 2 numbers, such as [0.9, 0.95]"),
        ("encoder.image_size=225", "a multiple of encoder.patch_size=16"),
        ("trainer.devices=half", "auto, or a positive integer"),
        ("trainer.strategy=fdsp", "one of auto, ddp, fsdp, deepspeed (did you mean fsdp?)"),
        ("data.workers=[0", "auto, or 0 or more"),
        ("data.on_error=skp", "one of replace, skip, raise (did you mean skip?)"),
        ("data.max_unreadable=1.5", "in [0, 1]"),
        ("data.max_unreadable=%", "a number"),
        ("data.max_unreadable=1e0%", "a number"),
        ("data.streaming=true", "false with data.source=folder: it is for hf"),
        ("data.epoch_size=0", "positive, or null"),
        ("data.epoch_size=5", "null but for a stream: data.source=webdataset, or hf with data.streaming=true"),
        ("data.shuffle_buffer=0", "a positive integer"),
        ("seed=-1", "0 or more"),
        ("encoder.size=smal", "one of tiny, small, base, large, huge (did you mean small?)"),
    ],
)
def test_a_wrong_value_is_answered_with_what_is_legal(run, arg, rule):
    assert message(run, arg) == f"{arg} must be {rule}"


def test_a_rule_between_settings_is_passed_on(run):
    answer = "resume= continues a run, init_from= starts a new one from its weights: give one of them"
    assert message(run, "resume=auto", "init_from=a.pth") == answer


@pytest.mark.parametrize("path", ["https://host/train-{000..009}.tar", "pipe:cat a.tar"])
def test_a_remote_stream_leaves_nothing_to_look_at(run, path):
    args = ["data.source=webdataset", f"data.path={path}"]
    rule = "0 where data.path is a remote stream: there is nothing to look at, or give data.test_path"
    assert message(run, *args) == f"monitor.every_epochs=10 must be {rule}"
    assert run(*args, "monitor.every_epochs=0").config.data.remote
    assert run(*args, "data.test_path=shards").config.data.remote
    for local in ("shards", "file:///shards", "shards/train-{000..009}.tar"):
        assert not run("data.source=webdataset", f"data.path={local}").config.data.remote
    assert run("data.source=hf", "data.path=a", "data.streaming=true", "monitor.every_epochs=0").config.data.remote
    rule = "given where data.path is a remote stream: a tokenizer is judged on images that can be read again"
    answer = message(read_tokenizer, ["recipe=digits", *args, "monitor.every_epochs=0"])
    assert answer == f"data.test_path= must be {rule}"


@pytest.mark.parametrize(("arg", "rule"), [("shard_mb=-0.5", "positive"), ("size=-1", "0 or more")])
def test_settings_of_shards_are_checked(arg, rule):
    assert message(read, ShardsConfig, [arg]) == f"{arg} must be {rule}"


@pytest.mark.parametrize(
    ("arg", "rule"),
    [
        ("trainer.precision=16-mixed", "auto, 32-true, bf16-mixed or bf16-true"),
        ("trainer.compile=true", "false"),
    ],
)
def test_sharded_weights_go_with_some_settings_alone(run, arg, rule):
    assert message(run, "trainer.strategy=fsdp", arg).lower() == f"{arg} must be {rule} with trainer.strategy=fsdp"


@pytest.mark.parametrize("arg", ["seed", "", "=3", "--verbose"])
def test_a_word_without_key_or_value_is_refused(run, arg):
    assert message(run, arg) == f"{arg} is not a setting: settings are written key=value"


def test_a_key_given_twice_must_agree_with_itself(run):
    assert message(run, "seed=1", "seed=2") == "seed is given twice: 1 and 2"
    assert run("seed=1", "seed=1").config.seed == 1


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("data:\n  batch_size: abc", "{}: data.batch_size=abc must be an integer"),
        ("data: {path: 2024}", "{}: data.path=2024 must be a string in quotes"),
        ("optim: {lr: null}", "{}: optim.lr=null is not a setting; " + OPTIM + " (did you mean optim.base_lr?)"),
        ("zzz: {}", "{}: zzz={{}} is not a setting; " + ROOT),
        ("optim: 3", "{}: optim=3 is not a setting; " + OPTIM),
        ("encoder: {image_size: 225}", "{}: encoder.image_size=225 must be a multiple of encoder.patch_size=16"),
        ("data: {path: a}\ndata.path: b", "{}: data.path is given twice: a and b"),
        ("run_dir: here", "{}: run_dir=here belongs on the command line, not in a recipe"),
        ("resume: auto", "{}: resume=auto belongs on the command line, not in a recipe"),
        ("- 1", "{}: settings are written key: value, this is a list"),
        ("seed: 1\nseed: 2", "{}, line 2: found duplicate key seed"),
        ("method: {name: dino}", "{} is a recipe for method=dino, not for method=mae"),
    ],
)
def test_a_fault_in_a_recipe_is_answered_with_the_file(recipe, text, answer):
    path = recipe(text)
    assert message(read_run, ["method=mae", f"recipe={path}"]) == answer.format(path)


@pytest.mark.parametrize(
    ("text", "where"), [("seed: 1\ndata: ]", ", line 2: "), ("seed: 1\n\tdata: 3", ", line 2: "), ("seed: \0", ": ")]
)
def test_malformed_yaml_is_answered_with_file_and_line(recipe, text, where):
    path = recipe(text)
    answer = message(read_run, ["method=mae", f"recipe={path}"])
    # What follows is the YAML parser's wording, which its version decides.
    assert answer.startswith(f"{path}{where}")
    assert "\n" not in answer


def test_a_recipe_that_is_no_text_is_refused(recipe):
    path = recipe()
    path.write_bytes(b"\xff\xfe\x00")
    assert message(read_run, ["method=mae", f"recipe={path}"]).startswith(f"{path} cannot be read: ")


def test_a_recipe_may_hold_dollars_and_empty_sections(recipe):
    path = recipe("data:\n  path: ${data}/$x\noptim:\n  # base_lr: 1e-3\n")
    config = read_run(["method=mae", f"recipe={path}"]).config
    assert config.data.path == "${data}/$x"


@pytest.mark.parametrize(
    ("args", "answer"),
    [
        ([], "method= is missing: one of mae, or package.module:Class"),
        (["method=mea"], "method=mea is not a method: one of mae, or package.module:Class (did you mean mae?)"),
        (["method=:X"], "method=:X must be one of mae, or package.module:Class"),
        (["method=no_such:X"], "method=no_such:X: No module named 'no_such' (is it installed, or on PYTHONPATH?)"),
        (["method=mae", "recipe=no.yaml"], "recipe=no.yaml is not a file"),
        (
            ["method=mae", "recipe=digit"],
            "recipe=digit is not a recipe: method=mae has digits, steel, or give a path that ends in .yaml"
            " (did you mean digits?)",
        ),
    ],
)
def test_an_unknown_method_or_recipe_is_answered_with_the_legal_ones(args, answer, monkeypatch):
    monkeypatch.setattr(recipes_of, "METHODS", {"mae": MAERun})
    for module in (resolve, recipes_of):
        monkeypatch.setattr(module, "LEGAL_METHODS", "one of mae, or package.module:Class")
    monkeypatch.setattr(
        recipes_of, "recipes", lambda method: {"digits": Path("digits.yaml"), "steel": Path("steel.yaml")}
    )
    assert message(read_run, args) == answer


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("SimMim", "acme_methods has no SimMim (did you mean SimMIM?)"),
        ("NoConfig", "NoConfig.Config must be a subclass of ssl_vit.config.schema.RunConfig"),
        ("Named", "Named.Config cannot have method.name, where runs keep their method"),
    ],
)
def test_a_third_party_class_must_have_a_run_config(acme, name, answer):
    assert message(read_run, [f"method={acme}:{name}"]) == f"method={acme}:{name}: {answer}"


def test_a_third_party_config_must_have_defaults(acme):
    answer = message(read_run, [f"method={acme}:Needy"])
    assert answer.startswith("the defaults of acme_methods.NeedyRun fail: ")


def test_a_third_party_method_needs_a_recipe_path(acme):
    answer = "recipe=digits must be a path for method=acme_methods:SimMIM, such as recipe=path/to.yaml"
    assert message(read_run, [f"method={acme}:SimMIM"]) == answer


@pytest.mark.parametrize("name", ["SimMIM", "Plain"])
def test_a_third_party_run_reads_and_comes_back(acme, name, recipe):
    method = f"{acme}:{name}"
    resolved = read_run([f"method={method}", f"recipe={recipe('seed: 3')}", "trainer.max_steps=2"])
    assert (resolved.method, resolved.config.seed, resolved.config.trainer.max_steps) == (method, 3, 2)
    assert from_yaml(to_yaml(resolved.config, method)) == (method, resolved.config)


def test_a_run_survives_its_config_yaml(run):
    args = ["run_dir=/a/b", "resume=auto", "optim.base_lr=1e-5", "encoder.image_size=[32, 64]", "trainer.max_steps=7"]
    config = run(*args, "data.path='quoted' \"twice\"").config
    assert from_yaml(to_yaml(config, "mae")) == ("mae", config)


def test_a_config_yaml_is_a_recipe_but_for_where_it_ran(run, recipe):
    config = run("run_dir=/a/b", "resume=auto", "data.batch_size=3", "method.mask_ratio=0.6").config
    path = recipe(to_yaml(config, "mae"))
    again = read_run(["method=mae", f"recipe={path}"]).config
    assert (again.data.batch_size, again.method.mask_ratio) == (3, 0.6)
    assert (again.run_dir, again.resume, again.recipe) == ("", "", str(path))


def test_a_config_yaml_names_its_method():
    assert "\nmethod:\n  name: mae\n  mask_ratio: 0.75\n" in to_yaml(MAERun(), "mae")
    legal = resolve.LEGAL_METHODS
    assert message(from_yaml, "seed: 1", "runs/a/config.yaml") == f"runs/a/config.yaml has no method.name: {legal}"


def test_a_fault_in_a_config_yaml_is_answered_with_the_file():
    text = "method: {name: mae}\ndata: {batch_size: 0}"
    assert message(from_yaml, text, "config.yaml") == "config.yaml: data.batch_size=0 must be a positive integer"


def test_other_commands_read_their_own_settings():
    resolved = read(KNNConfig, ["temperature=0.5", "data.source=digits"])
    assert (resolved.config.temperature, resolved.config.data.source, resolved.method) == (0.5, "digits", "")
    answer = (
        "neighbors=5 is not a setting; the settings are encoder, pool, layer, blocks, data.*, train_limit, shots,"
        " fraction, controls, seed, neighbors, temperature (did you mean neighbors?)"
    )
    assert message(read, KNNConfig, ["neighbors=5"]) == answer


@pytest.mark.parametrize(
    ("arg", "value"),
    [
        ("neighbors=20", [20]),
        ("neighbors=1,5,10", [1, 5, 10]),
        ("neighbors=[1, 5]", [1, 5]),
        ("fraction=0.01,0.1", [0.01, 0.1]),
        ("shots=", []),
    ],
)
def test_a_list_of_any_length_needs_no_brackets(arg, value):
    assert getattr(read(KNNConfig, [arg]).config, arg.partition("=")[0]) == value


def test_what_is_no_list_of_the_type_is_shown_as_typed():
    assert message(read, KNNConfig, ["shots=1,five"]) == "shots=1,five must be a list of integers"
    assert message(read, KNNConfig, ["shots=1.5"]) == "shots=1.5 must be a list of integers"


def test_a_lower_layer_lies_between_defaults_and_args():
    lower = {"data": {"source": "digits", "batch_size": 8, "mean": (0.5, 0.5, 0.5)}}
    resolved = read(KNNConfig, ["data.batch_size=4"], lower)
    data, origin = resolved.config.data, resolved.origin
    assert (data.source, data.batch_size, data.mean) == ("digits", 4, [0.5, 0.5, 0.5])
    assert [origin[f"data.{name}"] for name in ("source", "batch_size", "std")] == ["run", "command line", "default"]


def test_a_fault_in_a_lower_layer_is_answered_with_its_name():
    lower = {"data": {"batch_size": 0}}
    assert message(read, KNNConfig, [], lower, origin="run") == "run: data.batch_size=0 must be a positive integer"


@pytest.mark.parametrize("root", ["configs", "ssl_vit/configs"])
def test_recipes_are_found_in_a_checkout_and_in_a_wheel(tmp_path, monkeypatch, root):
    path = tmp_path / root / "mae" / "steel.yaml"
    path.parent.mkdir(parents=True)
    path.touch()
    monkeypatch.setattr(recipes_of, "__file__", str(tmp_path / "ssl_vit" / "config" / "recipes.py"))
    assert recipes("mae") == {"steel": path}


@pytest.mark.parametrize(("method", "name"), SHIPPED)
def test_every_shipped_recipe_resolves(method, name):
    resolved = read_run([f"method={method}", f"recipe={name}"])
    assert "recipe" in resolved.origin.values()


@pytest.mark.parametrize("name", recipes(TOKENIZER))
def test_every_shipped_tokenizer_recipe_resolves(name):
    resolved = read_tokenizer([f"recipe={name}"])
    assert isinstance(resolved.config, TOKENIZERS[resolved.method])
    assert "recipe" in resolved.origin.values()


@pytest.mark.parametrize("name", recipes("beit"))
def test_the_tokenizer_of_each_beit_recipe_makes_its_patches(name):
    run = read_run(["method=beit", f"recipe={name}"]).config
    args = read_tokenizer([f"recipe={run.tokenizer_recipe}"]).config.method
    assert (args.grid, args.channels) == (run.encoder.grid, run.encoder.channels)
