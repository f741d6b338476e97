"""What on posters and in overviews speaks for a genre, and what each is worth."""
