"""Whose a prefix is: one object, made before anything else is written there and read before anything else is done.

`_lakehouse.json` names the installation, the organization (or that it is all organizations'), the kind and the
destination. It is made where none is (`If-None-Match`), so of two that come at once one is refused. Of a destination
that was removed the prefix is the next one's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from federation.files.store import DamagedError, Found, RaceLostError, Store
from federation.protocol import DestinationError, ForeignTargetError, Owner
from schemas.errors import Retry

NAME = "_lakehouse.json"
_FORMAT = 1


@dataclass
class Mark:
    """The mark of one prefix, as `owner` and `kind` want it."""

    store: Store
    owner: Owner
    kind: str
    _read: bool = False

    def once(self) -> None:
        """See `check`; what was read is not read again."""
        if not self._read:
            self.check()

    def check(self) -> Found | None:
        """The mark as it was read; None where there is none.

        Raises:
            ForeignTargetError: it is another's.
            DestinationError: it cannot be read.
        """
        where = self.store.url(NAME)
        try:
            found = self.store.read_json(NAME)
            if found is not None:
                self._refuse(found.value, where)
        except (DamagedError, KeyError, TypeError) as error:
            raise DestinationError(
                f"{where}: does not say whose the prefix is: {error}",
                "Somebody changed it. If the prefix is this destination's, delete that object: it is made again.",
                retry=Retry.MANUAL,
            ) from None
        self._read = True
        return found

    def take(self, found: Found | None) -> None:
        """The prefix is ours from now on. `found`: what `check` read.

        Raises:
            ForeignTargetError: somebody else was faster.
            DestinationError: it cannot be written.
        """
        wanted = self._wanted()
        if found is not None and found.value == wanted:
            return
        try:
            self.store.write_json(NAME, wanted, instead_of=found)
        except RaceLostError:
            self.check()

    def _wanted(self) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "kind": self.kind,
            "installation": self.owner.installation,
            "organization_id": None if self.owner.shared else self.owner.organization,
            "destination": self.owner.destination,
        }

    def _refuse(self, value: dict[str, Any], where: str) -> None:
        if value["format"] != _FORMAT:
            raise DestinationError(f"{where}: is of format {value['format']}", "Upgrade.", retry=Retry.NEVER)
        wanted = self._wanted()
        if {**value, "destination": ""} == {**wanted, "destination": ""}:
            if not self.owner.beside(value["destination"]):
                return
            whose = f"destination {value['destination']}, however its endpoint is spelled"
        else:
            organization = value["organization_id"]
            whose = f"{'all organizations' if organization is None else f'organization {organization}'}"
        raise ForeignTargetError(
            f"{where}: the prefix is {value['kind']} of {whose}, installation {value['installation']}",
            "Give each destination a prefix of its own. Nothing was written.",
        )
