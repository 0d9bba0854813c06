"""The worker processes: the program that they run, and the group that starts and asks them."""
