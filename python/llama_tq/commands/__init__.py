"""What the commands of `llama-tq` print: one function a file, each of them also `llama_tq.NAME`."""
