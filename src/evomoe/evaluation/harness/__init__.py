"""EvoMoE in other people's tools. Each tool finds its part by an entry point; evomoe itself imports none of them."""
