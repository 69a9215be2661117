"""POSTGRES_REPLICA: the tables of one organization in a schema of a PostgreSQL database."""
