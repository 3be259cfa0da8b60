"""The paper's tables and figures: rows are recipes, the published numbers stand beside them."""
