"""Destinations that are fed from the lake. Adapters are loaded by kind, only when one is used."""
