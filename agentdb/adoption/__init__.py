"""Brings an old database of any shape to the models' schema without losing a row."""
