"""Films and posters from TMDB: a client with a rate limit, a journal of results, and the fetch stage."""
