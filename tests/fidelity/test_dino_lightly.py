"""DINO's loss, center, head and teacher against lightly's, and against the plainest form of the formulas."""

import itertools

import pytest
import torch
from lightly.loss import DINOLoss
from lightly.loss.swav_loss import sinkhorn
from lightly.models.modules import DINOProjectionHead
from lightly.models.utils import update_momentum

from ssl_vit.config.pretrain_schema import DINOConfig
from ssl_vit.methods.dino import centered_targets, cross_entropy_of_pairs, sinkhorn_targets
from ssl_vit.methods.heads import ProjectionHead, ScaledProduct
from ssl_vit.optim.ema import ema_update, frozen_copy

GRID = list(itertools.product([0.02, 0.04, 0.07], [0.1, 0.3], [0.0, 0.5], [(2, 2), (2, 8), (1, 4), (3, 3)]))


def ours(teacher, student, center, teacher_temp, student_temp):
    return cross_entropy_of_pairs(student, centered_targets(teacher, center, teacher_temp), student_temp)


@pytest.mark.parametrize(("teacher_temp", "student_temp", "spread", "crops"), GRID)
def test_loss_is_lightlys_over_temperatures_centers_and_crops(teacher_temp, student_temp, spread, crops):
    G, V = crops
    # Logits of unit vectors lie in [-1, 1]. float32 keeps 7 digits of a loss of order 5 to 10: 1e-6 relative.
    teacher, student = torch.rand(G, 3, 50) * 2 - 1, (torch.rand(V, 3, 50) * 2 - 1).requires_grad_()
    center = torch.randn(50) * spread
    reference = DINOLoss(50, teacher_temp=teacher_temp, warmup_teacher_temp=teacher_temp, student_temp=student_temp)
    reference.center.copy_(center.view(1, 1, -1))
    expected = reference(list(teacher), list(student))
    loss = ours(teacher, student, center, teacher_temp, student_temp)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        torch.autograd.grad(loss, student)[0], torch.autograd.grad(expected, student)[0], rtol=1e-4, atol=1e-7
    )
    moved = center.lerp(teacher.mean((0, 1)), 0.1)
    torch.testing.assert_close(moved, reference.center.flatten(), rtol=1e-6, atol=1e-6)


def test_loss_is_the_naive_loop_over_pairs():
    teacher, student = torch.randn(2, 4, 20).double(), torch.randn(5, 4, 20)
    center = torch.randn(20)
    total, pairs = 0.0, 0
    for g in range(2):
        target = ((teacher[g].float() - center) / 0.05).softmax(-1)
        for v in range(5):
            if v != g:
                total += -(target * (student[v] / 0.1).log_softmax(-1)).sum(-1).mean()
                pairs += 1
    assert pairs == 2 * 5 - 2
    torch.testing.assert_close(ours(teacher, student, center, 0.05, 0.1), total / pairs, rtol=1e-6, atol=1e-6)


def test_sinkhorn_is_lightlys():
    logits = torch.rand(1, 12, 7) * 2 - 1
    expected = sinkhorn(logits[0], iterations=3, epsilon=0.05)
    torch.testing.assert_close(sinkhorn_targets(logits, 0.05)[0], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("head_norm", [False, True])
@pytest.mark.parametrize("norm_last_layer", [False, True])
def test_head_is_lightlys(head_norm, norm_last_layer):
    options = {"head_norm": head_norm, "norm_last_layer": norm_last_layer}
    head = ProjectionHead(12, DINOConfig(prototypes=30, head_hidden=16, head_bottleneck=8, **options))
    reference = DINOProjectionHead(12, 16, 8, 30, batch_norm=head_norm, norm_last_layer=norm_last_layer)
    # lightly leaves out the bias before a BatchNorm, which subtracts it again.
    names = {name.replace("layers.", "mlp."): tensor for name, tensor in reference.state_dict().items()}
    missing = head.load_state_dict(names, strict=False).missing_keys
    assert set(missing) <= {"mlp.0.bias", "mlp.3.bias"}
    for name in missing:
        head.get_parameter(name).data.zero_()
    features = torch.randn(9, 12)
    torch.testing.assert_close(head(features), reference(features), rtol=1e-5, atol=1e-6)
    assert head.last_layer.weight_g.requires_grad == reference.last_layer.weight_g.requires_grad != norm_last_layer


def test_prototypes_and_their_gradients_are_those_of_the_plain_formula():
    x, g, v = torch.randn(5, 8).double(), torch.rand(30, 1).double() + 0.5, torch.randn(30, 8).double()
    leaves = [tensor.requires_grad_() for tensor in (x, g, v)]
    weight = torch.randn(5, 30).double()
    ours = ScaledProduct.apply(*leaves)
    plain = torch.nn.functional.linear(x, g * torch.nn.functional.normalize(v, dim=1))
    torch.testing.assert_close(ours, plain)
    grads = [torch.autograd.grad((output * weight).sum(), leaves) for output in (ours, plain)]
    torch.testing.assert_close(grads[0], grads[1])


def test_teacher_follows_as_lightlys_update_momentum():
    student, other = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)
    teacher = frozen_copy(other)
    expected = frozen_copy(other)
    ema_update(teacher, student, 0.9)
    update_momentum(student, expected, 0.9)
    torch.testing.assert_close(teacher.weight, expected.weight)
    torch.testing.assert_close(teacher.bias, expected.bias)
    assert not torch.equal(teacher.weight, other.weight)
