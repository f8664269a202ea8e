"""What a file may ask for, and what the user has to type."""

import pytest

from ssl_vit.config.evaluation_schema import KNNConfig
from ssl_vit.config.finetune_schema import FinetuneRun
from ssl_vit.config.foreign import require_typed
from ssl_vit.config.resolve import ConfigError, resolve
from ssl_vit.config.schema import RunConfig

WISHES = [  # what a file says, what has to be typed
    ("source: a.b:Class", ["data.source=a.b:Class"]),
    ("source: torchvision, path: 'CIFAR10:x'", ["data.source=torchvision"]),
    ("source: hf, path: a/b", ["data.source=hf", "data.path=a/b"]),
    ("source: webdataset, path: 'http://h/x.tar'", ["data.path=http://h/x.tar"]),
    ("source: webdataset, path: '{p,}ipe:x'", ["data.path={p,}ipe:x"]),
    ("source: webdataset, path: a, test_path: 'pipe:x'", ["data.test_path=pipe:x"]),
]


def refused(resolved, needs_download=True) -> str:
    with pytest.raises(ConfigError) as caught:
        require_typed(resolved, lambda data: needs_download)
    return str(caught.value)


@pytest.mark.parametrize(("wish", "typed"), WISHES)
def test_a_recipe_of_others_gets_code_and_the_network_only_where_the_user_types_it(tmp_path, wish, typed):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"data: {{{wish}}}\nmonitor: {{every_epochs: 0}}")
    args = ["method=mae", f"recipe={path}"]
    answer = refused(resolve(RunConfig, args))
    assert f" comes from {path}, and would " in answer
    assert answer.endswith(f": to allow that, give {' '.join(typed)} on the command line")
    require_typed(resolve(RunConfig, [*args, *typed]), lambda data: True)


def test_an_encoders_metadata_likewise():
    data = {"source": "torchvision", "path": "CIFAR10:x"}
    resolved = resolve(KNNConfig, [], {"data": data}, "run", "encoder=a")
    assert refused(resolved).startswith("data.source=torchvision comes from encoder=a, and would download it: ")
    require_typed(resolved, lambda data: False)  # what is there is read
    require_typed(resolve(KNNConfig, ["data.source=torchvision"], {"data": data}), lambda data: True)


def test_files_of_this_machine_are_read_and_shipped_recipes_are_ours(tmp_path, monkeypatch):
    path = tmp_path / "recipe.yaml"
    for wish in ("source: folder, path: 'a:b'", "source: webdataset, path: '/a:b/{0..9}.tar'", "source: parquet"):
        path.write_text(f"data: {{{wish}}}")
        require_typed(resolve(RunConfig, ["method=mae", f"recipe={path}"]), lambda data: True)
    monkeypatch.setattr("ssl_vit.config.recipes._configs", lambda: tmp_path)
    path.write_text("data: {source: torchvision, path: 'CIFAR10:x'}")
    require_typed(resolve(RunConfig, ["method=mae", f"recipe={path}"]), lambda data: True)


def test_a_teacher_of_timm_and_curves_on_the_network_are_typed_too(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("distill: {teacher: 'timm:vit_tiny_patch16_224'}\ntrainer: {logger: [tensorboard, wandb]}")
    teacher = "distill.teacher=timm:vit_tiny_patch16_224"
    answer = refused(resolve(FinetuneRun, [f"recipe={path}"]))
    assert answer.startswith(f"{teacher} comes from {path}, and would have it downloaded")
    answer = refused(resolve(FinetuneRun, [f"recipe={path}", teacher]))
    assert answer.endswith("give trainer.logger=[tensorboard, wandb] on the command line")
