"""From a catalogue to shards: splits, vocabulary and word vectors, posters of one shape, tars."""
