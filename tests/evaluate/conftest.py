"""A small labeled folder, a small encoder, and evaluations of them."""

import pytest
from evaluations import make_encoder, make_labeled

from ssl_vit.config.evaluation_schema import KNNConfig, LinearProbeConfig
from ssl_vit.config.schema import DataConfig
from ssl_vit.data.datamodule import ImageDataModule
from ssl_vit.evaluate.backbones import EncoderBackbone
from ssl_vit.evaluate.evaluation import Evaluation
from ssl_vit.evaluate.features import CPU


@pytest.fixture(scope="session")
def labeled(tmp_path_factory):
    return make_labeled(tmp_path_factory.mktemp("labeled"))


@pytest.fixture
def encoder():
    return make_encoder()


@pytest.fixture
def backbone(encoder):
    return EncoderBackbone(encoder)


@pytest.fixture
def data_config(labeled):
    return DataConfig(source="folder", path=str(labeled), batch_size=7, workers=0)


@pytest.fixture
def make_evaluation(data_config):
    """An evaluation of the labeled folder: linear_probe with settings as given, or knn."""

    def made(task: str = "linear_probe", resources=CPU, **settings):
        config_class = {"linear_probe": LinearProbeConfig, "knn": KNNConfig}[task]
        config = config_class(data=data_config, **settings)
        return Evaluation(config, ImageDataModule(None, data_config, image_size=16, seed=0), resources)

    return made
