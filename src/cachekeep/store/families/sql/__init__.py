"""The same statements for SQLite and PostgreSQL."""
