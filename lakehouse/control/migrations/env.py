"""Runs migrations on the connection that `lakehouse.control.database.migrate` hands over."""

from alembic import context

from lakehouse.control.models import Base

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Base.metadata)
with context.begin_transaction():
    context.run_migrations()
