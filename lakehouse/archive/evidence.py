"""Checks the proof of what left the hot database, with nothing but the lake and the public key.

Of each batch: the receipt's signature; that its tombstones are those that were signed; that the lake still holds each
row, with the content that was signed, computed anew from its files, and shows none as deleted without a version that
came in between. Rows whose day has left the lake by its own retention are counted apart: what is left of such a batch
is compared by keyed hash, where the key is at hand. Of the chain: that no batch is missing, altered or in another's
place. Where the hot database answers, its own batches and tombstones are compared too, and what is missing or altered
on either side is named by key, or by batch where the hot database has no tombstone of it and none was due to be
pruned; where it does not answer, that is said and is no fault.

Everything that is wrong is a `Fault` of the result, and nothing that is wrong ends the check: a damaged file costs the
rows that it held. What was signed and how is in docs/compliance.md.
"""

from __future__ import annotations

import hmac
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

from lakehouse.archive import hot_records
from lakehouse.archive.chain import batch_faults, batch_ranges, chain_faults, lake_alone_fault, tombstone_faults
from lakehouse.archive.faults import Fault, fault
from lakehouse.archive.recompute import Gone, recompute
from lakehouse.archive.recorded import Recorded, RecordedArchive, lake_alone, open_recorded
from lakehouse.archive.records import Receipt, Tombstone, content_digest, tombstones_digest
from lakehouse.archive.seal import PublicKey, ReceiptError, unseal
from lakehouse.retention.records import read_days
from schemas.errors import ContractError

if TYPE_CHECKING:
    import duckdb

    from catalog.lake import Lake
    from lakehouse.app import App

CHUNK_ROWS = 50_000
"""Tombstones that are read and compared at a time: about 150 MB with the hot database's."""


@dataclass
class Verified:
    """What was checked and what is wrong, of one organization."""

    organization: str
    tables: dict[str, int] = field(default_factory=dict)
    """Archived rows by table."""
    batches: int = 0
    rows: int = 0
    first: int | None = None
    last: int | None = None
    signatures: int = 0
    """Receipts whose signature is good."""
    tombstones: int = 0
    """That are as they were signed."""
    contents: int = 0
    """Rows that the lake holds with the content that was signed."""
    ended: int = 0
    """Rows whose day has left the lake since, by the lake's own retention; its table `_ended` says who decided it."""
    keyed_hashes: int | None = None
    """Rows whose keyed hash is right; None: no tombstone key was at hand."""
    keys: tuple[str, ...] = ()
    """Thumbprints of the keys that signed."""
    chain: str | None = None
    """The chain's value after the last batch; None: not asked for, or broken."""
    chain_checked: bool = False
    hot: str = "not compared"
    """compared; or why not"""
    waiting: int = 0
    """Batches of the hot database that the lake does not have yet; they are checked from there."""
    lake_alone: int = 0
    """Batches whose tombstones only the lake has."""
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        return not self.faults

    @property
    def hot_compared(self) -> bool:
        return self.hot == hot_records.COMPARED

    @property
    def hot_equal(self) -> bool:
        """The hot database was compared and has what the lake has."""
        return self.hot_compared and not any(f.what == "hot" for f in self.faults)


def verify(
    app: App,
    organization: str,
    keys: Sequence[PublicKey],
    *,
    chain: bool = False,
    known: Mapping[int, str] | None = None,
) -> Verified:
    """Check every receipt of an organization. `chain`: the order of batches, and the hot database, too.

    `known`: values of the chain, by number, that somebody kept: a chain that was cut off and begun anew, or lost its
    end, does not lead to them.

    Raises:
        LakehouseError: the lake does not answer, or is another's. What is wrong with the evidence raises nothing.
    """
    result = Verified(organization, chain_checked=chain)
    lake, why = lake_alone(app, organization)
    if why is not None:
        result.notes.append(f"the organization's lake is taken for the default one: {why.detail}")
    with open_recorded(lake) as (connection, archive), hot_records.reading(app, organization, wanted=chain) as hot:
        _Check(app, lake, connection, archive, hot, {k.thumbprint: k for k in keys}, result, known or {}).run()
    return result


class _Check:
    def __init__(
        self,
        app: App,
        lake: Lake,
        connection: duckdb.DuckDBPyConnection,
        archive: RecordedArchive | None,
        hot: hot_records.HotRecords,
        keys: dict[str, PublicKey],
        result: Verified,
        known: Mapping[int, str],
    ) -> None:
        self.app = app
        self.lake = lake
        self.connection = connection
        self.archive = archive
        self.hot = hot
        self.keys = keys
        self.result = result
        self.known = known
        self.signed_by: set[str] = set()
        self.hashing = hot_records.tombstone_keys(app)
        self.receipts: dict[int, Receipt] = {}
        self.ended: dict[int, dict[str, Gone]] = {}
        self.gone: Counter[Gone] = Counter()
        self.broken: set[str] = set()
        self.hot_batches = hot.exported()
        self.kept_from, self.cutoff, self.put_back = hot.kept_from(), hot.cutoff(app), hot.put_back()
        self.restored: list[int] = []

    def run(self) -> None:
        result = self.result
        batches = self.archive.batches() if self.archive is not None else []
        waiting = self.hot.waiting(batches[-1].number if batches else 0)
        result.hot, result.waiting = self.hot.state, len(waiting)
        result.batches = len(batches) + len(waiting)
        everything = [*batches, *waiting]
        if everything:
            result.first, result.last = everything[0].number, everything[-1].number
        for batch in everything:
            self._receipt(batch)
        for chunk in _chunks(everything):
            self._rows(chunk, {b.number for b in waiting})
        self._broken(self.archive.broken if self.archive is not None else {})
        self._ended()
        if self.restored:
            result.notes.append(
                f"batches {batch_ranges(self.restored)}: the hot database was restored from an older copy and got them "
                "back from the lake, which alone has their tombstones"
            )
        if result.chain_checked:
            standing = self.archive.standing.number if self.archive is not None else 0
            faults, result.chain = chain_faults(everything, self.receipts, self.known, exported=(batches, standing))
            result.faults += faults
            if self.hot_batches is not None:
                result.faults += batch_faults(batches, self.hot_batches)
        result.keys = tuple(sorted(self.signed_by))
        result.keyed_hashes = (result.keyed_hashes or 0) if self.hashing else None
        result.faults.sort(key=lambda f: (f.batch is None, f.batch or 0))

    def _fault(self, batch: int | None, what: str, detail: str, keys: Sequence[str] = ()) -> None:
        self.result.faults.append(fault(batch, what, detail, keys))

    def _receipt(self, batch: Recorded) -> None:
        """The batch has one receipt, and it is what its key signed, for this batch."""
        if batch.receipt is None:
            found = f"{len(batch.receipts)} receipts" if batch.receipts else "no receipt"
            self._fault(batch.number, "receipt", f"{found} instead of one")
            return
        try:
            receipt = unseal(batch.receipt, self.keys)
        except ReceiptError as error:
            self._fault(batch.number, "signature", error.detail)
            return
        said = (receipt.organization, receipt.number, (receipt.table,), (str(receipt.batch),))
        stands = (self.result.organization, batch.number, batch.tables, batch.ids)
        if said != stands:
            self._fault(
                batch.number,
                "receipt",
                f"it is signed for batch {receipt.number} ({receipt.batch}) of {receipt.organization}, table "
                f"{receipt.table}; it stands at batch {batch.number} ({', '.join(batch.ids)}), "
                f"table {', '.join(batch.tables)}",
            )
            return
        self.result.signatures += 1
        self.signed_by.add(_signer(batch.receipt))
        self.receipts[batch.number] = receipt

    def _rows(self, chunk: Sequence[Recorded], waiting: set[int]) -> None:
        """Tombstones and the lake's rows of some batches, against their receipts."""
        from_lake = [b.number for b in chunk if b.number not in waiting]
        tombstones = self.hot.tombstones([b.number for b in chunk])
        in_lake = self.archive.tombstones(from_lake) if self.archive is not None and from_lake else {}
        for batch in chunk:
            number = batch.number
            theirs = tombstones.get(number, [])
            mine = in_lake.setdefault(number, theirs)
            self.result.rows += len(mine)
            for name, same in groupby(sorted(t.table for t in mine)):
                self.result.tables[name] = self.result.tables.get(name, 0) + len(list(same))
            if (receipt := self.receipts.get(number)) is not None:
                self._tombstones(number, receipt, mine)
            if number not in waiting and number in tombstones:
                self.result.faults += tombstone_faults(number, mine, theirs) if theirs else self._alone(number, mine)
        hashes = self._hashes([t for mine in in_lake.values() for t in mine])
        for batch in chunk:
            if (receipt := self.receipts.get(batch.number)) is not None:
                self._content(batch.number, receipt, in_lake[batch.number], hashes.get(batch.number, []))

    def _alone(self, number: int, mine: list[Tombstone]) -> list[Fault]:
        """The hot database has no tombstone of this batch: pruned, never put back after a restore, or removed."""
        self.result.lake_alone += 1
        if number in self.put_back:
            self.restored.append(number)
            return []
        receipt = self.receipts.get(number)
        moments = [receipt.archived_at] if receipt is not None else [t.archived_at for t in mine]
        if self.cutoff is None or not moments or number not in (self.hot_batches or {}):
            # Of a batch that the hot database has not at all, the chain tells.
            return []
        years = self.app.settings.archive.audit_years
        found = lake_alone_fault(number, max(moments), cutoff=self.cutoff, years=years, kept_from=self.kept_from)
        return [found] if found is not None else []

    def _tombstones(self, number: int, receipt: Receipt, mine: list[Tombstone]) -> None:
        if tombstones_digest(mine) == receipt.tombstones_sha256:
            self.result.tombstones += len(mine)
            return
        counted = f"{len(mine):,} tombstones, {receipt.rows:,} were signed"
        twice = [key for key, same in groupby(t.row_key for t in mine) if len(list(same)) > 1]
        detail = counted if len(mine) != receipt.rows else "they are not those that were signed"
        self._fault(number, "tombstones", f"{detail}{': some stand twice' if twice else ''}", twice)

    def _hashes(self, tombstones: list[Tombstone]) -> dict[int, list[tuple[str, str]]]:
        """The canonical hashes of the lake's rows, by batch."""
        from pyiceberg.exceptions import NoSuchTableError

        found: dict[int, list[tuple[str, str]]] = {}
        shapes = sorted({(t.table, t.contract_version) for t in tombstones})
        for table, version in shapes:
            share = [t for t in tombstones if (t.table, t.contract_version) == (table, version)]
            try:
                content = recompute(self.connection, self.lake, self.app.contract(table), share)
            except NoSuchTableError:
                self._fault(None, "rows", f"{self.lake.namespace}.{table} is not in the lake any more")
                continue
            except ContractError as error:
                self._fault(None, "content", f"{table} at version {version} cannot be compared: {error.detail}")
                continue
            self._broken(content.broken)
            for number, gone in content.ended.items():
                self.ended.setdefault(number, {}).update(gone)
            for number, keys in content.deleted.items():
                detail = "the lake shows rows as deleted since they were archived, and nothing of them came in between"
                self._fault(number, "deleted", detail, keys)
            for number, pairs in content.hashes.items():
                found.setdefault(number, []).extend(pairs)
        return found

    def _content(self, number: int, receipt: Receipt, mine: list[Tombstone], hashes: list[tuple[str, str]]) -> None:
        """The lake's rows are those that were signed; who has the tombstone key learns which is not."""
        held = {key for key, _ in hashes}
        ended = self.ended.get(number, {}).keys() - held
        self.gone.update(self.ended[number][key] for key in ended)
        missing = sorted({t.row_key for t in mine} - held - ended)
        if missing:
            self._fault(number, "rows", f"the lake does not hold {len(missing):,} of {receipt.rows:,} rows", missing)
        if len(hashes) > len(held):
            twice = [key for key, same in groupby(key for key, _ in hashes) if len(list(same)) > 1]
            self._fault(number, "rows", "the lake holds rows more than once", twice)
        altered = self._altered(mine, dict(hashes))
        if ended:
            # The signature is over all of its rows.
            if altered:
                self._fault(number, "content", "the lake's rows are not those that were archived", altered)
            elif self.hashing and not missing:
                self.result.contents += len(hashes)
            return
        if content_digest(hashes) == receipt.content_sha256:
            self.result.contents += len(hashes)
            if altered:
                self._fault(number, "tombstones", "keyed hashes are not those of the rows", altered)
        elif altered or len(held) == receipt.rows:
            self._fault(number, "content", "the lake's rows are not those that were signed", altered)

    def _altered(self, mine: list[Tombstone], hashes: Mapping[str, str]) -> list[str]:
        altered = []
        for tombstone in mine:
            key, row_hash = self.hashing.get(tombstone.hash_key), hashes.get(tombstone.row_key)
            if key is None or row_hash is None:
                continue
            if hmac.digest(key, row_hash.encode(), "sha256").hex() == tombstone.keyed_hash:
                self.result.keyed_hashes = (self.result.keyed_hashes or 0) + 1
            else:
                altered.append(tombstone.row_key)
        return altered

    def _ended(self) -> None:
        """What a table says has left the lake, the lake's own record must tell of: who decided it, and why."""
        self.result.ended = self.gone.total()
        if not self.gone:
            return
        recorded = {Gone(d.table_name, d.day, d.ending): d for d in read_days(self.lake)}
        decided: Counter[str] = Counter()
        for gone, rows in self.gone.items():
            if (day := recorded.get(gone)) is None:
                detail = f"{gone.table}: {rows:,} rows of {gone.day} are said to have left the lake by its retention"
                self._fault(None, "rows", f"{detail}, and _ended does not tell of it ({gone.ending})")
            else:
                decided[
                    f"{gone.table} left the lake at {day.at:%Y-%m-%d %H:%M} UTC, by {day.operator}: {day.reason}"
                ] += rows
        self.result.notes += [f"{rows:,} rows of {text}" for text, rows in decided.items()]

    def _broken(self, files: Mapping[str, str]) -> None:
        for path, why in files.items():
            if path not in self.broken:
                self.broken.add(path)
                self._fault(None, "file", f"{path}: cannot be read: {why}")


def _chunks(batches: Sequence[Recorded]) -> Iterator[list[Recorded]]:
    chunk: list[Recorded] = []
    rows = 0
    for batch in batches:
        if chunk and rows + batch.rows > CHUNK_ROWS:
            yield chunk
            chunk, rows = [], 0
        chunk.append(batch)
        rows += batch.rows
    if chunk:
        yield chunk


def _signer(receipt: str) -> str:
    from lakehouse.archive.seal import header_of

    return str(header_of(receipt)["kid"])


def public_keys(app: App, files: Sequence[Any]) -> list[PublicKey]:
    """The keys of these files; without any, that of the settings' own signing key.

    Raises:
        ArchiveError: a file is no public key, or there is none at all.
    """
    from lakehouse.archive.installation import ArchiveError
    from lakehouse.archive.seal import read_public_key, read_signing_key

    if files:
        return [read_public_key(file) for file in files]
    own = app.settings.archive.signing_key_file
    if own is None:
        raise ArchiveError(
            "no public key to check with",
            "Give the operator's, which `receipts keygen` printed: --public-key FILE; repeat it for earlier keys.",
        )
    return [PublicKey(read_signing_key(own).public_key())]
