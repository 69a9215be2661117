"""The demo: a small host database, its data, and applications that write to it while the lakehouse reads."""
