"""What a run did, in figures, in a picture and in words."""
