"""Stored credentials: the host's envelope, keys by version, rotation.

`envelope` is the format byte for byte, `keyring` knows the keys, `rotate` re-encrypts rows under a newer key.
A credential is sealed to its place (organization and row): copied into another row it does not open.
"""

from lakehouse.secrets.keyring import Vault, destination_place, lake_place

__all__ = ["Vault", "destination_place", "lake_place"]
