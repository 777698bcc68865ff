"""Parts of the reader of Hugging Face model configurations; the entry is `planner.readers.hf_config`."""
