"""Losses between the relations of examples, or of layers, in two networks."""
