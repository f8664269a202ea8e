"""Shapes in signatures are checked while the tests run; data that is not in the repository is found or skipped."""

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

install_import_hook("ssl_vit", "typecheck.checked")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with cifar10/ and imagenette128/: $SSL_VIT_DATA, by default ../shared/data beside the checkout."""
    folder = Path(os.environ.get("SSL_VIT_DATA", ROOT.parent / "shared" / "data"))
    if not folder.exists():
        pytest.skip(f"{folder} is absent; set SSL_VIT_DATA")
    return folder


@pytest.fixture(autouse=True)
def _seeded() -> None:
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="module")
def free_port() -> int:
    """A port that nobody listens on."""
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
