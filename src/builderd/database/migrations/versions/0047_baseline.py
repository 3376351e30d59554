"""Schema of builderd 1.0, in the words of each database: what SQLAlchemy made of the package ``tables`` then."""

from pathlib import Path

from alembic import op

revision = "0047"
down_revision = None


def upgrade() -> None:
    connection = op.get_bind()
    schema = Path(__file__).with_suffix(f".{connection.dialect.name}.sql").read_text()
    for statement in schema.split(";\n"):
        if statement.strip():
            connection.exec_driver_sql(statement)
