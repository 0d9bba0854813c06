"""ComfyUI's official templates: which of them can be spread, and what comes of each."""
