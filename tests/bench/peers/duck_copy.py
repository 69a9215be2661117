"""Run by DuckDB's own environment: `COPY` of the table to one Parquet file on S3. Arguments as of `dlt_load.py`."""

import importlib.util
import json
import sys
from pathlib import Path
from urllib.parse import urlsplit

import duckdb

asked = json.loads(sys.argv[1])
connection = duckdb.connect(
    config={"autoinstall_known_extensions": "false", "preserve_insertion_order": "false", "threads": asked["threads"]}
)
for name in ("httpfs", "postgres_scanner"):
    folder = Path(importlib.util.find_spec(f"duckdb_extension_{name}").origin).parent
    (found,) = folder.glob("extensions/*/*.duckdb_extension")
    connection.execute(f"LOAD '{found}'")
endpoint = urlsplit(asked["endpoint"])
connection.execute(
    f"CREATE SECRET (TYPE s3, KEY_ID '{asked['key']}', SECRET '{asked['secret']}', REGION '{asked['region']}', "
    f"ENDPOINT '{endpoint.netloc}', URL_STYLE 'path', USE_SSL {endpoint.scheme == 'https'})"
)
connection.execute(f"ATTACH '{asked['url']}' AS hot (TYPE postgres, READ_ONLY)")
only = f"WHERE processed_at > timestamp '{asked['since']}'" if asked["since"] is not None else ""
connection.execute(
    f"COPY (SELECT * FROM hot.public.ingested_events {only}) "
    f"TO 's3://{asked['bucket']}/{asked['prefix']}/{asked['file']}.parquet' (FORMAT parquet, COMPRESSION zstd)"
)
