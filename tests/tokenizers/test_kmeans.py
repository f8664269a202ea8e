"""k-means tokens: the nearest center, any number of channels, files that keep all."""

import pytest
import torch
from sklearn.cluster import KMeans as Reference

from ssl_vit.config.tokenizer_schema import KMeansConfig
from ssl_vit.models.stem import patchify
from ssl_vit.tokenizers import kmeans
from ssl_vit.tokenizers.base import load_tokenizer, require_tokens, save_tokenizer
from ssl_vit.tokenizers.kmeans import KMeans, fit_kmeans

SETTINGS = {"vocab_size": 10, "patch_size": 4, "image_size": [8, 12], "channels": 2, "patches": 600}


def fitted(**changes) -> KMeans:
    config = KMeansConfig(**{**SETTINGS, **changes})
    return fit_kmeans(config, iter([torch.rand(40, config.channels, 8, 12) for _ in range(3)]), seed=0)


def test_a_token_is_the_nearest_center_row_by_row(monkeypatch):
    tokenizer, images = fitted(), torch.rand(5, 2, 8, 12)
    patches = patchify(images, 4)
    expected = torch.cdist(patches.double(), tokenizer.centers.double()[None]).argmin(-1)
    assert torch.equal(tokenizer(images), expected)
    monkeypatch.setattr(kmeans, "CHUNK", 70)  # a few patches at a time
    assert torch.equal(tokenizer(images), expected)


def test_decoding_draws_the_centers_in_their_places():
    tokenizer, images = fitted(), torch.rand(5, 2, 8, 12)
    tokens = tokenizer(images)
    drawn = tokenizer.decode(tokens)
    assert torch.equal(tokenizer(drawn), tokens)
    assert torch.equal(drawn[0, :, 4:, 4:8].flatten(), tokenizer.centers[tokens[0, 4]])
    wide = tokenizer(torch.rand(1, 2, 4, 20))
    assert tokenizer.decode(wide, (1, 5)).shape == (1, 2, 4, 20)


def test_centers_stand_for_their_patches_nearly_as_well_as_full_k_means():
    images = torch.rand(100, 2, 8, 12).round()  # corners of the cube: clusters that differ
    config = KMeansConfig(**SETTINGS)
    tokenizer = fit_kmeans(config, iter([images]), seed=0)
    patches = patchify(images, 4).flatten(0, 1)[:600]
    full = -Reference(10, n_init=3, random_state=0).fit(patches.numpy()).score(patches.numpy())
    own = (tokenizer.centers[tokenizer(images).flatten()[:600]] - patches).square().sum()
    assert float(own) < 1.05 * full


def test_same_seed_same_centers():
    torch.manual_seed(1)
    first = fitted()
    torch.manual_seed(1)
    assert torch.equal(fitted().centers, first.centers)


def test_a_file_is_complete(tmp_path):
    tokenizer, images = fitted(), torch.rand(2, 2, 8, 12)
    path = save_tokenizer(tokenizer, tmp_path, seconds=1)
    for source in (path, tmp_path):
        loaded = load_tokenizer(source)
        assert torch.equal(loaded(images), tokenizer(images))
        assert loaded.config == tokenizer.config
        assert not loaded.training


def test_a_tokenizer_of_the_users_own_needs_only_a_vocabulary():
    own = torch.nn.Identity()
    own.vocab_size = 3
    require_tokens(own, KMeansConfig(**SETTINGS), "own")


def test_files_that_hold_no_tokenizer_are_refused(tmp_path):
    from ssl_vit.models.vit import VisionTransformer
    from ssl_vit.models.weights import save_encoder

    path = save_encoder(VisionTransformer(embed_dim=16, depth=1, num_heads=2, patch_size=4, image_size=8), tmp_path)
    with pytest.raises(ValueError, match=r"tokenizer=.*encoder.safetensors holds no tokenizer"):
        load_tokenizer(path)
    with pytest.raises(FileNotFoundError, match=r"make one with `ssl-vit train_tokenizer`"):
        load_tokenizer(tmp_path)
