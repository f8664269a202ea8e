"""What every pretraining method shares: one encoder, which is what is kept.

A method writes at most four things: `views` (what an image becomes), `losses` (what is minimized), `after_step`
(an EMA teacher, say) and `export_encoder` (what is kept). All the rest of the training is Objective's.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ssl_vit.config.checks import override
from ssl_vit.config.schema import EncoderConfig, OptimConfig, RunConfig
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.models.weights import TRAINED, initialize, save_encoder
from ssl_vit.objective import Objective


class Method(Objective):
    """A self-supervised objective on one encoder.

    Args:
        encoder, optim: an EncoderConfig, an OptimConfig, or dicts of the fields that differ from the paper's.
        seed: every draw of a step is a function of (seed, epoch, batch, rank).
        options: fields of the method's own config, such as mask_ratio.
    """

    exported = TRAINED
    """Prefix of the exported encoder's weights in the state dict; a checkpoint carries it."""

    def __init__(
        self,
        encoder: EncoderConfig | dict[str, Any] | None = None,
        optim: OptimConfig | dict[str, Any] | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(optim, seed, **options)
        self.encoder_config: EncoderConfig = override(self.Config().encoder, encoder, "encoder")  # pyright: ignore
        self.encoder = VisionTransformer(self.encoder_config)
        parts = {"encoder": asdict(self.encoder_config), "optim": asdict(self.optim_config), "seed": seed}
        self.save_hyperparameters(parts | asdict(self.config))

    @classmethod
    def from_run(cls, run: RunConfig) -> Any:
        """As a run's settings say."""
        return cls(run.encoder, run.optim, run.seed, **vars(run.method))

    def export_encoder(self) -> VisionTransformer:
        """The encoder that is saved and judged."""
        return self.encoder

    def export(self, folder: Path, **metadata: Any) -> Path:
        """Write the encoder."""
        return save_encoder(self.export_encoder(), folder, **metadata)

    def start_from(self, source: str) -> None:
        """Begin with the weights of another encoder, anything that load_encoder reads."""
        initialize(self.encoder, source)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["exported"] = self.exported
