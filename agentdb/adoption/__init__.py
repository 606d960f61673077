"""Bringing an old database to the models' schema, whatever shape it is in, without losing a row."""
