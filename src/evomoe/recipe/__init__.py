"""A run, as data: its options, its recipe, its folder. Needs neither torch nor transformers."""
