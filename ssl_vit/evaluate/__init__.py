"""How good an encoder is: frozen features, a linear classifier or neighbours on them, and controls beside them."""
