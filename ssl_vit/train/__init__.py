"""Trainings from a config: the plan, Lightning's trainer, and what a run does around its steps."""
