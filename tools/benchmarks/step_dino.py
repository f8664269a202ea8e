"""One step of DINO (Caron et al., 2021, arXiv:2104.14294): ours beside timm's and lightly's parts.

The peer is timed in two ways, because how its parts are put together matters as much as they do.

Both get the same crops, already normalized on the device, 2 x 224 + 6 x 96 pixels, K = 65,536 prototypes, and do all
that a step does: teacher, student, loss, center, backward pass, clipping, AdamW, moving average.

Letters: B images.
"""

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import baselines
from benchmarks.baselines import Step, StepSetting, require_peers, stepping
from ssl_vit.config.schema import SIZES
from ssl_vit.methods.dino import DINO
from ssl_vit.optim.param_groups import clip_each

GLOBAL, LOCAL, LOCAL_CROPS, PATCH, PROTOTYPES = 224, 96, 6, 16, 65536
DROP_PATH, CLIP = 0.1, 3.0


def batch_of(batch_size: int, setting: StepSetting) -> list[Tensor]:
    """2 global and 6 local crops of noise [B, 3, side, side]."""
    return [setting.noise(batch_size, 3, side, side) for side in [GLOBAL] * 2 + [LOCAL] * LOCAL_CROPS]


def ours(setting: StepSetting) -> Step:
    """The step as DINO does it in a trainer."""
    encoder = {"size": setting.size, "drop_path": DROP_PATH}
    method = DINO(encoder, local_crops=LOCAL_CROPS, prototypes=PROTOTYPES).to(setting.device).train()
    return baselines.ours(setting, method, method.losses, lambda: clip_each(method.parameters(), CLIP))


def parts(setting: StepSetting, by_crop: bool = False) -> Step:
    """The step from timm's Vision Transformer and lightly's head, loss and moving average.

    Args:
        by_crop: one pass for each crop, as lightly's documentation has it; else one for each crop size, as DINO's
            authors do, and one pass of the head.
    """
    require_peers("timm")
    from lightly.loss import DINOLoss
    from lightly.models.modules import DINOProjectionHead
    from lightly.models.utils import update_momentum
    from timm.models.vision_transformer import VisionTransformer

    width, depth, heads = SIZES[setting.size]
    shape: dict[str, Any] = {"embed_dim": width, "depth": depth, "num_heads": heads, "num_classes": 0}

    def network(drop_path: float) -> nn.Sequential:
        body = VisionTransformer(GLOBAL, PATCH, dynamic_img_size=True, drop_path_rate=drop_path, **shape)
        head = DINOProjectionHead(width, 2048, 256, PROTOTYPES, freeze_last_layer=1)
        return nn.Sequential(body, head).to(setting.device)

    student, teacher = network(DROP_PATH).train(), network(0.0).eval().requires_grad_(False)
    teacher.load_state_dict(student.state_dict())
    criterion = DINOLoss(PROTOTYPES).to(setting.device)
    bodies = [torch.compile(net[0]) if setting.compiled else net[0] for net in (student, teacher)]

    def loss(crops: list[Tensor]) -> Tensor:
        if by_crop:
            with torch.no_grad():
                told = [teacher[1](bodies[1](crop)) for crop in crops[:2]]
            said = [student[1](bodies[0](crop)) for crop in crops]
        else:
            B, large, small = len(crops[0]), torch.cat(crops[:2]), torch.cat(crops[2:])
            with torch.no_grad():
                told = teacher[1](bodies[1](large)).split(B)
            said = student[1](torch.cat([bodies[0](large), bodies[0](small)])).split(B)
        return criterion([logits.float() for logits in told], [logits.float() for logits in said])

    return stepping(
        setting,
        loss,
        [parameter for parameter in student.parameters() if parameter.requires_grad],
        lambda: nn.utils.clip_grad_norm_(student.parameters(), CLIP),
        lambda: update_momentum(student, teacher, 0.996),
    )


def parts_by_crop(setting: StepSetting) -> Step:
    """`parts`, one pass for each crop."""
    return parts(setting, by_crop=True)


BASELINES = {"ours": ours, "lightly + timm, by crop": parts_by_crop, "lightly + timm, by size": parts}
