"""The networks: a text encoder, an image encoder, one small head per label, and the classifier that joins them."""
