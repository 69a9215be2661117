"""Opens an organization's Iceberg catalog and the storage below it."""
