"""Runs from a config: pretraining, tokenizers, fine-tuning; what happens around their steps."""
