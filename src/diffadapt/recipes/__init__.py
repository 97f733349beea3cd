"""Recipes, one kind of training per file: settings, trained adapters, batches, objective, and what follows `fit`."""
