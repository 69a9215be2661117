"""Follows the host's list of organizations: new ones get a lake, deleted ones are stopped and their lake is kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lakehouse.control import store
from schemas.errors import LakehouseError

if TYPE_CHECKING:
    from lakehouse.app import App

DELETED = "the host does not list this organization any more"


@dataclass
class Discovered:
    """What changed since the last look."""

    enrolled: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    resumed: list[str] = field(default_factory=list)
    errors: dict[str, LakehouseError] = field(default_factory=dict)


def discover(app: App) -> Discovered:
    """Compare the host's organizations with the lakes. A label (slug) is never looked at: an id is.

    Raises:
        SourceError: the host's table of organizations cannot be read.
        LakehouseError: it is empty while there are lakes, which is a fault rather than a wish.
    """
    found = Discovered()
    if app.settings.source.organizations_table is None:
        return found
    listed = set(app.source.organizations())
    lakes = {lake.organization_id: lake for lake in store.lakes(app.engine)}
    if lakes and not listed:
        raise LakehouseError(
            f"{app.settings.source.organizations_table} is empty, and {len(lakes)} organizations have a lake",
            "Nothing was stopped. Is this the right database, and may its user see the rows?",
        )
    for organization in sorted(listed - set(lakes)):
        if app.settings.schedule.enrol:
            try:
                app.enrol(organization)
                found.enrolled.append(organization)
            except LakehouseError as error:
                found.errors[organization] = error
    for organization, lake in lakes.items():
        if organization not in listed and store.stop_lake(app.engine, organization, DELETED):
            found.stopped.append(organization)
        if organization in listed and lake.stopped_reason == DELETED and store.resume_lake(app.engine, organization):
            found.resumed.append(organization)
    return found
