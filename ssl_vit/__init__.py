"""Self-supervised pretraining of Vision Transformers: unlabeled images in, an encoder out.

Names are imported when first used, so that `import ssl_vit` costs nothing and the encoder needs torch alone.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_vit.data.datamodule import ImageDataModule as ImageDataModule
    from ssl_vit.data.statistics import ImageStatistics as ImageStatistics
    from ssl_vit.data.statistics import image_statistics as image_statistics
    from ssl_vit.evaluate.embed import embed as embed
    from ssl_vit.methods.base import Method as Method
    from ssl_vit.methods.beit import BEiT as BEiT
    from ssl_vit.methods.dino import DINO as DINO
    from ssl_vit.methods.mae import MAE as MAE
    from ssl_vit.models.vit import VisionTransformer as VisionTransformer
    from ssl_vit.models.weights import load_encoder as load_encoder
    from ssl_vit.models.weights import save_encoder as save_encoder
    from ssl_vit.supervised.classifier import Classifier as Classifier
    from ssl_vit.supervised.classifier import load_classifier as load_classifier
    from ssl_vit.supervised.finetune import FineTune as FineTune
    from ssl_vit.supervised.linear_probe import LinearProbe as LinearProbe
    from ssl_vit.supervised.probes import knn as knn
    from ssl_vit.supervised.probes import linear_probe as linear_probe
    from ssl_vit.tokenizers.base import load_tokenizer as load_tokenizer

__version__ = "0.1.0"
_HOME = {
    "BEiT": "ssl_vit.methods.beit",
    "DINO": "ssl_vit.methods.dino",
    "MAE": "ssl_vit.methods.mae",
    "Classifier": "ssl_vit.supervised.classifier",
    "FineTune": "ssl_vit.supervised.finetune",
    "ImageDataModule": "ssl_vit.data.datamodule",
    "ImageStatistics": "ssl_vit.data.statistics",
    "LinearProbe": "ssl_vit.supervised.linear_probe",
    "Method": "ssl_vit.methods.base",
    "VisionTransformer": "ssl_vit.models.vit",
    "embed": "ssl_vit.evaluate.embed",
    "image_statistics": "ssl_vit.data.statistics",
    "knn": "ssl_vit.supervised.probes",
    "linear_probe": "ssl_vit.supervised.probes",
    "load_classifier": "ssl_vit.supervised.classifier",
    "load_encoder": "ssl_vit.models.weights",
    "load_tokenizer": "ssl_vit.tokenizers.base",
    "save_encoder": "ssl_vit.models.weights",
}
__all__ = [*_HOME]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"ssl_vit has no {name}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
