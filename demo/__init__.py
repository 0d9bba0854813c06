"""The demonstration: stock ComfyUI and this pack side by side, through a real server."""
