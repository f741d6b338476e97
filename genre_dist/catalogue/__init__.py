"""A catalogue of films: its files, the import of tables and posters, and procedural samples."""
