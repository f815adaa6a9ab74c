"""Alembic's entry point: migrate on the connection that Database.upgrade passes."""

from alembic import context

from dicom_node.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
    render_as_batch=True,
)
context.run_migrations()
