"""How good the features are while they are learned: spread, effective rank, and linear probe and k-NN with labels."""

from typing import Any

import pytorch_lightning as pl

from ssl_vit.callbacks.image_logger import ImageLogger
from ssl_vit.config.schema import MonitorConfig, ReadoutConfig
from ssl_vit.data.datamodule import ImageDataModule
from ssl_vit.evaluate.backbones import EncoderBackbone
from ssl_vit.evaluate.features import FeatureBank, Resources, best_feature, cover, extract_features, feature_std, rankme
from ssl_vit.evaluate.knn import knn_scores
from ssl_vit.evaluate.linear import logistic_scores
from ssl_vit.evaluate.metrics import top_k


class OnlineProbe(ImageLogger):
    """Evaluates the encoder too: monitor/feature_std and rankme, and with labels monitor/linear_top1 and knn_top1.

    Labels are used by classifiers on frozen features: no gradient reaches the encoder and no random state of the
    training is touched, so a run learns the same with and without it. The curves begin with the encoder before its
    first step, so that they show whether a run has learned something.
    """

    test_images = 0
    """That the probe was tested on; 0 without labels."""

    def __init__(self, config: MonitorConfig, readout: ReadoutConfig) -> None:
        super().__init__(config)
        self.readout = readout

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:  # pyright: ignore
        if trainer.global_step == 0:
            self.evaluate(trainer, pl_module, draws=False)

    def measure(self, objective: Any, data: ImageDataModule) -> dict[str, float]:
        """With readout.layer=best the block is the one whose k-NN is best on held-out training images."""
        config, readout, backbone = self.config, self.readout, EncoderBackbone(objective.export_encoder())
        resources = Resources(str(objective.device))
        layers = range(1, 1 + backbone.depth) if readout.layer == "best" else [readout.layer]
        features = [backbone.feature(readout.pool, layer, readout.blocks) for layer in layers]
        holds = cover(features)
        extractor = backbone.extractor(holds)
        bank = FeatureBank(*extract_features(extractor, data, "train", config.train_limit, resources=resources), holds)
        labeled = data.has_labels and len(bank.labels.unique()) > 1 and bool(bank.values.isfinite().all())
        metrics, best = dict[str, float](), features[-1]
        if readout.layer == "best":
            if labeled:
                best, _ = best_feature(lambda *split: [knn_scores(*split)], bank, features)
            metrics["monitor/layer"] = float(1 + best.blocks[-1])
        train = bank.select(best)
        metrics |= {"monitor/feature_std": float(feature_std(train)), "monitor/rankme": rankme(train)}
        if labeled:
            values, test_labels = extract_features(extractor, data, "test", config.test_limit, resources=resources)
            test = FeatureBank(values, test_labels, holds).select(best)
            if not test.isfinite().all():
                return metrics
            self.test_images = len(test)
            for name, scores_of in (("linear", logistic_scores), ("knn", knn_scores)):
                metrics[f"monitor/{name}_top1"] = top_k(scores_of(train, bank.labels, test), test_labels, 1) or 0.0
        return metrics
