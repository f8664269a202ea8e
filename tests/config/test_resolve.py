"""What the command line and recipe files may say, and every message that answers what they may not."""

import dataclasses
import sys
from pathlib import Path

import pytest

from ssl_vit.config import recipes as recipes_of
from ssl_vit.config.evaluation_schema import KNNConfig, ShardsConfig
from ssl_vit.config.finetune_schema import FinetuneRun
from ssl_vit.config.pretrain_schema import METHODS, DINOConfig, MAEConfig, MAERun
from ssl_vit.config.recipes import FINETUNE, TOKENIZER, recipes
from ssl_vit.config.resolve import ConfigError, resolve, to_yaml
from ssl_vit.config.schema import DataConfig, EncoderConfig, OptimConfig, RunConfig
from ssl_vit.config.tokenizer_schema import TOKENIZERS, DVAERun, TokenizerConfig, TokenizerRun
from ssl_vit.config.values import usual_values

OPTIM = f"optim has {', '.join(field.name for field in dataclasses.fields(OptimConfig))}"
ROOT = (
    "the settings are recipe, run_dir, seed, resume,"
    " optim.*, data.*, trainer.*, monitor.*, init_from, method.*, encoder.*, readout.*"
)
REMOTE = "where data.path is a remote stream"
WEB = "data.source=webdataset data.path=https://host/train-{000..009}.tar"


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
    return lambda *args: resolve(RunConfig, ["method=mae", f"recipe={recipe()}", *args])


@pytest.fixture
def acme(tmp_path, monkeypatch):
    """An importable third-party module."""
    (tmp_path / "acme_methods.py").write_text(
        "from dataclasses import dataclass, field\n"
        "from ssl_vit.config.schema import RunConfig\n"
        "def method(name, options=None, **fields):\n"
        "    space = {'__annotations__': fields | {'method': options} if options else fields}\n"
        "    if options: space['method'] = field(default_factory=options)\n"
        "    return type(name, (), {'Config': dataclass(kw_only=True)(type(name + 'Run', (RunConfig,), space))})\n"
        "@dataclass(kw_only=True)\n"
        "class Options:\n"
        "    ratio: float = 0.5\n"
        "@dataclass(kw_only=True)\n"
        "class NamedOptions:\n"
        "    name: str = 'x'\n"
        "SimMIM, Named = method('SimMIM', Options), method('Named', NamedOptions)\n"
        "Needy, Plain = method('Needy', must=int), type('Plain', (), {'Config': RunConfig})\n"
        "class NoConfig: ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "acme_methods"
    sys.modules.pop("acme_methods", None)


def message(call, *arguments, **options) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*arguments, **options)
    return str(caught.value)


def test_layers_override_in_order_and_each_value_knows_its_own(recipe):
    path = recipe("data:\n  source: digits\n  batch_size: 32\noptim: {base_lr: 1e-3}\nmonitor:\n")
    lower = {"data": {"batch_size": 8, "mean": (0.5, 0.5, 0.5)}}
    resolved = resolve(RunConfig, ["method=mae", f"recipe={path}", "data.batch_size=16"], lower)
    data, optim = resolved.config.data, resolved.config.optim
    assert (data.source, data.batch_size, data.mean) == ("digits", 16, [0.5, 0.5, 0.5])
    assert (optim.base_lr, optim.weight_decay) == (1e-3, 0.05)
    assert isinstance(resolved.config, MAERun)
    assert resolved.name == "mae"
    assert {key: origin for key, origin in resolved.origin.items() if origin != "default"} == {
        "method": "command line",
        "recipe": "command line",
        "data.source": "recipe",
        "data.batch_size": "command line",
        "data.mean": "encoder",
        "optim.base_lr": "recipe",
    }
    assert "trainer.max_epochs" in resolved.origin


def test_without_args_a_run_is_the_papers(run, recipe):
    assert run().config == MAERun(recipe=str(recipe()))


@pytest.mark.parametrize(
    ("arg", "value"),
    [
        ("optim.base_lr=1e-3", 1e-3),
        ("optim.warmup_epochs=5", 5.0),
        ("optim.betas=[0.9, 0.99]", (0.9, 0.99)),
        ("optim.betas=0.9,0.99", (0.9, 0.99)),
        ("data.std=[1, 2, 3]", [1.0, 2.0, 3.0]),
        ("data.max_unreadable=1%", 0.01),
        ("data.max_unreadable=0.5%", 0.005),
        ("trainer.max_steps=10", 10),
        ("trainer.max_steps=null", None),
        ("trainer.compile=true", True),
        ("encoder.image_size=32", 32),
        ("encoder.image_size=[32, 64]", [32, 64]),
        ("readout.layer=best", "best"),
        ("readout.layer=3", 3),
        ("data.workers=auto", "auto"),
        ("data.workers=2", 2),
    ],
)
def test_an_arg_becomes_its_settings_type_on_the_command_line_and_in_a_recipe(run, recipe, arg, value):
    key, _, text = arg.partition("=")
    section, name = key.split(".")
    typed = run(arg).config
    path = recipe(f"{section}: {{{name}: {text if ',' not in text else '[' + text.strip('[]') + ']'}}}")
    for config in (typed, resolve(RunConfig, ["method=mae", f"recipe={path}"]).config):
        read_back = getattr(getattr(config, section), name)
        assert read_back == value
        assert type(read_back) is type(value)


@pytest.mark.parametrize(("arg", "value"), [("shots=1,5", [1, 5]), ("shots=", []), ("neighbors=20", [20])])
def test_a_list_needs_no_brackets(arg, value):
    assert getattr(resolve(KNNConfig, [arg]).config, arg.partition("=")[0]) == value


# What YAML, interpolation or a shell would read as something else.
AS_IS = [
    *("${oc.env:HOME}", "${x", "$HOME/${y}", "a${", "???", "/a=b/c", "#1", "a #b"),
    *("a: b", "[a", "2024", "007", "*", "yes", "'quoted' \"twice\"", "é", ""),
]


@pytest.mark.parametrize("path", AS_IS)
def test_text_stays_as_it_is_on_the_command_line_and_in_config_yaml(run, recipe, path):
    config = run("data.source=folder", f"data.path={path}").config
    assert config.data.path == path
    again = recipe(to_yaml(config, "mae"))
    assert resolve(RunConfig, ["method=mae", f"recipe={again}"]).config.data.path == path


@pytest.mark.parametrize("text", ["007", "yes", "1:30", "2024-01-01", "~", "${x", "${oc.env:HOME}", "???"])
def test_text_in_a_recipe_needs_no_quotes(recipe, text):
    path = recipe(f"data:\n  source: folder\n  path: {text}\n")
    assert resolve(RunConfig, ["method=mae", f"recipe={path}"]).config.data.path == text


@pytest.mark.parametrize(
    ("arg", "answer"),
    [
        ("optim.lr=1", f"{OPTIM} (did you mean optim.base_lr?)"),
        ("optim.zzz=1", OPTIM),
        ("optim=1", OPTIM),
        ("optim.betas.first=1", OPTIM),
        ("optm.base_lr=1", f"{ROOT} (did you mean optim.base_lr?)"),
        ("mask_ratio=0.5", f"{ROOT} (did you mean method.mask_ratio?)"),
        ("batch_size=3", f"{ROOT} (did you mean data.batch_size?)"),
        ("optim.epochs=3", f"{OPTIM} (did you mean optim.warmup_epochs?)"),
        ("epochs=3", f"{ROOT} (did you mean trainer.max_epochs?)"),
        ("patch=3", f"{ROOT} (did you mean encoder.patch_size?)"),
        ("--seed=3", f"{ROOT} (did you mean seed?)"),
        ("zzz=3", ROOT),
    ],
)
def test_an_unknown_key_is_answered_with_the_legal_ones_and_the_nearest(run, arg, answer):
    assert message(run, arg) == f"{arg} is not a setting; {answer}"


# What is legal: the args of a run that are answered so; the last one is at fault.
WRONG = {
    "an integer": [
        *("data.batch_size=abc", "data.batch_size=3.5", "data.batch_size=1e2", "data.batch_size=true"),
        *("data.batch_size=null", "data.batch_size=a: b", "data.batch_size=${seed}", "encoder.patch_size=x"),
    ],
    "an integer or null": ["trainer.max_steps=2.5", "trainer.max_steps=", "trainer.max_steps=#3"],
    "a number": [
        *("optim.base_lr=high", "optim.base_lr=true", "optim.base_lr=nan", "optim.base_lr=inf"),
        *("optim.base_lr=1" + "0" * 400, "data.max_unreadable=%", "data.max_unreadable=1 %%"),
    ],
    "true or false": ["trainer.compile=1", "trainer.compile=yes"],
    "a string": ["resume=null"],
    "a list of numbers, such as [0.485, 0.456, 0.406]": ["data.mean=three", "data.mean=[a, 1, 2]", "data.mean=null"],
    "a list of 2 numbers, such as [0.9, 0.95]": ["optim.betas=0.9", "optim.betas=[1, 2, 3]"],
    "a multiple of encoder.patch_size=16": ["encoder.image_size=225", "encoder.image_size=[32, 33]"],
    "a side in pixels, or [height, width]": [
        *("encoder.image_size=0", "encoder.image_size=[1, 2, 3]", "encoder.image_size=big", "encoder.image_size=[]")
    ],
    "auto, or a positive integer": ["trainer.devices=half", "trainer.devices=0"],
    "auto, or 0 or more": ["data.workers=[0", "data.workers=-1"],
    "last, best, or a number from 1": ["readout.layer=0", "readout.layer=first"],
    "one of auto, ddp, fsdp, deepspeed (did you mean fsdp?)": ["trainer.strategy=fdsp"],
    "one of replace, skip, raise (did you mean skip?)": ["data.on_error=skp"],
    "one of tiny, small, base, large, huge (did you mean small?)": ["encoder.size=smal"],
    "one of cls, mean, both": ["readout.pool=zz"],
    "in [0, 1]": ["data.max_unreadable=1.5"],
    "in [0.01, 1]": ["data.eval_crop=0.0"],
    "in [0, 1)": ["encoder.drop_path=1.0"],
    "in (0, 1)": ["method.mask_ratio=1.0"],
    "in [1, 65535]": ["data.white_16bit=0"],
    "two numbers in [0, 1)": ["optim.betas=[0.9, 1.0]"],
    "positive": ["optim.base_lr=-1.0", "data.std=[1.0, 0.0, 1.0]"],
    "positive or null": ["trainer.max_minutes=-1.0"],
    "a positive integer": ["data.batch_size=0", "trainer.accumulate=-2"],
    "a positive integer or null": ["data.epoch_size=0"],
    "in [1, 1000] or null": ["encoder.depth=0", "encoder.depth=100000"],
    "in [0, 4294967295]": ["seed=-1", "seed=4294967296"],
    "0 or more": ["optim.min_lr=-1.0"],
    "a multiple of 4": ["method.decoder_embed_dim=30", "encoder.num_heads=1 encoder.embed_dim=30"],
    "a multiple of encoder.num_heads=5": ["encoder.num_heads=5 encoder.embed_dim=32"],
    "a divisor of method.decoder_embed_dim=512": ["method.decoder_num_heads=7"],
    "[low, high] with 0.01 <= low <= high <= 1.0": ["method.crop_scale=[0.5, 0.2]", "method.crop_scale=[0.0, 1.0]"],
    "as long as data.mean=[0.485, 0.456, 0.406]": ["data.std=[1.0]"],
    "false with data.source=auto: it is for hf": ["data.streaming=true"],
    "null but for a stream: data.source=webdataset, or hf with data.streaming=true": ["data.epoch_size=5"],
    "auto, 32-true, bf16-mixed or bf16-true with trainer.strategy=fsdp": [
        "trainer.strategy=fsdp trainer.precision=16-mixed"
    ],
    "false with trainer.strategy=fsdp": ["trainer.strategy=fsdp trainer.compile=true"],
    f"0 {REMOTE}: there is nothing to look at, or give data.test_path": [f"{WEB} monitor.every_epochs=10"],
}


@pytest.mark.parametrize(("args", "rule"), [(args, rule) for rule, several in WRONG.items() for args in several])
def test_a_wrong_value_is_answered_with_what_is_legal(run, args, rule):
    wrong = args if " " not in args or args.startswith("data.batch") else args.split()[-1]
    wrong = args if "[" in args or "%" in args else wrong
    several = [args] if wrong == args else args.split()
    assert message(run, *several) == f"{wrong} must be {rule}"


@pytest.mark.parametrize(
    ("config_class", "values", "answer"),
    [
        (MAEConfig, {"mask_ratio": 2}, "method.mask_ratio=2 must be in (0, 1)"),
        (OptimConfig, {"base_lr": -1}, "optim.base_lr=-1 must be positive"),
        (DataConfig, {"workers": True}, "data.workers=true must be auto, or 0 or more"),
        (EncoderConfig, {"image_size": (32, 33)}, "encoder.image_size=[32, 33] must be a multiple of encoder.patch"),
        (TokenizerConfig, {"image_size": 33}, "tokenizer.image_size=33 must be a multiple of tokenizer.patch_size=16"),
        (DINOConfig, {"blur_p": (0.1, 0.2, 1.3)}, "method.blur_p=[0.1, 0.2, 1.3] must be three numbers in [0, 1]"),
        (DINOConfig, {"blur_sigma": (0.0, 2.0)}, "method.blur_sigma=[0.0, 2.0] must be positive"),
        (KNNConfig, {"neighbors": []}, "neighbors=[] must be one or more"),
        (KNNConfig, {"pool": "all"}, "pool=all must be one of cls, mean, both"),
        (ShardsConfig, {"shard_mb": -0.5}, "shard_mb=-0.5 must be positive"),
    ],
)  # fmt: skip
def test_bounds_hold_in_python_too(config_class, values, answer):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the whole message is compared)
        config_class(**values)
    assert str(caught.value).startswith(answer)


@pytest.mark.parametrize(
    ("args", "answer"),
    [
        (["seed"], "seed is not a setting: settings are written key=value"),
        (["=3"], "=3 is not a setting: settings are written key=value"),
        (["--verbose"], "--verbose is not a setting: settings are written key=value"),
        (["seed=1", "seed=2"], "seed is given twice: 1 and 2"),
    ],
)
def test_what_cannot_be_meant_is_refused(run, args, answer):
    assert message(run, *args) == answer
    assert run("seed=1", "seed=1").config.seed == 1


def test_a_remote_stream_is_one_that_no_file_of_this_machine_holds(run):
    assert run(*WEB.split(), "data.test_path=shards").config.data.remote
    assert run("data.source=webdataset", "data.path=pipe:cat a.tar", "monitor.every_epochs=0").config.data.remote
    assert run("data.source=hf", "data.path=a", "data.streaming=true", "monitor.every_epochs=0").config.data.remote
    for local in ("shards", "file:///shards", "shards/train-{000..009}.tar"):
        assert not run("data.source=webdataset", f"data.path={local}").config.data.remote
    answer = message(resolve, TokenizerRun, [*WEB.split(), "monitor.every_epochs=0"])
    assert (
        answer == f"data.test_path= must be given {REMOTE}: a tokenizer is evaluated on images that can be read again"
    )


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("data:\n  batch_size: abc", "{}: data.batch_size=abc must be an integer"),
        ("data: {path: [a]}", "{}: data.path=[a] must be a string"),
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
        ("tokenizer: {name: dvae, width: 3}", "{} is a recipe for tokenizer=dvae, not for method=mae"),
        ("finetune: {mixup: 0}", "{} is a recipe for finetune, not for method=mae"),
    ],
)
def test_a_mistake_in_a_recipe_is_answered_with_the_file(recipe, text, answer):
    path = recipe(text)
    assert message(resolve, RunConfig, ["method=mae", f"recipe={path}"]) == answer.format(path)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (b"seed: 1\ndata: ]", ", line 2: "),
        (b"seed: 1\n\tdata: 3", ", line 2: "),
        (b"seed: \0", ": "),
        (b"\xff\xfe\x00", " cannot be read: "),
    ],
)
def test_malformed_yaml_is_answered_with_file_and_line(recipe, text, where):
    path = recipe()
    path.write_bytes(text)
    answer = message(resolve, RunConfig, ["method=mae", f"recipe={path}"])
    assert answer.startswith(f"{path}{where}")  # what follows is the YAML parser's wording, which its version decides
    assert "\n" not in answer


def test_a_recipe_may_have_empty_sections(recipe):
    path = recipe("data:\n  path: ${data}/$x\noptim:\n  # base_lr: 1e-3\n")
    assert resolve(RunConfig, ["method=mae", f"recipe={path}"]).config.data.path == "${data}/$x"


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
    monkeypatch.setattr(recipes_of, "METHODS", {"mae": METHODS["mae"]})
    monkeypatch.setattr(recipes_of, "LEGAL_METHODS", "one of mae, or package.module:Class")
    paths = {name: Path(f"{name}.yaml") for name in ("digits", "steel")}
    monkeypatch.setattr(recipes_of, "recipes", lambda method: paths)
    assert message(resolve, RunConfig, args) == answer


def test_an_unknown_tokenizer_is_answered_with_the_legal_ones(recipe):
    legal = "must be one of kmeans, dvae, vqkd"
    assert message(resolve, TokenizerRun, ["tokenizer=dva"]) == f"tokenizer=dva {legal} (did you mean dvae?)"
    path = recipe("seed: 1")
    answer = message(resolve, TokenizerRun, [f"recipe={path}"])
    assert answer == f"tokenizer= {legal}: give it, or let {path} have tokenizer.name"
    assert resolve(TokenizerRun, [f"recipe={path}", "tokenizer=dvae"]).config.seed == 1


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("SimMim", "method={}: acme_methods has no SimMim (did you mean SimMIM?)"),
        ("NoConfig", "method={}: NoConfig must be a subclass of ssl_vit.Method"),
        ("Named", "method={}: NamedRun cannot have method.name, where runs keep that"),
        ("Needy", "the defaults of acme_methods.NeedyRun fail: "),
    ],
)
def test_a_third_party_class_must_have_a_run_config_with_defaults(acme, name, answer):
    method = f"{acme}:{name}"
    assert message(resolve, RunConfig, [f"method={method}"]).startswith(answer.format(method))


def test_a_third_party_class_has_a_recipe_or_those_of_the_class_that_it_extends(acme):
    custom = resolve(RunConfig, [f"method={acme}:SimMIM"]).config
    assert (custom.data.source, custom.encoder.embed_dim) == ("digits", 128)
    shuffled = resolve(RunConfig, ["method=tests.methods.shuffled:ShuffledBEiT"]).config
    assert shuffled.tokenizer_recipe == "digits"


@pytest.mark.parametrize("name", ["SimMIM", "Plain"])
def test_a_third_party_run_reads_and_comes_back(acme, name, recipe):
    method = f"method={acme}:{name}"
    resolved = resolve(RunConfig, [method, f"recipe={recipe('seed: 3')}", "trainer.max_steps=2"])
    assert (resolved.config.seed, resolved.config.trainer.max_steps) == (3, 2)
    again = recipe(to_yaml(resolved.config, resolved.name))
    assert resolve(RunConfig, [method, f"recipe={again}"]).config == resolved.config


@pytest.mark.parametrize(
    ("config_class", "args"),
    [
        (RunConfig, ["method=mae", "method.mask_ratio=0.6", "encoder.image_size=[32, 64]", "encoder.patch_size=8"]),
        (TokenizerRun, ["tokenizer=dvae", "tokenizer.vocab_size=32"]),
        (FinetuneRun, ["finetune.mixup=0.3", "image_size=64"]),
    ],
)
def test_a_config_yaml_is_a_recipe_but_for_where_its_run_wrote(recipe, config_class, args):
    resolved = resolve(config_class, [*args, "run_dir=/a/b", "resume=auto", "optim.base_lr=1e-5"])
    path = recipe(to_yaml(resolved.config, resolved.name))
    again = resolve(config_class, [*args[:1], f"recipe={path}"])
    expected = dataclasses.replace(resolved.config, run_dir="", resume="", recipe=str(path))
    assert (again.config, again.name) == (expected, resolved.name)


def test_a_config_yaml_names_what_is_trained():
    assert "\nmethod:\n  name: mae\n  mask_ratio: 0.75\n" in to_yaml(MAERun(), "mae")
    assert "\ntokenizer:\n  name: dvae\n" in to_yaml(DVAERun(), "dvae")


def test_other_commands_read_their_own_settings():
    resolved = resolve(KNNConfig, ["temperature=0.5", "data.source=digits"])
    assert (resolved.config.temperature, resolved.config.data.source, resolved.name) == (0.5, "digits", "")
    answer = (
        "neighbor=5 is not a setting; the settings are encoder, pool, layer, blocks, data.*, train_limit, shots,"
        " fraction, controls, seed, neighbors, temperature (did you mean neighbors?)"
    )
    assert message(resolve, KNNConfig, ["neighbor=5"]) == answer
    assert message(resolve, KNNConfig, ["shots=1,five"]) == "shots=1,five must be a list of integers"


def test_a_mistake_in_a_lower_layer_is_answered_with_its_name():
    answer = message(resolve, KNNConfig, [], {"data": {"batch_size": 0}}, origin="run")
    assert answer == "run: data.batch_size=0 must be a positive integer"


@pytest.mark.parametrize("root", ["configs", "ssl_vit/configs"])
def test_recipes_are_found_in_a_checkout_and_in_a_wheel(tmp_path, monkeypatch, root):
    path = tmp_path / root / "mae" / "steel.yaml"
    path.parent.mkdir(parents=True)
    path.touch()
    monkeypatch.setattr(recipes_of, "__file__", str(tmp_path / "ssl_vit" / "config" / "recipes.py"))
    assert recipes("mae") == {"steel": path}


def usual(base, name, values, wanted):
    """What is auto, as if it were not given."""
    return usual_values(base, wanted)


def test_every_shipped_recipe_resolves():
    trainings = [(RunConfig, name, [f"method={name}"]) for name in METHODS]
    for config_class, folder, args in [*trainings, (TokenizerRun, TOKENIZER, []), (FinetuneRun, FINETUNE, [])]:
        for name in recipes(folder):
            assert "recipe" in resolve(config_class, [*args, f"recipe={name}"], automatic=usual).origin.values()


@pytest.mark.parametrize("name", recipes("beit"))
def test_the_tokenizer_of_each_beit_recipe_makes_its_patches(name):
    run = resolve(RunConfig, ["method=beit", f"recipe={name}"], automatic=usual).config
    made = resolve(TokenizerRun, [f"recipe={run.tokenizer_recipe}"], automatic=usual)
    assert isinstance(made.config, TOKENIZERS[made.name].config)
    assert (made.config.patches.grid, made.config.patches.channels) == (run.encoder.grid, run.encoder.channels)
