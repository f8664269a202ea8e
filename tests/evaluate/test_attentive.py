"""The attentive probe against PyTorch's own attention, and where only it can see."""

import pytest
import torch
import torch.nn.functional as F

from ssl_vit.evaluate.backbones import RawPixels
from ssl_vit.evaluate.paper_probes import AttentiveHead
from ssl_vit.supervised.linear_probe import evaluate_attentive


@pytest.mark.parametrize(("width", "heads"), [(24, 12), (20, 10), (13, 1)])
def test_it_is_attention_of_one_query_without_maps_of_query_and_output(width, heads):
    head, tokens = AttentiveHead(width, 5).eval(), torch.randn(7, 9, width)
    assert head.heads == heads
    head.norm.running_mean.normal_()
    head.norm.running_var.uniform_(0.5, 2)
    normed = (tokens - head.norm.running_mean) / (head.norm.running_var + 1e-6).sqrt()
    read, _ = F.multi_head_attention_forward(
        head.query.expand(1, 7, width), normed.transpose(0, 1), normed.transpose(0, 1), width, heads,
        in_proj_weight=None, in_proj_bias=None, bias_k=None, bias_v=None, add_zero_attn=False, dropout_p=0.0,
        out_proj_weight=torch.eye(width), out_proj_bias=None, training=False, use_separate_proj_weight=True,
        q_proj_weight=torch.eye(width), k_proj_weight=head.key.weight, v_proj_weight=head.value.weight,
    )  # fmt: skip
    torch.testing.assert_close(head(tokens), read[0] @ head.classifier.weight.T, atol=1e-5, rtol=1e-4)


def test_batch_norm_is_over_all_tokens_of_a_batch():
    head, tokens = AttentiveHead(8, 2).train(), 3 * torch.randn(6, 10, 8) + 1
    head(tokens)
    torch.testing.assert_close(head.norm.running_mean, 0.1 * tokens.mean((0, 1)))


def test_it_has_no_bias_anywhere():
    assert {name for name, _ in AttentiveHead(8, 2).named_parameters()} == {
        "query",
        "key.weight",
        "value.weight",
        "classifier.weight",
    }


def test_tokens_are_those_of_the_block_in_16_bits(make_evaluation, backbone, encoder, monkeypatch):
    evaluation = make_evaluation(protocol="attentive", epochs=1, layer=2)
    extract, found = evaluation.extract, {}
    monkeypatch.setattr(evaluation, "extract", lambda of, split: found.setdefault(split, extract(of, split)))
    evaluate_attentive(evaluation, backbone)
    tokens, labels = found["test"]
    images = torch.cat(
        [evaluation.data.normalize(batch["images"]) for batch in evaluation.data.eval_dataloader("test")]
    )
    with torch.no_grad():
        (expected,) = encoder.layer_tokens(images, [1])
    assert tokens.dtype == torch.float16
    torch.testing.assert_close(tokens.float(), expected, atol=2e-3, rtol=1e-3)  # eleven bits
    assert torch.equal(labels, evaluation.test_labels)


def test_it_finds_the_one_patch_that_tells_the_class(make_evaluation, monkeypatch):
    """Every image has the same mean over patches, so no pooled feature can tell."""
    evaluation = make_evaluation(protocol="attentive", epochs=60, base_lr=0.1)

    def tokens(extractor, split):
        labels = evaluation.train_labels if split == "train" else evaluation.test_labels
        noise = torch.randn(len(labels), 6, 6)
        values = torch.cat([noise, torch.full((len(labels), 6, 1), -1.0)], dim=2)
        values[:, 3] = torch.cat([5 * F.one_hot(labels, 6).float(), torch.ones(len(labels), 1)], dim=1)
        values[:, 5, :6] -= values[:, :, :6].sum(1)
        return values.half(), labels

    monkeypatch.setattr(evaluation, "extract", tokens)
    result = evaluate_attentive(evaluation, RawPixels((16, 16), 3, 4))
    assert float((result.probabilities.argmax(1) == evaluation.test_labels).float().mean()) >= 0.9


def test_the_same_seed_gives_the_same_figures(make_evaluation, backbone):
    settings = {"protocol": "attentive", "epochs": 2, "layer": 2}
    one, two = (evaluate_attentive(make_evaluation(**settings), backbone) for _ in range(2))
    assert torch.equal(one.probabilities, two.probabilities)
    assert one.head["blocks"] == [2]
