"""Between ComfyUI's process and a worker: requests and answers, and the inputs of evaluations."""
