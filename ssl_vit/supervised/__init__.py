"""Classification heads on an encoder: fine-tuning, distillation, predictions, and the report of an evaluation."""
