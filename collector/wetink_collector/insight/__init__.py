"""Answers that an orchestrator can act on, made from the rounds that are kept."""
