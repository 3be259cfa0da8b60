"""Helpers that every room may use: files, names, texts, errors, the device. Only ``device`` needs torch."""
