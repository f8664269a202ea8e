"""Teachers: where they come from, that they see images normalized as in their own training, what is refused."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from ssl_vit.config.schema import EncoderConfig
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.supervised.classifier import Classifier, save_classifier
from ssl_vit.supervised.distill import load_teacher

NAMES = ["cat", "dog"]
IMAGE = EncoderConfig(image_size=32, patch_size=4)
GIVEN = ([0.2, 0.3, 0.4], [0.5, 0.25, 0.2])
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def timm_file(path, classes: int = 2) -> tuple[torch.nn.Module, str]:
    torch.manual_seed(0)
    network = timm.create_model("resnet10t", num_classes=classes).eval()
    if path.suffix == ".safetensors":
        save_file(network.state_dict(), path)
    else:
        torch.save({"model": network.state_dict()}, path)
    return network, f"timm:resnet10t:{path}"


def renormalized(images: torch.Tensor, trained) -> torch.Tensor:
    mean, std, its_mean, its_std = (torch.tensor(v).view(3, 1, 1) for v in (*GIVEN, *trained))
    return (images * std + mean - its_mean) / its_std


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_a_timm_model_from_a_file_sees_its_own_normalization(tmp_path, ending):
    network, source = timm_file(tmp_path / f"teacher{ending}")
    teacher = load_teacher(source, NAMES, IMAGE, GIVEN)
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(teacher(images), network(renormalized(images, IMAGENET)), atol=1e-4, rtol=1e-4)
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_a_published_timm_model_comes_from_timm(monkeypatch):
    created: list = []

    def create(name, **options):
        created.append((name, options))
        return timm.models.resnet10t(num_classes=2)

    monkeypatch.setattr("timm.create_model", create)
    load_teacher("timm:resnet10t", NAMES, IMAGE, GIVEN)
    assert created == [("resnet10t", {"pretrained": True})]


def fine_tuned(folder, names=NAMES, **options):
    encoder = VisionTransformer(
        **{"embed_dim": 32, "depth": 2, "num_heads": 4, "patch_size": 4, "image_size": 32, **options}
    )
    model = Classifier(encoder, names)
    torch.nn.init.normal_(model.head.weight)
    save_classifier(model, folder, mean=[0.5] * 3, std=[0.25] * 3)
    return model.eval()


def test_a_fine_tuned_classifier_teaches(tmp_path):
    model = fine_tuned(tmp_path)
    teacher = load_teacher(str(tmp_path), NAMES, IMAGE, GIVEN)
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        expected = model(renormalized(images, ([0.5] * 3, [0.25] * 3)))
        torch.testing.assert_close(teacher(images), expected, atol=1e-4, rtol=1e-4)


def test_mistakes_are_one_line(tmp_path, monkeypatch):
    def refuse(source, error, message, names=NAMES, image=IMAGE):
        with pytest.raises(error, match=message) as caught:
            load_teacher(source, names, image, GIVEN)
        assert "\n" not in str(caught.value)

    fine_tuned(tmp_path / "run")
    _, three = timm_file(tmp_path / "three.pth", classes=3)
    refuse("timm:resnet10tt", ValueError, "timm has no model of this name .did you mean resnet10t")
    refuse("timm:resnet10t:nowhere.pth", FileNotFoundError, "there is no file nowhere.pth")
    refuse(three, ValueError, r"distill.teacher=.* is \[3, 512\], but \[2, 512\] is needed")
    refuse(str(tmp_path / "nowhere"), FileNotFoundError, r"distill.teacher=.*: model=.*nowhere: there is no such")
    refuse(
        str(tmp_path / "run"), ValueError, r"knows the classes cat, dog \.\.\., the images are of", names=["dog", "cat"]
    )
    odd = EncoderConfig(image_size=30, patch_size=5)
    refuse(str(tmp_path / "run"), ValueError, "does not take images of 30 x 30 pixels: images are", image=odd)

    def offline(name, **options):
        raise OSError("no network\nat all")

    monkeypatch.setattr("timm.create_model", offline)
    refuse("timm:resnet10t", OSError, r"could not be had \(no network at all\); .*: or give a file of yours, timm:res")
    monkeypatch.setattr("timm.create_model", lambda name, **options: timm.models.resnet10t(num_classes=9))
    refuse("timm:resnet10t", ValueError, "has 9 classes, the images 2: they must be alike")
