"""Films and posters from TMDB: a client with a rate, a journal of what is done, and the fetch stage."""
