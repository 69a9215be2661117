"""PARQUET_S3 and JSONL_S3: plain files below a prefix of a bucket, by organization and date."""
