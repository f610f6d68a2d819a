"""Surrogate models: each fits points of the unit cube and knows nothing of searchers."""
