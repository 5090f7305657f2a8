"""Scores and monitors on fixed prompts and seeds, and the rules that stop a run."""
