"""The networks: a text encoder, a poster encoder, one small head per genre, and the classifier that joins them."""
