"""The application: capture from PostgreSQL, landing in Iceberg, proof, and the command line."""
