"""A node pack for the tests, of which `prestartup_script.py` is what matters."""

NODE_CLASS_MAPPINGS: dict = {}
