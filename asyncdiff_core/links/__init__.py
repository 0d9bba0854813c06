"""Between workers: the messages that carry activations from stage to stage."""
