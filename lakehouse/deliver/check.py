"""A range is compared before it is acknowledged, whichever attempt brought it.

An attempt that died before it compared, or that found a difference, leaves the target at the range's end. The next one
has nothing to write there, and compares all the same, from where the range begins: nothing but a comparison that is
equal acknowledges, however often it is tried. What was found is remembered, as `parity` does, until all is equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lakehouse.deliver.differences import remember
from lakehouse.deliver.parity import DifferenceError, check_range

if TYPE_CHECKING:
    from federation.protocol import Adapter
    from lakehouse.app import App
    from lakehouse.deliver.ranges import LakeTable
    from lakehouse.outbox.deliveries import ClaimedDelivery


def check_delivered(
    app: App, adapter: Adapter, claimed: ClaimedDelivery, credentials: Mapping[str, str], lake: LakeTable
) -> None:
    """The target holds this delivery's range as the lake does. Of one that was filled since, all is compared.

    Raises:
        DifferenceError: it does not.
        LakehouseError: one of the two cannot be read.
    """
    contract = lake.contract
    while True:
        filled = adapter.filled(contract)
        # Filled beyond the range's beginning, it has no deletes of what it was filled with: those are not asked for.
        after = claimed.sequence_after if filled <= claimed.sequence_after else 0
        try:
            check_range(app, adapter, claimed.kind, credentials, lake, after)
        except DifferenceError as error:
            if adapter.filled(contract) != filled:
                # Filled while it was compared: what was read is of two states.
                continue
            remember(app.engine, claimed.destination, claimed.organization, claimed.table, error.detail)
            raise
        if not after:
            remember(app.engine, claimed.destination, claimed.organization, claimed.table, "")
        return
