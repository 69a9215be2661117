"""Settings: environment variables over one TOML file, validated once, at the start.

`LAKEHOUSE_SOURCE__URL` is `url` in the section `[source]`. The file is `lakehouse.toml` in the current folder,
or what `LAKEHOUSE_CONFIG` names. An error names the setting in both spellings.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from federation.kinds import DestinationKind
from schemas.contract import BUILT_IN, Contract
from schemas.errors import LakehouseError

MIB = 1024 * 1024
DEFAULT_FILE = "lakehouse.toml"


class SettingsError(LakehouseError):
    """A setting is missing, unknown or not valid; it is named with its environment variable."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


_URL = (
    "must look like postgresql://user:password@host:5432/database, with one host; in a user's name or password "
    "write @ / : % and spaces as %40 %2F %3A %25 %20"
)


def _postgres_url(value: SecretStr) -> SecretStr:
    # Everything is checked here, because what a driver says of a bad URL repeats the password in it.
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    text = value.get_secret_value()
    try:
        parts = urlsplit(text)
        parsed = conninfo_to_dict(text)
        _ = parts.port
    except (ValueError, psycopg.Error):
        raise ValueError(_URL) from None
    user, _, host = parts.netloc.rpartition("@")
    odd = "@" in user or "," in host or "@" in parts.path or any(c.isspace() for c in text)
    if parts.scheme not in ("postgresql", "postgres") or odd or not parsed.get("dbname") or not parts.path.strip("/"):
        raise ValueError(_URL)
    return value


NO_SOURCE = "postgresql://127.0.0.1:1/not-set"
"""Where no hot database is: of who checks receipts and names none."""


class SourceSettings(_Section):
    """The hot database. A host without a table of organizations sets `organizations_table` to nothing."""

    url: SecretStr
    organizations_table: str | None = "public.organizations"
    organizations_key: str = "id"
    organizations_label: str | None = "slug"
    statement_timeout_seconds: Annotated[int, Field(ge=1)] = 3600
    lock_timeout_seconds: Annotated[int, Field(ge=1)] = 10

    owner_url: SecretStr | None = None

    _check = field_validator("url")(_postgres_url)

    @field_validator("owner_url")
    @classmethod
    def _check_owner(cls, value: SecretStr | None) -> SecretStr | None:
        return value and _postgres_url(value)

    @field_validator("organizations_table", "organizations_label")
    @classmethod
    def _empty_is_none(cls, value: str | None) -> str | None:
        return value or None

    @property
    def given(self) -> bool:
        """Whether the settings name a hot database at all."""
        return self.url.get_secret_value() != NO_SOURCE

    @property
    def address(self) -> str:
        """host:port/database, without credentials: part of what a lake table remembers of its source."""
        parts = urlsplit(self.url.get_secret_value())
        return f"{parts.hostname or 'local'}:{parts.port or 5432}{parts.path}"


class ControlSettings(_Section):
    """Where the control tables live; the hot database itself unless said otherwise."""

    url: SecretStr | None = None
    schema_name: Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]{0,62}$", alias="schema")] = "lakehouse"

    @field_validator("url")
    @classmethod
    def _check(cls, value: SecretStr | None) -> SecretStr | None:
        return value and _postgres_url(value)


class CatalogSettings(_Section):
    """The Iceberg catalog. SQL on PostgreSQL or SQLite; the control database unless a URI is given."""

    kind: Literal["sql"] = "sql"
    uri: SecretStr | None = None
    name: str = "lakehouse"

    @field_validator("uri")
    @classmethod
    def _check(cls, value: SecretStr | None) -> SecretStr | None:
        text = value.get_secret_value() if value else "sqlite:///"
        if text.startswith("sqlite:///"):
            return value
        if not text.startswith(("postgresql://", "postgres://", "postgresql+psycopg://")):
            raise ValueError("must be a PostgreSQL URL or sqlite:///absolute/file.db")
        _postgres_url(SecretStr(text.replace("+psycopg", "", 1)))
        return value


class S3Settings(_Section):
    """Access to the bucket. Without keys the usual AWS chain applies (environment, profile, role)."""

    endpoint: str | None = None
    region: str | None = None
    access_key_id: str | None = None
    secret_access_key: SecretStr | None = None
    session_token: SecretStr | None = None


class LakeSettings(_Section):
    """The default lake: where organizations' tables live unless they have a lake of their own."""

    warehouse: str
    duckdb_memory: Annotated[str, Field(pattern=r"^[1-9][0-9]*(MB|GB|MiB|GiB)$")] = "1GB"
    catalog: CatalogSettings = CatalogSettings()
    s3: S3Settings = S3Settings()

    @field_validator("warehouse")
    @classmethod
    def _check(cls, value: str) -> str:
        if not value.startswith(("s3://", "file:///")):
            raise ValueError("must be s3://bucket/prefix or file:///absolute/folder")
        return value.rstrip("/")


Method = Literal["xmin", "trigger"]


class CaptureSettings(_Section):
    """How windows are read. `methods` names tables that are captured by another method than `method`."""

    method: Method = "xmin"
    methods: dict[str, Method] = {}

    chunk_bytes: Annotated[int, Field(ge=MIB)] = 64 * MIB
    reconcile_every_seconds: Annotated[int, Field(ge=0)] = 900
    max_seen: Annotated[int, Field(ge=0)] = 10_000
    max_quarantined: Annotated[int, Field(ge=0)] = 1000
    prune: bool = True


def method_of(settings: CaptureSettings, contract: Contract) -> Method:
    """The method that the settings choose for a table."""
    return settings.methods.get(contract.table, settings.method)


class LandingSettings(_Section):
    """How windows are committed."""

    max_partitions: Annotated[int, Field(ge=1)] = 500
    threads: Annotated[int, Field(ge=1, le=64)] = 8


class BackfillSettings(_Section):
    """How a table is read for the first time."""

    workers: Annotated[int, Field(ge=1, le=64)] = 2
    range_rows: Annotated[int, Field(ge=1)] = 200_000
    snapshot_seconds: Annotated[int, Field(ge=1)] = 600


class WorkSettings(_Section):
    """Leases, retries and the bounds of a worker."""

    concurrency: Annotated[int, Field(ge=1, le=64)] = 2
    poll_seconds: Annotated[float, Field(gt=0)] = 1.0
    lease_seconds: Annotated[float, Field(ge=1)] = 60
    stop_seconds: Annotated[float, Field(ge=1)] = 30
    max_attempts: Annotated[int, Field(ge=1)] = 5
    retry_base_seconds: Annotated[float, Field(gt=0)] = 30
    retry_max_seconds: Annotated[float, Field(gt=0)] = 1800


class DeliverSettings(_Section):
    """How destinations are fed. One that is more than `fill_behind` versions behind is filled from the current state.

    `fill_rows`: rows, about, that a filling takes at once. A target that answers to nobody for `answer_seconds`, or in
    which one statement says nothing for `statement_seconds`, is given up until the next attempt.
    """

    answer_seconds: Annotated[float, Field(gt=0)] = 60
    statement_seconds: Annotated[float, Field(gt=0)] = 6 * 3600

    fill_behind: Annotated[int, Field(ge=1)] = 5_000_000
    fill_rows: Annotated[int, Field(ge=1)] = 200_000


class ScheduleSettings(_Section):
    """What the scheduler triggers, and how often. The cadence is what a new organization begins with."""

    tick_seconds: Annotated[float, Field(gt=0)] = 1.0
    cadence_seconds: Annotated[int, Field(ge=1)] = 900
    discover_every_seconds: Annotated[float, Field(gt=0)] = 60
    enrol: bool = True
    maintain_every_seconds: Annotated[float, Field(gt=0)] = 3600
    parity_every_seconds: Annotated[float, Field(gt=0)] = 86400


class MaintenanceSettings(_Section):
    """The bounds that maintenance keeps."""

    keep_snapshots: Annotated[int, Field(ge=1)] = 20
    keep_daily: Annotated[int, Field(ge=0)] = 30
    keep_metadata: Annotated[int, Field(ge=1)] = 20
    settled_hours: Annotated[float, Field(ge=0)] = 24
    small_file_bytes: Annotated[int, Field(ge=1)] = 32 * MIB
    target_file_bytes: Annotated[int, Field(ge=1)] = 256 * MIB
    busy_files: Annotated[int, Field(ge=2)] = 200
    grace_minutes: Annotated[float, Field(ge=0)] = 15
    orphan_hours: Annotated[float, Field(ge=0)] = 72
    outbox_days: Annotated[float, Field(ge=0)] = 30


class MetricsSettings(_Section):
    """Where `lakehouse run` answers Prometheus; empty: nowhere."""

    listen: str | None = "127.0.0.1:9464"

    @field_validator("listen")
    @classmethod
    def _check(cls, value: str | None) -> str | None:
        if not value:
            return None
        host, _, port = value.rpartition(":")
        if not host or not port.isdigit() or int(port) > 65535:
            raise ValueError("must look like 127.0.0.1:9464")
        return value


class SecretsSettings(_Section):
    """Keys for stored credentials: by version, as `base64:…`, `base64url:…` or `hex:…` of 32 bytes.

    Where there is no v1, it is the host's own key (`APERIO_ENCRYPTION_KEY`).
    """

    keys: dict[str, SecretStr] = {}
    key_version: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,32}$")] = "v1"


class ArchiveSettings(_Section):
    """How hot rows leave for the lake. `url`: a user that may delete; the source's own unless said otherwise."""

    url: SecretStr | None = None
    batch_rows: Annotated[int, Field(ge=1, le=100_000)] = 10_000
    proof_rows: Annotated[int, Field(ge=1)] = 100_000
    rows_per_second: Annotated[int, Field(ge=0)] = 0
    replica_lag_seconds: Annotated[float, Field(ge=0)] = 30
    every_seconds: Annotated[float, Field(gt=0)] = 3600
    receipt_kinds: Annotated[tuple[DestinationKind, ...], Field(min_length=1)] = (DestinationKind.ICEBERG_S3,)
    audit_years: Annotated[int, Field(ge=1)] = 7
    recall_days: Annotated[float, Field(gt=0, le=36_500)] = 30
    signing_key_file: Path | None = None
    tombstone_keys: dict[str, SecretStr] = {}
    tombstone_key_version: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,32}$")] = "t1"

    @field_validator("url")
    @classmethod
    def _check(cls, value: SecretStr | None) -> SecretStr | None:
        return value and _postgres_url(value)


class EgressSettings(_Section):
    """What endpoints that a tenant gives may reach besides public addresses: hosts, or networks as CIDR."""

    allow: tuple[str, ...] = ()

    @field_validator("allow")
    @classmethod
    def _check(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        from lakehouse.egress.guard import Allowed

        Allowed.parse(value)
        return value


class Settings(BaseSettings):
    """All settings. Build with `load_settings`."""

    model_config = SettingsConfigDict(
        env_prefix="LAKEHOUSE_", env_nested_delimiter="__", extra="forbid", frozen=True, populate_by_name=True
    )

    installation: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    source: SourceSettings
    lake: LakeSettings
    control: ControlSettings = ControlSettings()
    contracts: tuple[str, ...] = ("builtin",)
    capture: CaptureSettings = CaptureSettings()
    landing: LandingSettings = LandingSettings()
    backfill: BackfillSettings = BackfillSettings()
    work: WorkSettings = WorkSettings()
    deliver: DeliverSettings = DeliverSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    maintenance: MaintenanceSettings = MaintenanceSettings()
    metrics: MetricsSettings = MetricsSettings()
    secrets: SecretsSettings = SecretsSettings()
    egress: EgressSettings = EgressSettings()
    archive: ArchiveSettings = ArchiveSettings()

    @property
    def control_url(self) -> str:
        return (self.control.url or self.source.url).get_secret_value()

    @property
    def catalog_uri(self) -> str:
        """SQLAlchemy URL of the SQL catalog; in the control database its tables share the control schema."""
        if self.lake.catalog.uri is not None:
            return sqlalchemy_url(self.lake.catalog.uri.get_secret_value())
        base = sqlalchemy_url(self.control_url)
        options = quote(f"-csearch_path={self.control.schema_name}", safe="")
        return f"{base}{'&' if '?' in base else '?'}options={options}"

    @property
    def contract_folders(self) -> list[Path]:
        return [BUILT_IN if folder == "builtin" else Path(folder) for folder in self.contracts]

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        del dotenv_settings, file_secret_settings
        file = os.environ.get("LAKEHOUSE_CONFIG", DEFAULT_FILE)
        if "LAKEHOUSE_CONFIG" in os.environ and not Path(file).is_file():
            raise SettingsError(f"LAKEHOUSE_CONFIG names {file}, which is not a file")
        return (init_settings, env_settings, TomlConfigSettingsSource(settings_cls, Path(file)))


_NOT_SETTINGS = {"LAKEHOUSE_CONFIG", "LAKEHOUSE_FAILPOINTS", "LAKEHOUSE_FAILPOINT_LOG"}


def sqlalchemy_url(url: str) -> str:
    """A libpq-style URL as SQLAlchemy wants it, with the psycopg driver named."""
    head, separator, rest = url.partition("://")
    return f"postgresql+psycopg{separator}{rest}" if head in ("postgres", "postgresql") else url


def load_settings(**overrides: Any) -> Settings:
    """Read and check the settings.

    Raises:
        SettingsError: every fault in one message, each with the variable to set.
    """
    return _load(Settings, overrides)


def load_lake_settings() -> Settings:
    """The settings of who may have the lake alone, and no hot database (`SourceSettings.given`).

    Raises:
        SettingsError: see `load_settings`; or without a hot database nothing says where the catalog is.
    """

    class PerhapsNoSource(SourceSettings):
        url: SecretStr = SecretStr(NO_SOURCE)

    class LakeOnly(Settings):
        source: PerhapsNoSource = PerhapsNoSource()

    settings = _load(LakeOnly, {})
    if not settings.source.given and settings.lake.catalog.uri is None and settings.control.url is None:
        raise SettingsError(
            "settings are not valid:\n"
            "  lake.catalog.uri (LAKEHOUSE_LAKE__CATALOG__URI): is missing, and so is\n"
            "  source.url (LAKEHOUSE_SOURCE__URL): the hot database has the catalog where nothing else is said",
            "Say where the lake's catalog is.",
        )
    return settings


def _load(kind: type[Settings], overrides: dict[str, Any]) -> Settings:
    try:
        settings = kind(**overrides)
    except ValidationError as error:
        raise SettingsError(
            "settings are not valid:\n" + "\n".join(f"  {_fault(dict(e))}" for e in error.errors(include_input=False)),
            f"Set the variables named, or the same keys in {DEFAULT_FILE} (LAKEHOUSE_CONFIG names another file).",
        ) from None
    except ValueError as error:
        file = os.environ.get("LAKEHOUSE_CONFIG", DEFAULT_FILE)
        raise SettingsError(
            f"{file} cannot be read: {error}", "It must be TOML; docs/settings.md has every key."
        ) from None
    _reject_unknown_variables()
    return settings


def _fault(error: dict[str, Any]) -> str:
    path = [str(part) for part in error["loc"]]
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "missing":
        return "\n  ".join(f"{'.'.join(p)} ({_variable(p)}): is missing" for p in _required(path))
    if error["type"] == "extra_forbidden":
        message = "no setting has this name; docs/settings.md has all of them"
    return f"{'.'.join(path)} ({_variable(path)}): {message}"


def _variable(path: list[str]) -> str:
    return f"LAKEHOUSE_{'__'.join(path).upper()}"


def _required(path: list[str]) -> list[list[str]]:
    """The settings that must be given where `path` is missing: of a section, those without a default."""
    kind: Any = Settings
    for part in path:
        field = kind.model_fields.get(part)
        kind = field.annotation if field else None
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return [path]
    return [[*path, name] for name, field in kind.model_fields.items() if field.is_required()]


def _reject_unknown_variables() -> None:
    sections = {name.upper() for name in Settings.model_fields}
    unknown = sorted(
        name
        for name in os.environ
        if name.startswith("LAKEHOUSE_")
        and name not in _NOT_SETTINGS
        and name.removeprefix("LAKEHOUSE_").split("__")[0] not in sections
    )
    if unknown:
        raise SettingsError(
            f"unknown setting{'s' if len(unknown) > 1 else ''}: {', '.join(unknown)}",
            f"Sections and settings are: {', '.join(sorted(sections))}.",
        )


class ExplicitSettings(Settings):
    """Settings from values alone: whatever the environment or a file says does not reach them."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        return (init_settings,)


def load_source_settings() -> SourceSettings:
    """Only the source's settings: enough to draft a contract.

    Raises:
        SettingsError: see `load_settings`.
    """

    class SourceOnly(Settings):
        installation: str = "draft"
        lake: LakeSettings = LakeSettings(warehouse="file:///unused")

    try:
        return SourceOnly.model_validate({}).source
    except ValidationError as error:
        raise SettingsError(
            "settings are not valid:\n" + "\n".join(f"  {_fault(dict(e))}" for e in error.errors(include_input=False)),
            f"Set the variables named, or the same keys in {DEFAULT_FILE}.",
        ) from None
