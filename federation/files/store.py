"""A prefix of a bucket: objects put whole, and one that is replaced only by whoever read it last.

S3 shows an object when it is complete and not before, so a file is there or not. `If-Match` and `If-None-Match` on a
PUT fence two writers of one manifest. Source: docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-requests.html.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from federation.protocol import DestinationError
from schemas.errors import Retry

_ONE_PUT = 5 * 1024**3
"""Bytes of the largest object that S3 takes in one request."""
_GONE = {"NoSuchKey", "404", "NotFound"}
_LOST = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409"}
_REFUSED = {
    "AccessDenied", "403", "AllAccessDisabled", "AccountProblem", "InvalidAccessKeyId", "SignatureDoesNotMatch",
    "ExpiredToken", "InvalidToken", "NoSuchBucket", "InvalidBucketName", "AuthorizationHeaderMalformed", "301",
    "PermanentRedirect", "IllegalLocationConstraintException", "NotImplemented", "501", "MethodNotAllowed",
    "InvalidRequest",
}  # fmt: skip


class RaceLostError(DestinationError):
    """Somebody else replaced the object in between: nothing was written."""

    retry = Retry.TIMED


class DamagedError(DestinationError):
    """The object is not what we wrote. `etag`: what it is replaced by, when it is filled anew."""

    retry = Retry.MANUAL

    def __init__(self, what: str, etag: str) -> None:
        super().__init__(what, "Somebody changed it: run `lakehouse destinations resync` for it.")
        self.etag = etag


class ObjectExistsError(DestinationError):
    """There is an object of that name: nothing was written."""

    retry = Retry.MANUAL


@dataclass(frozen=True)
class Found:
    """A JSON object as it was read."""

    value: dict[str, Any]
    etag: str


class Store:
    """Objects below `location` (s3://bucket/prefix). `storage`: pyiceberg's `s3.*` properties. Safe between threads."""

    def __init__(self, location: str, storage: Mapping[str, str], answer_seconds: float = 60.0) -> None:
        import boto3
        from botocore.config import Config

        parts = urlsplit(location)
        self.location = location
        self.bucket = parts.netloc
        self.prefix = parts.path.strip("/")
        proxy = storage.get("s3.proxy-uri")
        self._client = boto3.client(
            "s3",
            endpoint_url=storage.get("s3.endpoint"),
            region_name=storage.get("s3.region"),
            aws_access_key_id=storage.get("s3.access-key-id"),
            aws_secret_access_key=storage.get("s3.secret-access-key"),
            aws_session_token=storage.get("s3.session-token"),
            config=Config(
                connect_timeout=min(5.0, answer_seconds),
                # A store that accepts and never answers is given up after as many of these as there are attempts.
                read_timeout=answer_seconds,
                retries={"max_attempts": 3, "mode": "standard"},
                proxies={"http": proxy, "https": proxy} if proxy else None,
                s3={"addressing_style": "path" if storage.get("s3.endpoint") else "auto"},
                # Stores that are not Amazon's know no checksum trailers.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def url(self, name: str) -> str:
        """The whole address of an object."""
        return f"s3://{self.bucket}/{self._key(name)}"

    def read_json(self, name: str) -> Found | None:
        """The object and its etag; None where there is none.

        Raises:
            DamagedError: it is no JSON object.
            DestinationError: the storage does not answer or refuses.
        """
        from botocore.exceptions import ClientError

        with self._errors(name):
            try:
                answer = self._client.get_object(Bucket=self.bucket, Key=self._key(name))
            except ClientError as error:
                if _code(error) in _GONE:
                    return None
                raise
            body = answer["Body"].read()
        try:
            value = json.loads(body)
        except ValueError as error:
            raise DamagedError(f"{self.url(name)}: is not JSON: {error}", answer["ETag"]) from None
        if not isinstance(value, dict):
            raise DamagedError(f"{self.url(name)}: is no JSON object", answer["ETag"])
        return Found(value, answer["ETag"])

    def write_json(self, name: str, value: Mapping[str, Any], *, instead_of: Found | None) -> None:
        """Put the object where it is still the one that was read (or still none).

        Raises:
            RaceLostError: it is another by now.
            DestinationError: the storage does not answer or refuses.
        """
        from botocore.exceptions import ClientError

        condition: Any = {"IfNoneMatch": "*"} if instead_of is None else {"IfMatch": instead_of.etag}
        body = json.dumps(value, indent=1, ensure_ascii=False).encode()
        with self._errors(name):
            try:
                self._client.put_object(
                    Bucket=self.bucket, Key=self._key(name), Body=body, ContentType="application/json", **condition
                )
            except ClientError as error:
                if _code(error) in _LOST:
                    raise RaceLostError(f"{self.url(name)}: another worker was first", "It is tried again.") from None
                raise

    def put(self, name: str, file: BinaryIO) -> None:
        """Put a file whole, in parts where it is large.

        Raises:
            DestinationError: the storage does not answer or refuses.
        """
        with self._errors(name):
            self._client.upload_fileobj(file, self.bucket, self._key(name))

    def exists(self, name: str) -> bool:
        """Whether there is such an object.

        Raises:
            DestinationError: the storage does not answer or refuses.
        """
        from botocore.exceptions import ClientError

        with self._errors(name):
            try:
                self._client.head_object(Bucket=self.bucket, Key=self._key(name))
            except ClientError as error:
                if _code(error) in _GONE:
                    return False
                raise
        return True

    def create(self, name: str, file: BinaryIO) -> None:
        """Put a file whole where no object is, which the storage itself sees to up to the size of one PUT.

        Raises:
            ObjectExistsError: there is one; it stays as it is.
            DestinationError: the storage does not answer or refuses.
        """
        from botocore.exceptions import ClientError

        start = file.tell()
        size = file.seek(0, io.SEEK_END) - start
        file.seek(start)
        taken = ObjectExistsError(f"{self.url(name)}: is there already", "Nothing was written.")
        if size > _ONE_PUT:
            if self.exists(name):
                raise taken
            self.put(name, file)
            return
        with self._errors(name):
            try:
                self._client.put_object(
                    Bucket=self.bucket, Key=self._key(name), Body=file, ContentLength=size, IfNoneMatch="*"
                )
            except ClientError as error:
                if _code(error) in _LOST:
                    raise taken from None
                raise

    def delete(self, name: str) -> None:
        """Delete an object; one that is gone is well.

        Raises:
            DestinationError: the storage does not answer or refuses.
        """
        with self._errors(name):
            self._client.delete_object(Bucket=self.bucket, Key=self._key(name))

    def folders(self, below: str = "") -> list[str]:
        """What lies directly below the location (or a folder of it, with a slash at its end) and holds something.

        Raises:
            DestinationError: the storage does not answer or refuses.
        """
        with self._errors(""):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self._key(below), Delimiter="/"
            )
            found = [item["Prefix"] for page in pages for item in page.get("CommonPrefixes", [])]
        return [prefix.removeprefix(self._key(below)).rstrip("/") for prefix in found]

    def close(self) -> None:
        """Release connections."""
        self._client.close()

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        from boto3.exceptions import S3UploadFailedError
        from botocore.exceptions import (
            BotoCoreError,
            ClientError,
            NoCredentialsError,
            ParamValidationError,
            PartialCredentialsError,
        )

        try:
            yield
        except (ClientError, BotoCoreError, S3UploadFailedError, OSError) as error:
            code = _code(error) if isinstance(error, ClientError) else ""
            # An upload's error has the answer's code in its words only.
            said = re.search(r"An error occurred \((\w+)\)", str(error))
            refused = (said[1] if said else code) in _REFUSED or isinstance(
                error, NoCredentialsError | PartialCredentialsError | ParamValidationError
            )
            raise DestinationError(
                f"{self.url(name)}: {' '.join(str(error).split())[:300]}",
                "Check bucket, region, endpoint and keys of the destination; it lists, reads, writes and deletes there."
                if refused
                else "Nothing of it counts; it is tried again.",
                retry=Retry.MANUAL if refused else Retry.TIMED,
            ) from error


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
