"""How good an encoder is: frozen features, a linear classifier or neighbors on them, and controls beside them."""
