"""Inventory, trust, sealed managers and selection of plugins."""
