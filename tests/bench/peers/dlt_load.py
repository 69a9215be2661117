"""Run by dlt's own interpreter: one pipeline run of the table into an Iceberg table on S3.

Everything comes as one JSON object on the command line: url, form (`connectorx`, or `pyarrow` with JSON cast to text,
the form that changes least), bucket, prefix, endpoint, region, key, secret, folder (of the pipeline's state), since
(of an incremental run: only rows whose `processed_at` is later; null for all rows).
"""

import json
import sys

import dlt
from dlt.destinations import filesystem
from dlt.sources.sql_database import sql_table


def _json_as_text(query, table):
    import sqlalchemy as sa

    columns = [sa.cast(c, sa.Text).label(c.name) if c.name == "payload" else c for c in table.columns]
    chosen = sa.select(*columns)
    return chosen if query.whereclause is None else chosen.where(query.whereclause)


asked = json.loads(sys.argv[1])
options = {"backend": "connectorx"}
if asked["form"] == "pyarrow":
    options = {"backend": "pyarrow", "reflection_level": "full", "query_adapter_callback": _json_as_text}
if asked["since"] is not None:
    import pendulum

    since = pendulum.parse(asked["since"])
    options["incremental"] = dlt.sources.incremental(
        "processed_at", initial_value=since.naive(), on_cursor_value_missing="exclude"
    )
rows = sql_table(credentials=asked["url"], schema="public", table="ingested_events", **options)
rows.apply_hints(table_format="iceberg", write_disposition="append")
pipeline = dlt.pipeline(
    "bench",
    pipelines_dir=asked["folder"],
    dataset_name="bench",
    destination=filesystem(
        bucket_url=f"s3://{asked['bucket']}/{asked['prefix']}",
        credentials={
            "aws_access_key_id": asked["key"],
            "aws_secret_access_key": asked["secret"],
            "endpoint_url": asked["endpoint"],
            "region_name": asked["region"],
        },
    ),
)
pipeline.run(rows, table_name="events").raise_on_failed_jobs()
