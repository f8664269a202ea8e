"""Tokenizers: pictures to visual tokens, one for each patch, which BEiT predicts."""
