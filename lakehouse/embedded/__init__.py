"""Real servers out of wheels: PostgreSQL (`postgres.EmbeddedPostgres`) and S3 (`s3.EmbeddedS3`).

They are what `lakehouse demo` and the tests run on; nothing that serves a customer depends on them.
Both listen on 127.0.0.1 only, make their own credentials, live in a temporary folder of their own and
end with the process that started them (`process` says how). The wheels are the extra `demo`.
"""
