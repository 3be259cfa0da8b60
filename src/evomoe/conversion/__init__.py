"""A model becomes an EvoMoE: dense ones are upcycled, sparse ones attached to, parts composed into a LLaVA."""
