"""The installed llama.cpp: its cache types, its models and their contexts, opened for measuring."""
