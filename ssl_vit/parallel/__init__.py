"""Several processes: tensors exchanged between them, weights sharded over them."""
