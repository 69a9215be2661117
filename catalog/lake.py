"""A lake: one organization's namespace in an Iceberg catalog, and the storage below it.

The namespace is `org_<encoded organization id>`, never the slug (a slug can be renamed). Who owns it stands
in the namespace's own properties and is checked at every open, before anything is read or written.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from catalog.errors import CatalogError, OwnershipError, lake_errors

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog

OPENERS = {"sql": "catalog.sql:open_sql_catalog"}
"""How a kind of catalog is opened; loaded when a lake of that kind is."""

OWN = "own"
CATALOG = "catalog"
"""Keys of `lakes.catalog_config`: it has an address of its own; where its catalog is (`catalog_identity`)."""
ORGANIZATION_PROPERTY = "organization_id"
INSTALLATION_PROPERTY = "lakehouse.installation"


def nested(one: str, other: str) -> bool:
    """Whether two places (URLs without a slash at their end) are one, or one lies in the other.

    By the path alone, whatever their endpoints: DuckDB tells keys apart by it.
    """
    return f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")


@dataclass(frozen=True)
class LakeAddress:
    """Where a lake is and how to get in. `storage` holds pyiceberg's `s3.*` properties; never printed."""

    kind: str
    name: str
    uri: str = field(repr=False)
    warehouse: str
    storage: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)


def catalog_identity(kind: str, name: str, uri: str) -> str:
    """Where a catalog is, without credentials: what must not change without a word once tables are in it."""
    parts = urlsplit(uri)
    if parts.scheme == "sqlite":
        return f"{kind} {name} at {uri}"
    schema = re.search(r"search_path=([^\s&]+)", dict(parse_qsl(parts.query)).get("options", ""))
    where = f"{parts.hostname or 'local'}:{parts.port or 5432}{parts.path}"
    return f"{kind} {name} at postgresql://{where}" + (f" schema {schema[1]}" if schema else "")


def encode_organization(organization_id: str) -> str:
    """`org_` and the id, one to one: a-z and 0-9 stay, every other byte becomes `_` and two hex digits.

    Catalogs fold case, so upper case is encoded too.

    Raises:
        CatalogError: the id is empty or too long for a namespace.
    """
    body = re.sub(rb"[^a-z0-9]", lambda m: b"_%02x" % m[0][0], organization_id.encode())
    if not organization_id or len(body) > 200:
        raise CatalogError(
            f"organization id {organization_id[:80]!r} cannot name a namespace", "It is empty or too long."
        )
    return f"org_{body.decode()}"


def open_catalog(address: LakeAddress, *, beside: Catalog | None = None) -> Catalog:
    """Open the catalog that the address names. `beside`: an open one at the same URI, whose connections are shared.

    Raises:
        CatalogError: unknown kind, or the catalog does not answer.
    """
    if address.kind not in OPENERS:
        raise CatalogError(f"no catalog of kind {address.kind!r}", f"There are: {', '.join(sorted(OPENERS))}")
    module, function = OPENERS[address.kind].split(":")
    opener: Any = getattr(importlib.import_module(module), function)
    with lake_errors(f"catalog {address.name}"):
        catalog: Catalog = opener(address, beside)
        return catalog


class Lake:
    """One organization's namespace. Cheap to make; `ensure` or `check` before use."""

    def __init__(self, catalog: Catalog, address: LakeAddress, organization_id: str, installation: str) -> None:
        self.catalog = catalog
        self.address = address
        self.organization_id = organization_id
        self.installation = installation
        self.namespace = encode_organization(organization_id)

    @property
    def location(self) -> str:
        return f"{self.address.warehouse}/{self.namespace}"

    def __repr__(self) -> str:
        return f"Lake({self.namespace} at {self.address.warehouse})"

    def ensure(self) -> None:
        """Create the namespace with its owner's marks, or check the marks of the one that is there."""
        from pyiceberg.exceptions import NamespaceAlreadyExistsError

        with lake_errors(f"namespace {self.namespace}"):
            try:
                self.catalog.create_namespace(
                    self.namespace,
                    {
                        ORGANIZATION_PROPERTY: self.organization_id,
                        INSTALLATION_PROPERTY: self.installation,
                        "location": self.location,
                    },
                )
            except NamespaceAlreadyExistsError:
                self.check()

    def check(self) -> None:
        """Check that the namespace is this organization's and this installation's.

        Raises:
            CatalogError: there is no such namespace.
            OwnershipError: its marks are another's, or missing.
        """
        from pyiceberg.exceptions import NoSuchNamespaceError

        with lake_errors(f"namespace {self.namespace}"):
            try:
                properties = self.catalog.load_namespace_properties(self.namespace)
            except NoSuchNamespaceError as error:
                raise CatalogError(
                    f"namespace {self.namespace} is not in the catalog",
                    "Run `lakehouse init`; it makes what is missing.",
                ) from error
        self.check_marks(f"namespace {self.namespace}", properties)
        if (found := properties.get("location", self.location)) != self.location:
            raise OwnershipError(
                f"namespace {self.namespace}: lies at {found}, this program would write to {self.location}",
                "A lake is not moved by changing its address; set LAKEHOUSE_LAKE__WAREHOUSE back, or restart a "
                "program that was running when `lakehouse lake add` gave the organization a lake of its own.",
            )

    def owner(self) -> str | None:
        """The installation whose mark stands at the namespace; None where there is no namespace or no mark."""
        from pyiceberg.exceptions import NoSuchNamespaceError

        with lake_errors(f"namespace {self.namespace}"):
            try:
                return self.catalog.load_namespace_properties(self.namespace).get(INSTALLATION_PROPERTY)
            except NoSuchNamespaceError:
                return None

    def take_over(self) -> None:
        """Put our installation's mark at the namespace: from then on its former owner writes nothing here.

        Raises:
            OwnershipError: the namespace is another organization's.
        """
        found = self.owner()
        if found == self.installation:
            return
        if found is not None:
            Lake(self.catalog, self.address, self.organization_id, found).check()
        with lake_errors(f"namespace {self.namespace}"):
            self.catalog.update_namespace_properties(self.namespace, updates={INSTALLATION_PROPERTY: self.installation})

    def check_marks(self, where: str, properties: Mapping[str, str]) -> None:
        """Compare the owner's marks that stand at a namespace or table with ours."""
        for mark, ours, setting in (
            (ORGANIZATION_PROPERTY, self.organization_id, "one namespace holds one organization"),
            (INSTALLATION_PROPERTY, self.installation, "LAKEHOUSE_INSTALLATION"),
        ):
            found = properties.get(mark)
            if found != ours:
                raise OwnershipError(
                    f"{where}: its {mark} is {found!r}, ours is {ours!r}: it is another's, and nothing was written",
                    f"Check {setting} and the warehouse and catalog in [lake]: each installation has its own lake. "
                    "Only if the other will never write here again: `lakehouse lake adopt --reason …`.",
                )
