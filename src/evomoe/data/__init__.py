"""Conversations with pictures: read and check them (`records`), turn them into tensors (`conversations`), and the
built-in set (`easy_vqa`). Importing this package imports neither torch nor transformers."""
