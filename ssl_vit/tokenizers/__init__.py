"""Tokenizers: images to visual tokens, one for each patch, which BEiT predicts."""
