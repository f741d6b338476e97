"""Getting films: TMDB client and downloads, import of tables and posters, sample data. All of them make a catalogue."""
