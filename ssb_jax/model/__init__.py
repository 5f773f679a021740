"""The network and how it lies on the devices: a Qwen2 decoder, its cache, adapters, checkpoints and shardings."""
